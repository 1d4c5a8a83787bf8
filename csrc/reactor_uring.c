/* The reactor on io_uring. It uses raw system calls because it needs only a small part of the interface. */
#define _GNU_SOURCE
#include "reactor.h"

#include <errno.h>
#include <linux/falloc.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>

/* A completion's user_data is an operation's tag, a watch's place and generation, or NOBODY if nobody is interested. */
#define WATCH_BIT (1ull << 31)
#define NOBODY UINT64_MAX

/* After this many calls, descriptors are looked at even if operations were always done at once. */
enum { UNLOOKED_MAX = 64 };

static uint64_t watch_data(const struct reactor *reactor, uint32_t place) {
  return (uint64_t)reactor->watches[place].generation << 32 | WATCH_BIT | place;
}

static int enter(struct uring *uring, uint32_t wait, int32_t timeout_us) {
  uring->unlooked = 0;
  struct __kernel_timespec time = {.tv_sec = timeout_us / 1000000, .tv_nsec = timeout_us % 1000000 * 1000ll};
  struct io_uring_getevents_arg argument = {.ts = timeout_us >= 0 ? (uint64_t)(uintptr_t)&time : 0};
  unsigned flags = IORING_ENTER_GETEVENTS | IORING_ENTER_EXT_ARG;
  int submitted =
      (int)syscall(SYS_io_uring_enter, uring->fd, uring->unsubmitted, wait, flags, &argument, sizeof argument);
  if (submitted >= 0) {
    uring->unsubmitted -= (uint32_t)submitted;
    return 0;
  }
  return errno == EINTR || errno == ETIME || errno == EAGAIN || errno == EBUSY ? 0 : -errno;
}

/* The next free submission entry, zeroed. There is always one: the ring holds the depth plus two entries per watch. */
static struct io_uring_sqe *next_sqe(struct uring *uring) {
  uint32_t tail = *uring->sq_tail, slot = tail & *uring->sq_mask;
  struct io_uring_sqe *sqe = &uring->sqes[slot];
  memset(sqe, 0, sizeof *sqe);
  uring->sq_array[slot] = slot;
  __atomic_store_n(uring->sq_tail, tail + 1, __ATOMIC_RELEASE);
  uring->unsubmitted++;
  return sqe;
}

static void prepare(struct uring *uring, const struct file *file, const struct xt_io *op) {
  struct io_uring_sqe *sqe = next_sqe(uring);
  sqe->user_data = op->tag;
  /* Not a registered file: the ring would keep it open, and locked, for a while after we close it. */
  sqe->fd = file->fd;
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
    default: /* XT_IO_DISCARD of a file */
      sqe->opcode = IORING_OP_FALLOCATE;
      sqe->addr = (uint64_t)op->length;
      sqe->len = FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE;
      break;
  }
}

void uring_start(struct reactor *reactor, const struct xt_io *ops, uint32_t count, int is_patient) {
  enum company company = count > 1 ? WITH_OTHERS : is_patient && reactor->in_flight == 0 ? NOTHING_ELSE_COMES : ALONE;
  for (uint32_t i = 0; i < count; i++) {
    struct file *file = &reactor->files[ops[i].file];
    int64_t result;
    int for_kernel = ops[i].op <= XT_IO_WRITEV && !(is_discard(ops[i].op) && file->is_block_device) &&
                     ops[i].op != XT_IO_SECURE_DISCARD;
    if (!for_kernel) {
      reactor_finish(reactor, ops[i].tag, file_perform(file, &ops[i]));
    } else if (file_did_at_once(file, &ops[i], company, &result)) {
      reactor_finish(reactor, ops[i].tag, result);
    } else {
      int is_threads = file->is_written_by_threads && is_write(ops[i].op) &&
                       write_threads_add(reactor->write_threads, file, &ops[i]);
      if (!is_threads) prepare(&reactor->uring, file, &ops[i]);
      reactor->in_flight++;
    }
  }
  if (reactor->write_threads) write_threads_begin(reactor->write_threads);
}

/* The removed poll's completion is ignored because it carries an older generation. */
static void disarm(struct reactor *reactor, uint32_t place) {
  struct io_uring_sqe *sqe = next_sqe(&reactor->uring);
  sqe->opcode = IORING_OP_POLL_REMOVE;
  sqe->addr = watch_data(reactor, place);
  sqe->user_data = NOBODY;
  reactor->watches[place].armed = 0;
  reactor->watches[place].generation++;
}

static void arm(struct reactor *reactor, uint32_t place) {
  struct watch *watch = &reactor->watches[place];
  struct io_uring_sqe *sqe = next_sqe(&reactor->uring);
  sqe->opcode = IORING_OP_POLL_ADD;
  sqe->fd = watch->fd;
  sqe->poll32_events = watch->armed = watch->events;
  sqe->user_data = watch_data(reactor, place);
  reactor->uring.polls++;
}

static void update_watches(struct reactor *reactor) {
  for (uint32_t i = 0; i < reactor->watch_count; i++) {
    struct watch *watch = &reactor->watches[i];
    if (watch->armed == watch->events) continue;
    if (watch->armed) disarm(reactor, i);
    if (watch->events) arm(reactor, i);
  }
}

static uint32_t reap(struct reactor *reactor, struct xt_io_done *done, uint32_t max) {
  struct uring *uring = &reactor->uring;
  uint32_t head = *uring->cq_head, tail = __atomic_load_n(uring->cq_tail, __ATOMIC_ACQUIRE), count = 0;
  for (; head != tail && count < max; head++) {
    const struct io_uring_cqe *cqe = &uring->cqes[head & *uring->cq_mask];
    if (cqe->user_data == NOBODY) continue;
    if (cqe->user_data & WATCH_BIT) {
      uring->polls--;
      uint32_t place = (uint32_t)cqe->user_data & (uint32_t)~WATCH_BIT;
      struct watch *watch = &reactor->watches[place];
      if (cqe->user_data != watch_data(reactor, place)) continue;
      watch->armed = 0;
      if (watch->tag == WRITE_THREADS_TAG) {
        eventfd_t ends;
        eventfd_read(watch->fd, &ends);
        continue;
      }
      done[count++] = (struct xt_io_done){watch->tag, cqe->res};
      continue;
    }
    reactor->in_flight--;
    done[count++] = (struct xt_io_done){(uint32_t)cqe->user_data, cqe->res};
  }
  __atomic_store_n(uring->cq_head, head, __ATOMIC_RELEASE);
  return count;
}

/* Ends that can be taken now, of the kernel's operations and the threads'. */
static uint32_t take_ends(struct reactor *reactor, struct xt_io_done *done, uint32_t max) {
  uint32_t got = reap(reactor, done, max);
  if (!reactor->write_threads) return got;
  uint32_t written = write_threads_take(reactor->write_threads, done + got, max - got);
  reactor->in_flight -= written;
  return got + written;
}

/*
 * Of `wanted` ends, those to wait for in the ring, which brings the kernel's, and one for all that the threads were
 * asked for: a share of them like that of the threads in what is in flight.
 */
static uint32_t wanted_of_ring(struct reactor *reactor, uint32_t wanted) {
  struct write_threads *threads = reactor->write_threads;
  uint32_t written = threads ? write_threads_in_flight(threads) : 0;
  if (wanted == 0 || written == 0) return wanted;
  uint32_t share = wanted * written / reactor->in_flight;
  if (write_threads_await(threads, share > 0 ? share : 1)) return 0;
  return share < wanted ? wanted - share : 1;
}

int32_t uring_wait(struct reactor *reactor, uint32_t ready, uint32_t wait, int32_t timeout_us, struct xt_io_done *done,
                   uint32_t max) {
  struct uring *uring = &reactor->uring;
  /* Only the kernel can tell of events, but a caller that has what it wants need not ask it each time. */
  int must_look = ++uring->unlooked > UNLOOKED_MAX;
  if (ready > 0 && ready >= wait && reactor->in_flight == 0 && !must_look) return 0;
  update_watches(reactor);
  uint32_t got = take_ends(reactor, done, max);
  /* Entries that one enter does not take (because the completion queue is full) are submitted with the next wait. */
  if (uring->unsubmitted || ready + got < wait || must_look) {
    uint32_t more = ready + got < wait ? wait - ready - got : 0;
    int32_t error = enter(uring, wanted_of_ring(reactor, more), timeout_us);
    if (reactor->write_threads) write_threads_woke(reactor->write_threads);
    if (error) return error;
    got += take_ends(reactor, done + got, max - got);
  }
  return (int32_t)got;
}

void uring_unmap(struct reactor *reactor) {
  struct uring *uring = &reactor->uring;
  if (uring->sqes) munmap(uring->sqes, uring->sqe_bytes);
  if (uring->cq_memory) munmap(uring->cq_memory, uring->cq_bytes);
  if (uring->sq_memory) munmap(uring->sq_memory, uring->sq_bytes);
  if (uring->fd >= 0) close(uring->fd);
}

static void *map_ring(const struct uring *uring, size_t bytes, uint64_t offset) {
  void *memory = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_POPULATE, uring->fd, (off_t)offset);
  return memory == MAP_FAILED ? NULL : memory;
}

/* Everything that `prepare`, `arm` and `disarm` submit. */
static const uint8_t OPCODES[] = {IORING_OP_READ,  IORING_OP_WRITE,     IORING_OP_READV,    IORING_OP_WRITEV,
                                  IORING_OP_FSYNC, IORING_OP_FALLOCATE, IORING_OP_POLL_ADD, IORING_OP_POLL_REMOVE};

/*
 * Seccomp does not see what is asked for through a ring, so the ring itself refuses all other operations, such as
 * opening files and connecting, and whatever could be registered with it. It was created disabled.
 */
static int32_t enable_for_our_opcodes(const struct uring *uring) {
  struct io_uring_restriction ours[sizeof OPCODES];
  memset(ours, 0, sizeof ours);
  for (size_t i = 0; i < sizeof OPCODES; i++) {
    ours[i].opcode = IORING_RESTRICTION_SQE_OP;
    ours[i].sqe_op = OPCODES[i];
  }
  if (syscall(SYS_io_uring_register, uring->fd, IORING_REGISTER_RESTRICTIONS, ours, sizeof OPCODES)) return -errno;
  return syscall(SYS_io_uring_register, uring->fd, IORING_REGISTER_ENABLE_RINGS, NULL, 0) ? -errno : 0;
}

int32_t uring_open(struct reactor *reactor) {
  /* The best flags come first: completions run only when we ask for them, in our own thread (Linux 6.1). */
  static const uint32_t flag_sets[] = {
      IORING_SETUP_SINGLE_ISSUER | (1u << 13) /* IORING_SETUP_DEFER_TASKRUN */ | IORING_SETUP_CLAMP |
          IORING_SETUP_R_DISABLED,
      IORING_SETUP_CLAMP | IORING_SETUP_R_DISABLED};
  struct uring *uring = &reactor->uring;
  struct io_uring_params parameters;
  for (size_t i = 0; i < sizeof flag_sets / sizeof *flag_sets && uring->fd < 0; i++) {
    memset(&parameters, 0, sizeof parameters);
    parameters.flags = flag_sets[i];
    uring->fd = (int)syscall(SYS_io_uring_setup, reactor->depth + 2 * (reactor->max_watches + 1), &parameters);
    if (uring->fd < 0 && errno != EINVAL) break;
  }
  if (uring->fd < 0) return -errno;
  if (!(parameters.features & IORING_FEAT_EXT_ARG) || !(parameters.features & IORING_FEAT_NODROP)) return -ENOSYS;
  uring->sq_bytes = parameters.sq_off.array + parameters.sq_entries * sizeof(uint32_t);
  uring->cq_bytes = parameters.cq_off.cqes + parameters.cq_entries * sizeof(struct io_uring_cqe);
  uring->sqe_bytes = parameters.sq_entries * sizeof(struct io_uring_sqe);
  uring->sq_memory = map_ring(uring, uring->sq_bytes, IORING_OFF_SQ_RING);
  uring->cq_memory = map_ring(uring, uring->cq_bytes, IORING_OFF_CQ_RING);
  uring->sqes = map_ring(uring, uring->sqe_bytes, IORING_OFF_SQES);
  if (!uring->sq_memory || !uring->cq_memory || !uring->sqes) return -ENOMEM;
  int32_t error = enable_for_our_opcodes(uring);
  if (error) return error;
  uint8_t *sq = uring->sq_memory, *cq = uring->cq_memory;
  uring->sq_tail = (uint32_t *)(sq + parameters.sq_off.tail);
  uring->sq_mask = (uint32_t *)(sq + parameters.sq_off.ring_mask);
  uring->sq_array = (uint32_t *)(sq + parameters.sq_off.array);
  uring->cq_head = (uint32_t *)(cq + parameters.cq_off.head);
  uring->cq_tail = (uint32_t *)(cq + parameters.cq_off.tail);
  uring->cq_mask = (uint32_t *)(cq + parameters.cq_off.ring_mask);
  uring->cqes = (struct io_uring_cqe *)(cq + parameters.cq_off.cqes);
  return 0;
}

/* A poll left armed would keep its file open for a while after the ring is closed. */
static void cancel_watches(struct reactor *reactor) {
  for (uint32_t i = 0; i < reactor->watch_count; i++)
    if (reactor->watches[i].armed) disarm(reactor, i);
  struct xt_io_done done[64];
  for (int tries = 0; reactor->uring.polls && tries < 1000; tries++) {
    if (enter(&reactor->uring, 1, 10)) return;
    reap(reactor, done, 64);
  }
}

void uring_drain(struct reactor *reactor) {
  struct xt_io_done done[64];
  /* The threads end what they have when they are closed. */
  uint32_t written = reactor->write_threads ? write_threads_in_flight(reactor->write_threads) : 0;
  while (reactor->in_flight > written)
    if (enter(&reactor->uring, 1, -1) || (reap(reactor, done, 64), 0)) break;
  cancel_watches(reactor);
}
