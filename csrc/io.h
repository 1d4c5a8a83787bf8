/* Inside of io.c and io_uring.c: what an open engine is, and what both do the same way. */
#ifndef XENTOOL_IO_H
#define XENTOOL_IO_H

#include "xentool.h"

#include <linux/io_uring.h>
#include <stddef.h>
#include <sys/uio.h>

enum { MAX_WATCHES = 8 };

struct watch {
  int fd;
  uint32_t tag;
  int armed;
};

struct delay {
  uint32_t tag;
  int64_t due_us;
};

struct io {
  int fd, is_block_device;
  uint32_t engine, depth, in_flight, watch_count;
  struct watch watches[MAX_WATCHES];

  /* Completions not handed out yet: of operations that end within the call. */
  struct xt_io_done *ready;
  uint32_t ready_count;

  /* SYNC: pending delays. */
  struct delay *delays;
  uint32_t delay_count;

  /* URING */
  int ring_fd;
  void *sq_memory, *cq_memory;
  size_t sq_bytes, cq_bytes, sqe_bytes;
  struct io_uring_sqe *sqes;
  uint32_t *sq_tail, *sq_mask, *sq_array, *cq_head, *cq_tail, *cq_mask;
  struct io_uring_cqe *cqes;
  struct __kernel_timespec *timespecs; /* one a submission slot */
  int buffered_file, nowait_flag;
  uint32_t slow_writes, cold_reads; /* so many more are not done at once */
  uint32_t unsubmitted;
};

/* Notes a completion to be handed out. */
void io_finish(struct io *io, uint32_t tag, int64_t result);
uint32_t io_take_ready(struct io *io, struct xt_io_done *done, uint32_t max);
/* Does one operation now; its result or -errno. */
int64_t io_perform(struct io *io, const struct xt_io *op);
/* preadv2 of the kernel, which the C library has only since 2.26. */
ssize_t io_preadv2(int fd, const struct iovec *vectors, int count, off_t offset, int flags);
int64_t io_discard_block_device(struct io *io, const struct xt_io *op);

/* 0 or -errno; io_uring_unmap undoes it, also when it failed in between. */
int32_t io_uring_open(struct io *io);
int32_t io_uring_run(struct io *io, const struct xt_io *ops, uint32_t count, uint32_t wait, int32_t timeout_us,
                     struct xt_io_done *done, uint32_t max);
/* Waits for what is in flight and disarms the watches. */
void io_uring_drain(struct io *io);
void io_uring_unmap(struct io *io);

#endif
