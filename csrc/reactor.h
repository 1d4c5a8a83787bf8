/*
 * Internals shared by the reactor's two engines. Calls go one way: reactor.c calls reactor_uring.c or reactor_poll.c,
 * and both call file_io.c; reactor.c and reactor_uring.c call write_threads.c, too.
 */
#ifndef XENTOOL_REACTOR_H
#define XENTOOL_REACTOR_H

#include "file_io.h"
#include "write_threads.h"

#include <linux/io_uring.h>
#include <stddef.h>

/* The tag of the watch of the write threads, which belongs to none of the callers. */
#define WRITE_THREADS_TAG UINT32_MAX

struct watch {
  int fd; /* -1: a free place, once nothing is armed there */
  uint32_t tag, events;
  uint32_t armed;      /* URING: events of the poll in progress; 0: none */
  uint32_t generation; /* number of that poll */
};

struct uring {
  int fd;
  void *sq_memory, *cq_memory;
  size_t sq_bytes, cq_bytes, sqe_bytes;
  struct io_uring_sqe *sqes;
  uint32_t *sq_tail, *sq_mask, *sq_array, *cq_head, *cq_tail, *cq_mask;
  struct io_uring_cqe *cqes;
  uint32_t unsubmitted, polls; /* polls: of watches, including those being removed */
  uint32_t unlooked;           /* calls since we last entered the kernel, which alone sees events */
};

struct reactor {
  uint32_t engine, depth, in_flight;
  struct file files[XT_REACTOR_FILES_MAX];
  uint32_t file_count;
  struct watch *watches;
  uint32_t watch_count, max_watches;

  /* Completions not handed out yet, of operations that finished within a call. */
  struct xt_io_done *ready;
  uint32_t ready_count;

  struct pollfd *polled; /* POLL: one per watch */
  struct uring uring;
  struct write_threads *write_threads; /* URING; NULL: no file needs them */
};

static inline void reactor_finish(struct reactor *reactor, uint32_t tag, int64_t result) {
  reactor->ready[reactor->ready_count++] = (struct xt_io_done){tag, (int32_t)result};
}

/* Returns 0 or -errno. uring_unmap undoes it, even after a partial failure. */
int32_t uring_open(struct reactor *reactor);
/* Performs operations immediately where possible and hands the others to the kernel. */
void uring_start(struct reactor *reactor, const struct xt_io *ops, uint32_t count, int is_patient);
/*
 * Waits until there are `wait` completions, `ready` of which the caller has already. Returns how many were stored in
 * `done`, or -errno.
 */
int32_t uring_wait(struct reactor *reactor, uint32_t ready, uint32_t wait, int32_t timeout_us, struct xt_io_done *done,
                   uint32_t max);
/* Waits for the operations in flight, except for the threads', and disarms the watches. */
void uring_drain(struct reactor *reactor);
void uring_unmap(struct reactor *reactor);

/* Waits with poll(2) until `wait` completions are ready; returns 0 or -errno. */
int32_t poll_wait(struct reactor *reactor, uint32_t wait, int32_t timeout_us);

#endif
