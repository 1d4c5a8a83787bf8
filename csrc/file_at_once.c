/*
 * Operations that are better done immediately than through io_uring. A lone read whose data is in the page cache takes
 * longer through io_uring. A buffered write would be handed by io_uring to a kernel thread, one at a time per file,
 * which costs more than the write itself. A lone transfer before whose end nothing else comes is waited for: the end of
 * a direct write to a file that was not waited for has to pass through a worker of the kernel, which may be kept from
 * the processor. But slow storage would also hold up the guest's other requests: once an operation was slow, or found
 * nothing in memory, the next ones go to io_uring before this is tried again.
 */
#define _GNU_SOURCE
#include "file_io.h"

#include <time.h>

/*
 * SLOW_US is two ticks of a slow kernel's clock. SLOW_TRANSFERS and COLD_READS say how many operations go straight to
 * io_uring after one took that long or a read found nothing in memory. A patient caller's SLOW_WAITS are few, because
 * it stops being patient for a while if io_uring takes it long, too.
 */
enum { SLOW_US = 8000, SLOW_TRANSFERS = 256, SLOW_WAITS = 1, COLD_READS = 32 };

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

/* Waits for storage if need be. After an operation that took long, `rest` of them go to io_uring. */
static int transfer_at_once(struct file *file, const struct xt_io *op, uint32_t rest, int64_t *result) {
  if (file->slow_transfers) {
    file->slow_transfers--;
    return 0;
  }
  int64_t begin = coarse_us();
  *result = file_perform(file, op);
  if (coarse_us() - begin >= SLOW_US) file->slow_transfers = rest;
  return 1;
}

int file_did_at_once(struct file *file, const struct xt_io *op, enum company company, int64_t *result) {
  int is_patient = company == NOTHING_ELSE_COMES;
  switch (op->op) {
    case XT_IO_WRITE:
    case XT_IO_WRITEV:
      if (is_patient) return transfer_at_once(file, op, SLOW_WAITS, result);
      return file->is_buffered && transfer_at_once(file, op, SLOW_TRANSFERS, result);
    case XT_IO_READ:
    case XT_IO_READV:
      if (is_patient) return transfer_at_once(file, op, SLOW_WAITS, result);
      return file->is_buffered && company == ALONE && read_at_once(file, op, result);
    default: return 0;
  }
}
