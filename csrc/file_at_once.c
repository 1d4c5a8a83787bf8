/*
 * What is better done now than by io_uring. A read alone that finds its data in memory takes io_uring longer. A
 * write into a file's page cache io_uring would hand to a kernel thread, one at a time for each file, which costs more
 * than the write. But storage that makes us wait would make the guest's other requests wait, too: after that has been
 * seen, the next operations are io_uring's, and later it is tried again.
 */
#define _GNU_SOURCE
#include "file_io.h"

#include <time.h>

/* Two ticks of a slow kernel's clock; and how many operations go without being tried after one that took that
 * long, or found nothing in memory. */
enum { SLOW_WRITE_US = 8000, SLOW_WRITES = 256, COLD_READS = 32 };

/* In ticks, but never a system call. */
static int64_t coarse_us(void) {
  struct timespec now;
  clock_gettime(CLOCK_MONOTONIC_COARSE, &now);
  return now.tv_sec * 1000000 + now.tv_nsec / 1000;
}

/* Where the file system cannot say that it would have to wait, the read is io_uring's. */
static int read_at_once(struct file *file, const struct xt_io *op, int64_t *result) {
  if (file->cold_reads) {
    file->cold_reads--;
    return 0;
  }
  struct iovec whole = {(void *)(uintptr_t)op->address, (size_t)op->length};
  int one = op->op == XT_IO_READ;
  *result = file_preadv2(file->fd, one ? &whole : whole.iov_base, one ? 1 : (int)op->length, (off_t)op->offset,
                         file->nowait_flag);
  if (*result < 0) file->cold_reads = COLD_READS;
  return *result >= 0;
}

static int write_at_once(struct file *file, const struct xt_io *op, int64_t *result) {
  if (file->slow_writes) {
    file->slow_writes--;
    return 0;
  }
  int64_t begin = coarse_us();
  *result = file_perform(file, op);
  if (coarse_us() - begin >= SLOW_WRITE_US) file->slow_writes = SLOW_WRITES;
  return 1;
}

int file_did_at_once(struct file *file, const struct xt_io *op, int is_alone, int64_t *result) {
  if (!file->is_buffered) return 0;
  switch (op->op) {
    case XT_IO_WRITE:
    case XT_IO_WRITEV: return write_at_once(file, op, result);
    case XT_IO_READ:
    case XT_IO_READV: return is_alone && read_at_once(file, op, result);
    default: return 0;
  }
}
