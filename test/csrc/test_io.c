/* Block I/O: both engines do the same to a file, and both wait for the same things. */
#define _GNU_SOURCE
#include "check.h"
#include "xentool.h"

#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/uio.h>

enum { BLOCK = 4096, BLOCKS = 16 };

static int fd;
static uint8_t *buffer;

static struct xt_io operation(uint32_t op, uint32_t tag, double offset, double length, const void *address) {
  return (struct xt_io){offset, length, (double)(uintptr_t)address, op, tag};
}

/* Runs one operation to its end and gives its result. */
static int32_t run_one(void *io, struct xt_io op) {
  struct xt_io_done done = {0, 0};
  CHECK_EQUAL(xt_io_run(io, &op, 1, 1, 5000000, &done, 1), 1);
  CHECK_EQUAL(done.tag, op.tag);
  return done.result;
}

static void test_read_write(void *io) {
  memset(buffer, 0x41, BLOCK);
  CHECK_EQUAL(run_one(io, operation(XT_IO_WRITE, 1, 3 * BLOCK, BLOCK, buffer)), BLOCK);
  CHECK_EQUAL(run_one(io, operation(XT_IO_FLUSH, 2, 0, 0, NULL)), 0);
  CHECK_EQUAL(run_one(io, operation(XT_IO_READ, 3, 2 * BLOCK, 2 * BLOCK, buffer + BLOCK)), 2 * BLOCK);
  CHECK_EQUAL(buffer[BLOCK], 0);
  CHECK_EQUAL(buffer[2 * BLOCK], 0x41);
  CHECK_EQUAL(run_one(io, operation(XT_IO_READ, 4, BLOCKS * BLOCK, BLOCK, buffer)), 0);
}

static void test_vectors(void *io) {
  struct iovec out[2] = {{buffer, 512}, {buffer + BLOCK, 512}}, in[2] = {{buffer + 512, 512}, {buffer + 1024, 512}};
  memset(buffer, 1, 512);
  memset(buffer + BLOCK, 2, 512);
  CHECK_EQUAL(run_one(io, operation(XT_IO_WRITEV, 1, 0, 2, out)), 1024);
  CHECK_EQUAL(run_one(io, operation(XT_IO_READV, 2, 0, 2, in)), 1024);
  CHECK_EQUAL(buffer[512], 1);
  CHECK_EQUAL(buffer[1024], 2);
}

static void test_discard(void *io) {
  memset(buffer, 3, BLOCK);
  CHECK_EQUAL(run_one(io, operation(XT_IO_WRITE, 1, 0, BLOCK, buffer)), BLOCK);
  int32_t result = run_one(io, operation(XT_IO_DISCARD, 2, 0, BLOCK, NULL));
  CHECK_EQUAL(result, 0);
  CHECK_EQUAL(run_one(io, operation(XT_IO_READ, 3, 0, BLOCK, buffer)), BLOCK);
  for (int i = 0; i < BLOCK; i++) CHECK_EQUAL(buffer[i], 0);
  CHECK(run_one(io, operation(XT_IO_SECURE_DISCARD, 4, 0, BLOCK, NULL)) < 0);
}

/* A full queue at once, every tag back exactly once. */
static void test_batch(void *io) {
  struct xt_io ops[BLOCKS];
  struct xt_io_done done[BLOCKS];
  uint32_t seen = 0, count = 0;
  for (uint32_t i = 0; i < BLOCKS; i++) {
    memset(buffer + i * BLOCK, (int)i + 1, BLOCK);
    ops[i] = operation(XT_IO_WRITE, i, (double)i * BLOCK, BLOCK, buffer + i * BLOCK);
  }
  uint32_t submit = BLOCKS;
  while (count < BLOCKS) {
    int32_t got = xt_io_run(io, ops, submit, 1, 5000000, done, BLOCKS);
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

static void test_delay_and_watch(void *io) {
  struct xt_io_done done[4];
  int32_t event = xt_eventfd();
  CHECK(event >= 0);
  CHECK_EQUAL(xt_io_watch(io, event, 77), 0);
  CHECK_EQUAL(xt_io_run(io, NULL, 0, 1, 1000, done, 4), 0);
  CHECK_EQUAL(xt_eventfd_signal(event), 0);
  CHECK_EQUAL(xt_io_run(io, NULL, 0, 1, 5000000, done, 4), 1);
  CHECK_EQUAL(done[0].tag, 77);
  CHECK(done[0].result > 0);
  CHECK_EQUAL(xt_eventfd_drain(event), 0);
  CHECK_EQUAL(run_one(io, operation(XT_IO_DELAY, 5, 0, 20, NULL)), 0);
  /* Level-triggered: it is reported again, as long as it stays readable. */
  CHECK_EQUAL(xt_eventfd_signal(event), 0);
  for (int i = 0; i < 2; i++) {
    CHECK_EQUAL(xt_io_run(io, NULL, 0, 1, 5000000, done, 4), 1);
    CHECK_EQUAL(done[0].tag, 77);
  }
  close(event);
}

static void test_engine(uint32_t engine) {
  double handle = xt_io_open(fd, BLOCKS, engine, 0);
  if (engine == XT_IO_ENGINE_URING && handle < 0) {
    /* Where io_uring is not allowed the answer must be one of these, and the other engine is used. */
    CHECK(handle == -EPERM || handle == -ENOSYS || handle == -ENOMEM);
    return;
  }
  void *io = ADDRESS(handle);
  test_read_write(io);
  test_vectors(io);
  test_discard(io);
  test_batch(io);
  test_delay_and_watch(io);
  CHECK_EQUAL(xt_io_close(io), 0);
}

int main(void) {
  fd = memfd_create("disk", MFD_CLOEXEC);
  CHECK(fd >= 0);
  buffer = ADDRESS(xt_memory_alloc(BLOCKS * BLOCK));
  for (uint32_t engine = XT_IO_ENGINE_URING; engine <= XT_IO_ENGINE_SYNC; engine++) {
    CHECK_EQUAL(ftruncate(fd, 0), 0);
    CHECK_EQUAL(ftruncate(fd, BLOCKS * BLOCK), 0);
    memset(buffer, 0, BLOCKS * BLOCK);
    test_engine(engine);
  }
  CHECK_EQUAL(xt_memory_free(buffer, BLOCKS * BLOCK), 0);
  close(fd);
  return 0;
}
