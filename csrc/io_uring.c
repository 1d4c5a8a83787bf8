/* The io_uring engine of io.c, by raw system calls: the needed part of it is small. */
#define _GNU_SOURCE
#include "io.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/falloc.h>
#include <linux/magic.h>
#include <poll.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <sys/vfs.h>
#include <time.h>
#include <unistd.h>

enum { WATCH_BIT = 1u << 31, CANCEL_TAG = WATCH_BIT | 0xff };
/* Two ticks of a slow kernel's clock; and how many operations go without being tried at once after one that
 * took it, or found nothing in memory. */
enum { SLOW_WRITE_US = 8000, SLOW_WRITES = 256, COLD_READS = 32 };

/* In ticks, but never a system call. */
static int64_t coarse_us(void) {
  struct timespec now;
  clock_gettime(CLOCK_MONOTONIC_COARSE, &now);
  return now.tv_sec * 1000000 + now.tv_nsec / 1000;
}

static int uring_enter(struct io *io, uint32_t wait, int32_t timeout_us) {
  struct __kernel_timespec time = {.tv_sec = timeout_us / 1000000, .tv_nsec = timeout_us % 1000000 * 1000ll};
  struct io_uring_getevents_arg argument = {.ts = timeout_us >= 0 ? (uint64_t)(uintptr_t)&time : 0};
  unsigned flags = IORING_ENTER_GETEVENTS | IORING_ENTER_EXT_ARG;
  int submitted =
      (int)syscall(SYS_io_uring_enter, io->ring_fd, io->unsubmitted, wait, flags, &argument, sizeof argument);
  if (submitted >= 0) {
    io->unsubmitted -= (uint32_t)submitted;
    return 0;
  }
  return errno == EINTR || errno == ETIME || errno == EAGAIN || errno == EBUSY ? 0 : -errno;
}

/* The next free submission entry, zeroed. Depth plus watches never exceed the ring, so there is always one. */
static struct io_uring_sqe *next_sqe(struct io *io, uint32_t *slot) {
  uint32_t tail = *io->sq_tail;
  *slot = tail & *io->sq_mask;
  struct io_uring_sqe *sqe = &io->sqes[*slot];
  memset(sqe, 0, sizeof *sqe);
  io->sq_array[*slot] = *slot;
  __atomic_store_n(io->sq_tail, tail + 1, __ATOMIC_RELEASE);
  io->unsubmitted++;
  return sqe;
}

static void prepare(struct io *io, const struct xt_io *op) {
  uint32_t slot;
  struct io_uring_sqe *sqe = next_sqe(io, &slot);
  sqe->user_data = op->tag;
  /* Not a registered file: the ring would hold it, and its lock, for a while after it is closed. */
  sqe->fd = io->fd;
  sqe->off = (uint64_t)op->offset;
  sqe->addr = (uintptr_t)op->address;
  sqe->len = (uint32_t)op->length;
  switch (op->op) {
    case XT_IO_READ: sqe->opcode = IORING_OP_READ; break;
    case XT_IO_WRITE: sqe->opcode = IORING_OP_WRITE; break;
    case XT_IO_READV: sqe->opcode = IORING_OP_READV; break;
    case XT_IO_WRITEV: sqe->opcode = IORING_OP_WRITEV; break;
    case XT_IO_FLUSH:
      sqe->opcode = IORING_OP_FSYNC;
      sqe->fsync_flags = IORING_FSYNC_DATASYNC;
      sqe->off = sqe->addr = sqe->len = 0;
      break;
    case XT_IO_DISCARD:
      sqe->opcode = IORING_OP_FALLOCATE;
      sqe->addr = (uint64_t)op->length;
      sqe->len = FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE;
      break;
    case XT_IO_DELAY: {
      uint64_t ms = (uint64_t)op->length;
      io->timespecs[slot] = (struct __kernel_timespec){.tv_sec = (int64_t)(ms / 1000),
                                                       .tv_nsec = (int64_t)(ms % 1000) * 1000000};
      sqe->opcode = IORING_OP_TIMEOUT;
      sqe->fd = -1;
      sqe->addr = (uintptr_t)&io->timespecs[slot];
      sqe->len = 1;
      sqe->off = 0;
      break;
    }
    default: sqe->opcode = IORING_OP_NOP; sqe->fd = -1; break;
  }
}

static void arm_watches(struct io *io) {
  for (uint32_t i = 0; i < io->watch_count; i++) {
    uint32_t slot;
    if (io->watches[i].armed) continue;
    struct io_uring_sqe *sqe = next_sqe(io, &slot);
    sqe->opcode = IORING_OP_POLL_ADD;
    sqe->fd = io->watches[i].fd;
    sqe->poll32_events = POLLIN;
    sqe->user_data = WATCH_BIT | i;
    io->watches[i].armed = 1;
  }
}

static uint32_t reap(struct io *io, struct xt_io_done *done, uint32_t max) {
  uint32_t head = *io->cq_head, tail = __atomic_load_n(io->cq_tail, __ATOMIC_ACQUIRE), count = 0;
  for (; head != tail && count < max; head++) {
    const struct io_uring_cqe *cqe = &io->cqes[head & *io->cq_mask];
    uint32_t tag = (uint32_t)cqe->user_data;
    int32_t result = cqe->res;
    if (tag == CANCEL_TAG) continue;
    if (tag & WATCH_BIT) {
      struct watch *watch = &io->watches[tag & ~WATCH_BIT];
      watch->armed = 0;
      if (result != -ECANCELED) done[count++] = (struct xt_io_done){watch->tag, result};
      continue;
    }
    io->in_flight--;
    done[count++] = (struct xt_io_done){tag, result == -ETIME ? 0 : result};
  }
  __atomic_store_n(io->cq_head, head, __ATOMIC_RELEASE);
  return count;
}

/*
 * A read alone that finds its data in memory: io_uring does that at once, too, but takes longer for it. Where the
 * file system cannot say that it would have to wait, it is io_uring's.
 */
static int read_at_once(struct io *io, const struct xt_io *op) {
  if (!io->buffered_file) return 0;
  if (io->cold_reads) {
    io->cold_reads--;
    return 0;
  }
  struct iovec whole = {(void *)(uintptr_t)op->address, (size_t)op->length};
  int one = op->op == XT_IO_READ;
  ssize_t got = io_preadv2(io->fd, one ? &whole : whole.iov_base, one ? 1 : (int)op->length, (off_t)op->offset,
                           io->nowait_flag);
  if (got >= 0) io_finish(io, op->tag, got);
  else io->cold_reads = COLD_READS;
  return got >= 0;
}

static int is_read(uint32_t op) { return op == XT_IO_READ || op == XT_IO_READV; }
static int is_discard(uint32_t op) { return op == XT_IO_DISCARD || op == XT_IO_SECURE_DISCARD; }
static int is_write(uint32_t op) { return op == XT_IO_WRITE || op == XT_IO_WRITEV; }

/*
 * A write into a file's page cache: io_uring would hand it to a kernel thread, one at a time for each file, which
 * costs more than the write. So it is done at once, until one had to wait (memory is full of what is not
 * written back): then the kernel's threads shall wait for a while, and this one go on.
 */
static int write_at_once(struct io *io, const struct xt_io *op) {
  if (!io->buffered_file) return 0;
  if (io->slow_writes) {
    io->slow_writes--;
    return 0;
  }
  int64_t begin = coarse_us();
  io_finish(io, op->tag, io_perform(io, op));
  if (coarse_us() - begin >= SLOW_WRITE_US) io->slow_writes = SLOW_WRITES;
  return 1;
}

int32_t io_uring_run(struct io *io, const struct xt_io *ops, uint32_t count, uint32_t wait, int32_t timeout_us,
                     struct xt_io_done *done, uint32_t max) {
  arm_watches(io);
  for (uint32_t i = 0; i < count; i++) {
    if (io->is_block_device && is_discard(ops[i].op)) {
      io_finish(io, ops[i].tag, io_discard_block_device(io, &ops[i]));
    } else if (ops[i].op == XT_IO_SECURE_DISCARD) {
      io_finish(io, ops[i].tag, -EOPNOTSUPP);
    } else if (!(is_write(ops[i].op) && write_at_once(io, &ops[i])) &&
               !(count == 1 && is_read(ops[i].op) && read_at_once(io, &ops[i]))) {
      prepare(io, &ops[i]);
      io->in_flight++;
    }
  }
  uint32_t got = io_take_ready(io, done, max);
  got += reap(io, done + got, max - got);
  /* What one enter does not take (a completion queue that is full) goes with the next run. */
  if (io->unsubmitted || got < wait) {
    int32_t error = uring_enter(io, got < wait ? wait - got : 0, timeout_us);
    if (error) return error;
    got += reap(io, done + got, max - got);
  }
  return (int32_t)got;
}

void io_uring_unmap(struct io *io) {
  if (io->sqes) munmap(io->sqes, io->sqe_bytes);
  if (io->cq_memory && io->cq_memory != io->sq_memory) munmap(io->cq_memory, io->cq_bytes);
  if (io->sq_memory) munmap(io->sq_memory, io->sq_bytes);
  if (io->ring_fd >= 0) close(io->ring_fd);
}

static void *map_ring(struct io *io, size_t bytes, uint64_t offset) {
  void *memory = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_POPULATE, io->ring_fd, (off_t)offset);
  return memory == MAP_FAILED ? NULL : memory;
}

int32_t io_uring_open(struct io *io) {
  /* The best flags first: completions run only when we ask, in our thread (Linux 6.1). */
  static const uint32_t flag_sets[] = {
      IORING_SETUP_SINGLE_ISSUER | (1u << 13) /* IORING_SETUP_DEFER_TASKRUN */ | IORING_SETUP_CLAMP,
      IORING_SETUP_CLAMP};
  struct io_uring_params parameters;
  io->buffered_file = !io->is_block_device && !(fcntl(io->fd, F_GETFL) & O_DIRECT);
  /* A tmpfs does not know the flag, and needs none: what it has is in memory. */
  struct statfs file_system;
  io->nowait_flag = fstatfs(io->fd, &file_system) == 0 && file_system.f_type == TMPFS_MAGIC ? 0 : RWF_NOWAIT;
  for (size_t i = 0; i < sizeof flag_sets / sizeof *flag_sets && io->ring_fd < 0; i++) {
    memset(&parameters, 0, sizeof parameters);
    parameters.flags = flag_sets[i];
    io->ring_fd = (int)syscall(SYS_io_uring_setup, io->depth + 2 * MAX_WATCHES, &parameters);
    if (io->ring_fd < 0 && errno != EINVAL) break;
  }
  if (io->ring_fd < 0) return -errno;
  if (!(parameters.features & IORING_FEAT_EXT_ARG) || !(parameters.features & IORING_FEAT_NODROP)) return -ENOSYS;
  io->sq_bytes = parameters.sq_off.array + parameters.sq_entries * sizeof(uint32_t);
  io->cq_bytes = parameters.cq_off.cqes + parameters.cq_entries * sizeof(struct io_uring_cqe);
  io->sqe_bytes = parameters.sq_entries * sizeof(struct io_uring_sqe);
  io->sq_memory = map_ring(io, io->sq_bytes, IORING_OFF_SQ_RING);
  io->cq_memory = map_ring(io, io->cq_bytes, IORING_OFF_CQ_RING);
  io->sqes = map_ring(io, io->sqe_bytes, IORING_OFF_SQES);
  io->timespecs = calloc(parameters.sq_entries, sizeof *io->timespecs);
  if (!io->sq_memory || !io->cq_memory || !io->sqes || !io->timespecs) return -ENOMEM;
  uint8_t *sq = io->sq_memory, *cq = io->cq_memory;
  io->sq_tail = (uint32_t *)(sq + parameters.sq_off.tail);
  io->sq_mask = (uint32_t *)(sq + parameters.sq_off.ring_mask);
  io->sq_array = (uint32_t *)(sq + parameters.sq_off.array);
  io->cq_head = (uint32_t *)(cq + parameters.cq_off.head);
  io->cq_tail = (uint32_t *)(cq + parameters.cq_off.tail);
  io->cq_mask = (uint32_t *)(cq + parameters.cq_off.ring_mask);
  io->cqes = (struct io_uring_cqe *)(cq + parameters.cq_off.cqes);
  return 0;
}

/* A poll left armed would keep its file open for a while after the ring is closed. */
static void cancel_watches(struct io *io) {
  struct xt_io_done done[MAX_WATCHES];
  uint32_t armed = 0, slot;
  for (uint32_t i = 0; i < io->watch_count; i++) {
    if (!io->watches[i].armed) continue;
    struct io_uring_sqe *sqe = next_sqe(io, &slot);
    sqe->opcode = IORING_OP_POLL_REMOVE;
    sqe->addr = WATCH_BIT | i;
    sqe->user_data = CANCEL_TAG;
    armed++;
  }
  for (int tries = 0; armed && tries < 1000; tries++) {
    if (uring_enter(io, 1, 10)) return;
    reap(io, done, MAX_WATCHES);
    armed = 0;
    for (uint32_t i = 0; i < io->watch_count; i++) armed += (uint32_t)io->watches[i].armed;
  }
}

void io_uring_drain(struct io *io) {
  struct xt_io_done done[64];
  uint32_t watches = io->watch_count;
  io->watch_count = 0; /* no new polls while what is in flight ends */
  while (io->in_flight)
    if (uring_enter(io, 1, -1) || (reap(io, done, 64), 0)) break;
  io->watch_count = watches;
  cancel_watches(io);
}
