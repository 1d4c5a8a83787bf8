/*
 * What file_at_once.c does at once must not make a guest wait: after a transfer that took long, or a read that found
 * nothing in memory, the kernel's threads do the next ones, and later it is tried again. The linker puts the
 * functions below in the place of those that would wait (CMakeLists.txt), so that storage is slow exactly when
 * this test says so, and by a clock of its own.
 */
#define _GNU_SOURCE
#include "check.h"
#include "file_io.h"

#include <errno.h>
#include <string.h>
#include <sys/mman.h>

enum { BLOCK = 4096, BLOCKS = 4, LONG_US = 20000, AFTER_SLOW = 256, AFTER_COLD = 32 };

/* The same file twice: as a file that the kernel buffers, and as one of which it need not know that. */
enum { BUFFERED, UNBUFFERED };

static int fd, is_slow, is_cold, is_patient, tried;
static uint32_t file = BUFFERED;
static int64_t now_us = 1000000;
static void *reactor;

int64_t __real_file_perform(const struct file *file, const struct xt_io *op);
ssize_t __real_file_preadv2(int file, const struct iovec *vectors, int count, off_t offset, int flags);
int64_t __wrap_file_perform(const struct file *file, const struct xt_io *op);
ssize_t __wrap_file_preadv2(int file, const struct iovec *vectors, int count, off_t offset, int flags);
int __wrap_clock_gettime(clockid_t clock, struct timespec *now);

int64_t __wrap_file_perform(const struct file *file, const struct xt_io *op) {
  tried++;
  if (is_slow) now_us += LONG_US;
  return __real_file_perform(file, op);
}

ssize_t __wrap_file_preadv2(int file, const struct iovec *vectors, int count, off_t offset, int flags) {
  tried++;
  if (!is_cold) return __real_file_preadv2(file, vectors, count, offset, flags & ~RWF_NOWAIT);
  errno = EAGAIN;
  return -1;
}

int __wrap_clock_gettime(clockid_t clock, struct timespec *now) {
  (void)clock;
  *now = (struct timespec){.tv_sec = now_us / 1000000, .tv_nsec = now_us % 1000000 * 1000};
  return 0;
}

static void run_one(uint32_t op, uint32_t block, uint8_t *memory) {
  struct xt_io one = {(double)block * BLOCK, BLOCK, (double)(uintptr_t)memory, op, block, file, 0};
  struct xt_io_done done = {0, 0};
  CHECK_EQUAL(xt_reactor_wait(reactor, &one, 1, 1, 5000000, is_patient, &done, 1), 1);
  CHECK_EQUAL(done.tag, block);
  CHECK_EQUAL(done.result, BLOCK);
}

/* Does so many operations one after the other, and answers how many of them were tried at once. */
static int at_once(uint32_t op, int count) {
  static uint8_t memory[BLOCK], in_file[BLOCK];
  tried = 0;
  for (int i = 0; i < count; i++) {
    uint32_t block = (uint32_t)i % BLOCKS;
    if (op == XT_IO_WRITE) memset(memory, i % 251 + 1, BLOCK);
    run_one(op, block, memory);
    CHECK_EQUAL(pread(fd, in_file, BLOCK, (off_t)block * BLOCK), BLOCK);
    CHECK_EQUAL(memcmp(memory, in_file, BLOCK), 0);
  }
  return tried;
}

static void test_writes(void) {
  CHECK_EQUAL(at_once(XT_IO_WRITE, 1000), 1000);
  is_slow = 1;
  CHECK_EQUAL(at_once(XT_IO_WRITE, 1), 1);
  is_slow = 0;
  CHECK_EQUAL(at_once(XT_IO_WRITE, AFTER_SLOW), 0);
  CHECK_EQUAL(at_once(XT_IO_WRITE, 100), 100);
  is_slow = 1;
  CHECK_EQUAL(at_once(XT_IO_WRITE, 3 * (1 + AFTER_SLOW)), 3);
  is_slow = 0;
}

static void test_reads(void) {
  CHECK_EQUAL(at_once(XT_IO_READ, 1000), 1000);
  is_cold = 1;
  CHECK_EQUAL(at_once(XT_IO_READ, 1), 1);
  is_cold = 0;
  CHECK_EQUAL(at_once(XT_IO_READ, AFTER_COLD), 0);
  CHECK_EQUAL(at_once(XT_IO_READ, 100), 100);
  is_cold = 1;
  CHECK_EQUAL(at_once(XT_IO_READ, 3 * (1 + AFTER_COLD)), 3);
  is_cold = 0;
}

/* Who expects nothing else meanwhile waits for storage, too, unless that is slow. */
static void test_patience(void) {
  file = UNBUFFERED;
  CHECK_EQUAL(at_once(XT_IO_READ, 100), 0);
  CHECK_EQUAL(at_once(XT_IO_WRITE, 100), 0);
  is_patient = is_cold = 1;
  for (file = BUFFERED; file <= UNBUFFERED; file++) {
    CHECK_EQUAL(at_once(XT_IO_READ, 1000), 1000);
    CHECK_EQUAL(at_once(XT_IO_WRITE, 1000), 1000);
    for (uint32_t op = XT_IO_READ; op <= XT_IO_WRITE; op++) {
      is_slow = 1;
      CHECK_EQUAL(at_once(op, 1), 1);
      is_slow = 0;
      CHECK_EQUAL(at_once(op, 1), 0);
      CHECK_EQUAL(at_once(op, 100), 100);
    }
  }
  is_patient = is_cold = 0;
  file = BUFFERED;
}

/* Beside an operation in flight a call does not wait for another one, however patient it is. */
static void test_patience_beside_others(void) {
  static uint8_t memory[BLOCKS][BLOCK];
  struct xt_io_done done[BLOCKS];
  struct xt_io ops[BLOCKS];
  tried = 0;
  for (uint32_t i = 0; i < BLOCKS; i++)
    ops[i] = (struct xt_io){(double)i * BLOCK, BLOCK, (double)(uintptr_t)memory[i], XT_IO_READ, i, UNBUFFERED, 0};
  int32_t got = xt_reactor_wait(reactor, ops, 2, 0, 0, 1, done, BLOCKS);
  CHECK(got >= 0);
  if (got == 0) got = xt_reactor_wait(reactor, &ops[2], 1, 3, 5000000, 1, done, BLOCKS);
  CHECK_EQUAL(tried, 0);
  while (got < 2) got += xt_reactor_wait(reactor, NULL, 0, 1, 5000000, 1, done, BLOCKS);
}

/* Several reads together are faster together: none of them is tried. */
static void test_batch(void) {
  static uint8_t memory[BLOCKS][BLOCK];
  struct xt_io ops[BLOCKS];
  struct xt_io_done done[BLOCKS];
  tried = 0;
  for (uint32_t i = 0; i < BLOCKS; i++)
    ops[i] = (struct xt_io){(double)i * BLOCK, BLOCK, (double)(uintptr_t)memory[i], XT_IO_READ, i, 0, 0};
  CHECK_EQUAL(xt_reactor_wait(reactor, ops, BLOCKS, BLOCKS, 5000000, 0, done, BLOCKS), BLOCKS);
  CHECK_EQUAL(tried, 0);
}

int main(void) {
  fd = memfd_create("disk", MFD_CLOEXEC);
  CHECK(fd >= 0);
  CHECK_EQUAL(ftruncate(fd, BLOCKS * BLOCK), 0);
  double handle = xt_reactor_open(BLOCKS, 1, XT_ENGINE_URING);
  /* Where io_uring is not allowed there is nothing to guard: the other engine does everything at once. */
  if (handle == -EPERM || handle == -ENOSYS || handle == -ENOMEM) return 0;
  reactor = ADDRESS(handle);
  CHECK_EQUAL(xt_reactor_add_file(reactor, fd, 0), BUFFERED);
  CHECK_EQUAL(xt_reactor_add_file(reactor, fd, 1), UNBUFFERED);
  test_writes();
  test_reads();
  test_patience();
  test_patience_beside_others();
  test_batch();
  CHECK_EQUAL(xt_reactor_close(reactor), 0);
  close(fd);
  return 0;
}
