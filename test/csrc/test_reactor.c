/* The reactor: both engines do the same to a file, and both wait for the same things. */
#define _GNU_SOURCE
#include "check.h"
#include "reactor.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <sys/uio.h>

enum { BLOCK = 4096, BLOCKS = 16, WATCHES = 6 };

static int fd, is_real_time;

/* Stands in for a process with real-time priority: then threads do what is written to the disk (CMakeLists.txt). */
int __wrap_write_threads_suit(const struct file *file);
int __wrap_write_threads_suit(const struct file *file) { return is_real_time && !file->is_block_device; }
static uint8_t *buffer;

static struct xt_io operation(uint32_t op, uint32_t tag, double offset, double length, const void *address) {
  return (struct xt_io){offset, length, (double)(uintptr_t)address, op, tag, 0, 0};
}

/* Runs one operation to its end and gives its result. */
static int32_t run_one(void *reactor, struct xt_io op) {
  struct xt_io_done done = {0, 0};
  CHECK_EQUAL(xt_reactor_wait(reactor, &op, 1, 1, 5000000, 0, &done, 1), 1);
  CHECK_EQUAL(done.tag, op.tag);
  return done.result;
}

static void test_read_write(void *reactor) {
  memset(buffer, 0x41, BLOCK);
  CHECK_EQUAL(run_one(reactor, operation(XT_IO_WRITE, 1, 3 * BLOCK, BLOCK, buffer)), BLOCK);
  CHECK_EQUAL(run_one(reactor, operation(XT_IO_FLUSH, 2, 0, 0, NULL)), 0);
  CHECK_EQUAL(run_one(reactor, operation(XT_IO_READ, 3, 2 * BLOCK, 2 * BLOCK, buffer + BLOCK)), 2 * BLOCK);
  CHECK_EQUAL(buffer[BLOCK], 0);
  CHECK_EQUAL(buffer[2 * BLOCK], 0x41);
  CHECK_EQUAL(run_one(reactor, operation(XT_IO_READ, 4, BLOCKS * BLOCK, BLOCK, buffer)), 0);
}

static void test_vectors(void *reactor) {
  struct iovec out[2] = {{buffer, 512}, {buffer + BLOCK, 512}}, in[2] = {{buffer + 512, 512}, {buffer + 1024, 512}};
  memset(buffer, 1, 512);
  memset(buffer + BLOCK, 2, 512);
  CHECK_EQUAL(run_one(reactor, operation(XT_IO_WRITEV, 1, 0, 2, out)), 1024);
  CHECK_EQUAL(run_one(reactor, operation(XT_IO_READV, 2, 0, 2, in)), 1024);
  CHECK_EQUAL(buffer[512], 1);
  CHECK_EQUAL(buffer[1024], 2);
}

static void test_discard(void *reactor) {
  memset(buffer, 3, BLOCK);
  CHECK_EQUAL(run_one(reactor, operation(XT_IO_WRITE, 1, 0, BLOCK, buffer)), BLOCK);
  int32_t result = run_one(reactor, operation(XT_IO_DISCARD, 2, 0, BLOCK, NULL));
  CHECK_EQUAL(result, 0);
  CHECK_EQUAL(run_one(reactor, operation(XT_IO_READ, 3, 0, BLOCK, buffer)), BLOCK);
  for (int i = 0; i < BLOCK; i++) CHECK_EQUAL(buffer[i], 0);
  CHECK(run_one(reactor, operation(XT_IO_SECURE_DISCARD, 4, 0, BLOCK, NULL)) < 0);
}

/* A full queue at once, every tag back exactly once. */
static void test_batch(void *reactor) {
  struct xt_io ops[BLOCKS];
  struct xt_io_done done[BLOCKS];
  uint32_t seen = 0, count = 0;
  for (uint32_t i = 0; i < BLOCKS; i++) {
    memset(buffer + i * BLOCK, (int)i + 1, BLOCK);
    ops[i] = operation(XT_IO_WRITE, i, (double)i * BLOCK, BLOCK, buffer + i * BLOCK);
  }
  uint32_t submit = BLOCKS;
  while (count < BLOCKS) {
    int32_t got = xt_reactor_wait(reactor, ops, submit, 1, 5000000, 0, done, BLOCKS);
    CHECK(got > 0);
    submit = 0;
    for (int32_t i = 0; i < got; i++) {
      CHECK_EQUAL(done[i].result, BLOCK);
      CHECK(!(seen & (1u << done[i].tag)));
      seen |= 1u << done[i].tag;
    }
    count += (uint32_t)got;
  }
  CHECK_EQUAL(seen, (1u << BLOCKS) - 1);
  uint8_t byte;
  CHECK_EQUAL(pread(fd, &byte, 1, 9 * BLOCK + 17), 1);
  CHECK_EQUAL(byte, 10);
}

static void test_watch(void *reactor) {
  struct xt_io_done done[4];
  int32_t event = xt_eventfd();
  CHECK(event >= 0);
  int32_t place = xt_reactor_watch(reactor, event, POLLIN, 77);
  CHECK(place >= 0);
  uint32_t watch = (uint32_t)place;
  CHECK_EQUAL(xt_reactor_wait(reactor, NULL, 0, 1, 1000, 0, done, 4), 0);
  CHECK_EQUAL(xt_eventfd_signal(event), 0);
  /* Level-triggered: it is reported again, as long as it stays readable. */
  for (int i = 0; i < 2; i++) {
    CHECK_EQUAL(xt_reactor_wait(reactor, NULL, 0, 1, 5000000, 0, done, 4), 1);
    CHECK_EQUAL(done[0].tag, 77);
    CHECK_EQUAL(done[0].result, POLLIN);
  }
  /* Writable, too; then nothing at all, though both are so. */
  CHECK_EQUAL(xt_reactor_rewatch(reactor, watch, POLLIN | POLLOUT), 0);
  CHECK_EQUAL(xt_reactor_wait(reactor, NULL, 0, 1, 5000000, 0, done, 4), 1);
  CHECK_EQUAL(done[0].result, POLLIN | POLLOUT);
  CHECK_EQUAL(xt_reactor_rewatch(reactor, watch, 0), 0);
  CHECK_EQUAL(xt_reactor_wait(reactor, NULL, 0, 1, 1000, 0, done, 4), 0);
  CHECK_EQUAL(xt_reactor_rewatch(reactor, watch, POLLIN), 0);
  CHECK_EQUAL(xt_reactor_wait(reactor, NULL, 0, 1, 5000000, 0, done, 4), 1);
  CHECK_EQUAL(xt_reactor_unwatch(reactor, watch), 0);
  CHECK_EQUAL(xt_reactor_unwatch(reactor, watch), -EINVAL);
  CHECK_EQUAL(xt_reactor_rewatch(reactor, 9, POLLIN), -EINVAL);
  CHECK_EQUAL(xt_reactor_wait(reactor, NULL, 0, 1, 1000, 0, done, 4), 0);
  close(event);
}

/* A pipe whose reading end is watched and forgotten a thousand times: its writer learns that nobody reads. */
static void test_unwatched_is_closed(void *reactor) {
  struct xt_io_done done[4];
  for (int i = 0; i < 1000; i++) {
    int32_t fds[2];
    CHECK_EQUAL(xt_stream_pipe(fds), 0);
    int32_t place = xt_reactor_watch(reactor, fds[0], POLLIN, 5);
    CHECK(place >= 0);
    CHECK_EQUAL(xt_reactor_wait(reactor, NULL, 0, 0, 0, 0, done, 4), 0);
    CHECK_EQUAL(xt_reactor_unwatch(reactor, (uint32_t)place), 0);
    close(fds[0]);
    struct pollfd broken = {.fd = fds[1], .events = 0};
    for (int tries = 0; tries < 100 && !(broken.revents & POLLERR); tries++) {
      CHECK_EQUAL(xt_reactor_wait(reactor, NULL, 0, 1, 1000, 0, done, 4), 0);
      CHECK(poll(&broken, 1, 0) >= 0);
    }
    CHECK(broken.revents & POLLERR);
    close(fds[1]);
  }
}

/* As many watches as there is room for, all ready at once, beside an operation. */
static void test_many_watches(void *reactor) {
  struct xt_io_done done[WATCHES + 1];
  int32_t events[WATCHES], places[WATCHES];
  for (uint32_t i = 0; i < WATCHES; i++) {
    events[i] = xt_eventfd();
    CHECK((places[i] = xt_reactor_watch(reactor, events[i], POLLIN, 100 + i)) >= 0);
    CHECK_EQUAL(xt_eventfd_signal(events[i]), 0);
  }
  CHECK_EQUAL(xt_reactor_watch(reactor, events[0], POLLIN, 1), -ENOSPC);
  uint32_t seen = 0;
  int is_read = 0;
  struct xt_io op = operation(XT_IO_READ, 3, 0, BLOCK, buffer);
  for (uint32_t submit = 1; !is_read || seen != (1u << WATCHES) - 1; submit = 0) {
    int32_t got = xt_reactor_wait(reactor, &op, submit, 1, 5000000, 0, done, WATCHES + 1);
    CHECK(got > 0);
    for (int32_t i = 0; i < got; i++) {
      if (done[i].tag == 3) is_read = 1;
      else seen |= 1u << (done[i].tag - 100);
    }
  }
  for (uint32_t i = 0; i < WATCHES; i++) {
    CHECK_EQUAL(xt_reactor_unwatch(reactor, (uint32_t)places[i]), 0);
    close(events[i]);
  }
  CHECK_EQUAL(xt_reactor_wait(reactor, NULL, 0, 1, 1000, 0, done, WATCHES + 1), 0);
}

/* Who waits for more than there is gets all there is, and an event where there are no operations. */
static void test_waits_for_several(void *reactor) {
  struct xt_io ops[BLOCKS];
  struct xt_io_done done[BLOCKS + 1];
  for (uint32_t i = 0; i < BLOCKS; i++) ops[i] = operation(XT_IO_READ, i, (double)i * BLOCK, BLOCK, buffer + i * BLOCK);
  CHECK_EQUAL(xt_reactor_wait(reactor, ops, BLOCKS, BLOCKS + 7, 5000000, 0, done, BLOCKS), BLOCKS);
  int32_t event = xt_eventfd(), place = xt_reactor_watch(reactor, event, POLLIN, 77);
  CHECK(event >= 0 && place >= 0);
  CHECK_EQUAL(xt_eventfd_signal(event), 0);
  CHECK_EQUAL(xt_reactor_wait(reactor, NULL, 0, BLOCKS, -1, 0, done, BLOCKS + 1), 1);
  CHECK_EQUAL(done[0].tag, 77);
  CHECK_EQUAL(xt_reactor_unwatch(reactor, (uint32_t)place), 0);
  close(event);
}

/* Reads and writes at a time, all waited for: every tag comes back once. */
static void test_reads_beside_writes(void *reactor) {
  struct xt_io ops[BLOCKS];
  struct xt_io_done done[BLOCKS];
  for (uint32_t first = 0; first < BLOCKS; first++) {
    uint32_t seen = 0;
    for (uint32_t i = 0; i < BLOCKS; i++)
      ops[i] = operation(i < first ? XT_IO_WRITE : XT_IO_READ, i, (double)i * BLOCK, BLOCK, buffer + i * BLOCK);
    for (uint32_t submit = BLOCKS; seen != (1u << BLOCKS) - 1; submit = 0) {
      int32_t got = xt_reactor_wait(reactor, ops, submit, BLOCKS, -1, 0, done, BLOCKS);
      CHECK(got >= 0);
      for (int32_t i = 0; i < got; i++) {
        CHECK_EQUAL(done[i].result, BLOCK);
        CHECK(!(seen & 1u << done[i].tag));
        seen |= 1u << done[i].tag;
      }
    }
  }
}

/* What was started is written, whoever waits for it. */
static void test_close(void *reactor) {
  struct xt_io ops[BLOCKS];
  struct xt_io_done done[BLOCKS];
  memset(buffer, 0x5a, BLOCKS * BLOCK);
  for (uint32_t i = 0; i < BLOCKS; i++)
    ops[i] = operation(XT_IO_WRITE, i, (double)i * BLOCK, BLOCK, buffer + i * BLOCK);
  CHECK(xt_reactor_wait(reactor, ops, BLOCKS, 0, 0, 0, done, BLOCKS) >= 0);
  CHECK_EQUAL(xt_reactor_close(reactor), 0);
  for (uint32_t i = 0; i < BLOCKS; i++) {
    uint8_t byte = 0;
    CHECK_EQUAL(pread(fd, &byte, 1, i * BLOCK + 99), 1);
    CHECK_EQUAL(byte, 0x5a);
  }
}

/* Operations that are always done at once do not keep an event from being seen. */
static void test_watch_beside_what_is_at_once(void *reactor) {
  struct xt_io_done done[4];
  int32_t event = xt_eventfd(), place = xt_reactor_watch(reactor, event, POLLIN, 77);
  CHECK(event >= 0 && place >= 0);
  for (int round = 0; round < 3; round++) {
    CHECK_EQUAL(xt_eventfd_signal(event), 0);
    int is_seen = 0;
    for (int calls = 0; !is_seen; calls++) {
      CHECK(calls < 200);
      struct xt_io op = operation(XT_IO_WRITE, 1, 0, BLOCK, buffer);
      int32_t got = xt_reactor_wait(reactor, &op, 1, 1, 5000000, 1, done, 4);
      for (int32_t i = 0; i < got; i++) is_seen |= done[i].tag == 77;
    }
    xt_eventfd_drain(event);
    while (xt_reactor_wait(reactor, NULL, 0, 1, 1000, 0, done, 4) > 0) {}
  }
  CHECK_EQUAL(xt_reactor_unwatch(reactor, (uint32_t)place), 0);
  close(event);
}

static void test_files(void *reactor) {
  int other = memfd_create("other", MFD_CLOEXEC);
  CHECK_EQUAL(pwrite(other, "other", 5, 0), 5);
  CHECK_EQUAL(xt_reactor_add_file(reactor, other, 0), 1);
  struct xt_io op = operation(XT_IO_READ, 6, 0, 5, buffer);
  op.file = 1;
  CHECK_EQUAL(run_one(reactor, op), 5);
  CHECK_EQUAL(memcmp(buffer, "other", 5), 0);
  op.file = 2;
  struct xt_io_done done;
  CHECK_EQUAL(xt_reactor_wait(reactor, &op, 1, 1, 1000, 0, &done, 1), -EBADF);
  op.op = XT_IO_WRITEV + 1;
  op.file = 1;
  CHECK_EQUAL(run_one(reactor, op), -EINVAL);
  close(other);
}

/* A ring takes the operations of a disk and no others, whoever writes them into it. */
static void test_ring_refuses(struct reactor *reactor) {
  struct uring *uring = &reactor->uring;
  struct io_uring_cqe *cqe = &uring->cqes[*uring->cq_head & *uring->cq_mask];
  uint32_t tail = *uring->sq_tail, slot = tail & *uring->sq_mask;
  uring->sqes[slot] = (struct io_uring_sqe){.opcode = IORING_OP_OPENAT, .fd = AT_FDCWD, .user_data = 7};
  uring->sqes[slot].addr = (uintptr_t)"/dev/null";
  uring->sq_array[slot] = slot;
  __atomic_store_n(uring->sq_tail, tail + 1, __ATOMIC_RELEASE);
  CHECK_EQUAL(syscall(SYS_io_uring_enter, uring->fd, 1, 1, IORING_ENTER_GETEVENTS, NULL, 0), 1);
  CHECK_EQUAL(cqe->user_data, 7);
  CHECK_EQUAL(cqe->res, -EACCES);
  ++*uring->cq_head;
  CHECK_EQUAL(syscall(SYS_io_uring_register, uring->fd, IORING_UNREGISTER_FILES, NULL, 0), -1);
  CHECK_EQUAL(errno, EACCES);
}

static void test_engine(uint32_t engine) {
  double handle = xt_reactor_open(BLOCKS, WATCHES, engine);
  if (engine == XT_ENGINE_URING && handle < 0) {
    /* Where io_uring is not allowed the answer must be one of these, and the other engine is used. */
    CHECK(handle == -EPERM || handle == -ENOSYS || handle == -ENOMEM);
    return;
  }
  void *reactor = ADDRESS(handle);
  CHECK_EQUAL(xt_reactor_add_file(reactor, fd, 0), 0);
  struct file *file = &((struct reactor *)reactor)->files[0];
  CHECK_EQUAL(file->is_written_by_threads, engine == XT_ENGINE_URING && is_real_time);
  /* As if it were open for direct I/O, which not every kernel does in memory. */
  if (is_real_time) file->is_buffered = 0;
  test_read_write(reactor);
  test_vectors(reactor);
  test_discard(reactor);
  test_batch(reactor);
  test_watch(reactor);
  test_unwatched_is_closed(reactor);
  test_many_watches(reactor);
  test_waits_for_several(reactor);
  test_reads_beside_writes(reactor);
  test_watch_beside_what_is_at_once(reactor);
  test_files(reactor);
  if (engine == XT_ENGINE_URING) test_ring_refuses(reactor);
  test_close(reactor);
}

int main(void) {
  fd = memfd_create("disk", MFD_CLOEXEC);
  CHECK(fd >= 0);
  buffer = ADDRESS(xt_memory_alloc(BLOCKS * BLOCK));
  for (is_real_time = 0; is_real_time <= 1; is_real_time++)
    for (uint32_t engine = XT_ENGINE_URING; engine <= XT_ENGINE_POLL; engine++) {
      CHECK_EQUAL(ftruncate(fd, 0), 0);
      CHECK_EQUAL(ftruncate(fd, BLOCKS * BLOCK), 0);
      memset(buffer, 0, BLOCKS * BLOCK);
      test_engine(engine);
    }
  CHECK_EQUAL(xt_memory_free(buffer, BLOCKS * BLOCK), 0);
  close(fd);
  return 0;
}
