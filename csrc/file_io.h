/* Operations on a disk's file: as it is told, and whether now. */
#ifndef XENTOOL_FILE_IO_H
#define XENTOOL_FILE_IO_H

#include "xentool.h"

#include <sys/uio.h>

struct file {
  int fd, is_block_device, is_buffered;
  int nowait_flag;      /* of preadv2: for a read that must not wait */
  uint32_t slow_writes; /* how many more writes are left to the kernel's threads */
  uint32_t cold_reads;  /* and reads */
};

/* Looks at `fd`, which stays the caller's. */
struct file file_of(int fd, int is_block_device);
/* Does one operation now: its result or -errno. */
int64_t file_perform(const struct file *file, const struct xt_io *op);
/* preadv2 of the kernel, which the C library has only since 2.26. */
ssize_t file_preadv2(int fd, const struct iovec *vectors, int count, off_t offset, int flags);
/* True when the operation was done now, because that is faster than to have io_uring do it; then `*result` is there. */
int file_did_at_once(struct file *file, const struct xt_io *op, int is_alone, int64_t *result);

static inline int is_discard(uint32_t op) { return op == XT_IO_DISCARD || op == XT_IO_SECURE_DISCARD; }

#endif
