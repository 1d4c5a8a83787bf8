/*
 * Block I/O on one file, and the one place where a data plane waits: for completions and for watched
 * descriptors together. Two engines behind one call: io_uring (io_uring.c), and here pread/pwrite with poll where
 * io_uring is not allowed.
 */
#define _GNU_SOURCE
#include "clock.h"
#include "io.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/fs.h>
#include <poll.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/ioctl.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

void io_finish(struct io *io, uint32_t tag, int64_t result) {
  io->ready[io->ready_count++] = (struct xt_io_done){tag, (int32_t)result};
}

uint32_t io_take_ready(struct io *io, struct xt_io_done *done, uint32_t max) {
  uint32_t taken = io->ready_count < max ? io->ready_count : max;
  memcpy(done, io->ready, taken * sizeof *done);
  memmove(io->ready, io->ready + taken, (io->ready_count - taken) * sizeof *done);
  io->ready_count -= taken;
  return taken;
}

static int64_t result_or_errno(int64_t result) { return result < 0 ? -errno : result; }

ssize_t io_preadv2(int fd, const struct iovec *vectors, int count, off_t offset, int flags) {
  return syscall(SYS_preadv2, fd, vectors, count, offset, 0, flags);
}

/* Block devices have their discard as an ioctl, which io_uring cannot issue on the kernels in use. */
int64_t io_discard_block_device(struct io *io, const struct xt_io *op) {
  uint64_t range[2] = {(uint64_t)op->offset, (uint64_t)op->length};
  int secure = op->op == XT_IO_SECURE_DISCARD;
  return result_or_errno(ioctl(io->fd, secure ? BLKSECDISCARD : BLKDISCARD, range));
}

int32_t xt_file_lock(int32_t fd, int32_t exclusive) {
  return flock(fd, (exclusive ? LOCK_EX : LOCK_SH) | LOCK_NB) ? -errno : 0;
}

/* ---- the SYNC engine ---- */

int64_t io_perform(struct io *io, const struct xt_io *op) {
  void *memory = (void *)(uintptr_t)op->address;
  off_t offset = (off_t)op->offset;
  switch (op->op) {
    case XT_IO_READ: return result_or_errno(pread(io->fd, memory, (size_t)op->length, offset));
    case XT_IO_WRITE: return result_or_errno(pwrite(io->fd, memory, (size_t)op->length, offset));
    case XT_IO_READV: return result_or_errno(preadv(io->fd, memory, (int)op->length, offset));
    case XT_IO_WRITEV: return result_or_errno(pwritev(io->fd, memory, (int)op->length, offset));
    case XT_IO_FLUSH: return result_or_errno(fdatasync(io->fd));
    case XT_IO_DISCARD:
      if (io->is_block_device) return io_discard_block_device(io, op);
      return result_or_errno(
          fallocate(io->fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, offset, (off_t)op->length));
    case XT_IO_SECURE_DISCARD: return io->is_block_device ? io_discard_block_device(io, op) : -EOPNOTSUPP;
    default: return -EINVAL;
  }
}

static void collect_delays(struct io *io) {
  int64_t now = io->delay_count ? xt_system_us() : 0;
  for (uint32_t i = 0; i < io->delay_count;) {
    if (io->delays[i].due_us <= now) {
      io_finish(io, io->delays[i].tag, 0);
      io->delays[i] = io->delays[--io->delay_count];
    } else {
      i++;
    }
  }
}

/* How long poll may wait: until `deadline` (negative: none) or the next delay's end; negative: for ever. */
static int64_t poll_timeout_us(struct io *io, int64_t deadline) {
  int64_t next = deadline;
  for (uint32_t i = 0; i < io->delay_count; i++)
    if (next < 0 || io->delays[i].due_us < next) next = io->delays[i].due_us;
  if (next < 0) return -1;
  int64_t left = next - xt_system_us();
  return left < 0 ? 0 : left;
}

static int32_t run_sync(struct io *io, const struct xt_io *ops, uint32_t count, uint32_t wait, int32_t timeout_us) {
  for (uint32_t i = 0; i < count; i++) {
    if (ops[i].op == XT_IO_DELAY)
      io->delays[io->delay_count++] = (struct delay){ops[i].tag, xt_system_us() + (int64_t)(ops[i].length * 1000)};
    else
      io_finish(io, ops[i].tag, io_perform(io, &ops[i]));
  }
  int64_t deadline = timeout_us < 0 ? -1 : xt_system_us() + timeout_us;
  for (int first = 1;; first = 0) {
    struct pollfd polled[MAX_WATCHES];
    collect_delays(io);
    int enough = io->ready_count >= wait;
    if (!first && (enough || (deadline >= 0 && xt_system_us() >= deadline))) return 0;
    for (uint32_t i = 0; i < io->watch_count; i++)
      polled[i] = (struct pollfd){.fd = io->watches[i].fd, .events = POLLIN};
    int64_t left = enough ? 0 : poll_timeout_us(io, deadline);
    struct timespec time = {.tv_sec = left / 1000000, .tv_nsec = left % 1000000 * 1000};
    int seen = ppoll(polled, io->watch_count, left < 0 ? NULL : &time, NULL);
    if (seen < 0) return errno == EINTR ? 0 : -errno;
    for (uint32_t i = 0; seen > 0 && i < io->watch_count; i++)
      if (polled[i].revents) io_finish(io, io->watches[i].tag, polled[i].revents);
  }
}

/* ---- what both engines share ---- */

static void free_io(struct io *io) {
  if (io->engine == XT_IO_ENGINE_URING) io_uring_unmap(io);
  free(io->timespecs);
  free(io->ready);
  free(io->delays);
  free(io);
}

double xt_io_open(int32_t fd, uint32_t depth, uint32_t engine, int32_t is_block_device) {
  if (depth == 0 || depth > 4096) return -EINVAL;
  struct io *io = calloc(1, sizeof *io);
  if (!io) return -ENOMEM;
  io->fd = fd;
  io->ring_fd = -1;
  io->is_block_device = is_block_device;
  io->engine = engine;
  io->depth = depth;
  io->ready = calloc(depth + MAX_WATCHES, sizeof *io->ready);
  io->delays = calloc(depth, sizeof *io->delays);
  int32_t error = !io->ready || !io->delays ? -ENOMEM : engine == XT_IO_ENGINE_URING ? io_uring_open(io) : 0;
  if (error == 0) return (double)(uintptr_t)io;
  free_io(io);
  return error;
}

int32_t xt_io_watch(void *handle, int32_t fd, uint32_t tag) {
  struct io *io = handle;
  if (io->watch_count == MAX_WATCHES) return -ENOSPC;
  io->watches[io->watch_count++] = (struct watch){fd, tag, 0};
  return 0;
}

int32_t xt_io_run(void *handle, const struct xt_io *ops, uint32_t count, uint32_t wait, int32_t timeout_us,
                  struct xt_io_done *done, uint32_t max) {
  struct io *io = handle;
  if (io->engine == XT_IO_ENGINE_URING) {
    if (io->in_flight + io->ready_count + count > io->depth) return -EBUSY;
    return io_uring_run(io, ops, count, wait, timeout_us, done, max);
  }
  if (io->delay_count + io->ready_count + count > io->depth) return -EBUSY;
  int32_t error = run_sync(io, ops, count, wait, timeout_us);
  return error ? error : (int32_t)io_take_ready(io, done, max);
}

int32_t xt_io_close(void *handle) {
  struct io *io = handle;
  if (io->engine == XT_IO_ENGINE_URING) io_uring_drain(io);
  free_io(io);
  return 0;
}
