/* Memory, eventfds, and single accesses. */
#define _GNU_SOURCE
#include "check.h"
#include "xentool.h"

#include <errno.h>
#include <string.h>
#include <poll.h>
#include <sys/mman.h>

enum { PAGE = 4096 };

static void test_memory(void) {
  uint8_t *memory = ADDRESS(xt_memory_alloc(3 * PAGE));
  CHECK_EQUAL((uintptr_t)memory % PAGE, 0);
  for (int i = 0; i < 3 * PAGE; i++) CHECK_EQUAL(memory[i], 0);
  memset(memory, 7, PAGE);
  CHECK_EQUAL(xt_memory_copy(memory + PAGE, memory, PAGE), 0);
  CHECK_EQUAL(memory[2 * PAGE - 1], 7);
  CHECK_EQUAL(memory[2 * PAGE], 0);
  CHECK_EQUAL(xt_memory_free(memory, 3 * PAGE), 0);
  CHECK(xt_memory_alloc(0) < 0);
}

static void test_map(void) {
  int fd = memfd_create("test", MFD_CLOEXEC);
  CHECK(fd >= 0);
  CHECK_EQUAL(ftruncate(fd, 2 * PAGE), 0);
  uint8_t *writable = ADDRESS(xt_memory_map(fd, 0, 2 * PAGE, 1));
  const uint8_t *second = ADDRESS(xt_memory_map(fd, PAGE, PAGE, 0));
  writable[PAGE + 3] = 9;
  CHECK_EQUAL(second[3], 9);
  CHECK_EQUAL(xt_memory_free(writable, 2 * PAGE), 0);
  CHECK_EQUAL(xt_memory_free((void *)(uintptr_t)second, PAGE), 0);
  CHECK_EQUAL((int)xt_memory_map(-1, 0, PAGE, 0), -EBADF);
  close(fd);
}

static int is_readable(int fd) {
  struct pollfd polled = {.fd = fd, .events = POLLIN};
  return poll(&polled, 1, 0);
}

static void test_eventfd(void) {
  int fd = xt_eventfd();
  CHECK(fd >= 0);
  CHECK_EQUAL(is_readable(fd), 0);
  CHECK_EQUAL(xt_eventfd_signal(fd), 0);
  CHECK_EQUAL(xt_eventfd_signal(fd), 0);
  CHECK_EQUAL(is_readable(fd), 1);
  CHECK_EQUAL(xt_eventfd_drain(fd), 0);
  CHECK_EQUAL(is_readable(fd), 0);
  CHECK_EQUAL(xt_eventfd_drain(fd), 0);
  close(fd);
  CHECK(xt_eventfd_signal(fd) < 0);
}

static void test_accesses(void) {
  uint8_t byte = 0x0f;
  CHECK_EQUAL(xt_load8(&byte), 0x0f);
  CHECK_EQUAL(xt_fetch_or8(&byte, 0x30), 0x0f);
  CHECK_EQUAL(byte, 0x3f);
  xt_store8(&byte, 0x1ff);
  CHECK_EQUAL(byte, 0xff);
}

int main(void) {
  CHECK_EQUAL(xt_abi_version(), XT_ABI_VERSION);
  test_memory();
  test_map();
  test_eventfd();
  test_accesses();
  return 0;
}
