/*
 * Operations that are better done immediately than through io_uring. A lone read whose data is in the page cache takes
 * longer through io_uring. A buffered write would be handed by io_uring to a kernel thread, one at a time per file,
 * which costs more than the write itself. But slow storage would also hold up the guest's other requests: once an
 * operation was slow, or found nothing in memory, the next ones go to io_uring before this is tried again.
 */
#define _GNU_SOURCE
#include "file_io.h"

#include <time.h>

/*
 * SLOW_WRITE_US is two ticks of a slow kernel's clock. SLOW_WRITES and COLD_READS say how many operations go straight
 * to io_uring after a write took that long or a read found nothing in memory.
 */
enum { SLOW_WRITE_US = 8000, SLOW_WRITES = 256, COLD_READS = 32 };

/* Has the resolution of a tick, but never takes a system call. */
static int64_t coarse_us(void) {
  struct timespec now;
  clock_gettime(CLOCK_MONOTONIC_COARSE, &now);
  return now.tv_sec * 1000000 + now.tv_nsec / 1000;
}

/* Where the file system cannot report that it would have to wait, the read goes to io_uring. */
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
