/* Memory, eventfds, and single accesses. */
#define _GNU_SOURCE
#include "check.h"
#include "xentool.h"

#include <errno.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

enum { PAGE = 4096, LARGE_PAGE = 2 << 20 };

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

/* What smaps says after `key` of the mapping that begins at `address`. */
static const char *mapping_fact(const void *address, const char *key) {
  static char line[512];
  char start[32];
  int is_ours = 0;
  FILE *maps = fopen("/proc/self/smaps", "r");
  CHECK(maps != NULL);
  snprintf(start, sizeof start, "%lx-", (unsigned long)(uintptr_t)address);
  do {
    CHECK(fgets(line, sizeof line, maps) != NULL);
    if (strncmp(line, start, strlen(start)) == 0) is_ours = 1;
  } while (!is_ours || strncmp(line, key, strlen(key)) != 0);
  fclose(maps);
  return line + strlen(key);
}

/* Many sizes, so that what the kernel maps begins at many places. */
static void test_large(void) {
  for (uint64_t pages = 1; pages < 1500; pages += 37) {
    uint8_t *memory = ADDRESS(xt_memory_alloc_large(pages * PAGE));
    CHECK_EQUAL((uintptr_t)memory % LARGE_PAGE, 0);
    for (uint64_t i = 0; i < pages; i++) CHECK_EQUAL(memory[i * PAGE]++, 0);
    if (access("/sys/kernel/mm/transparent_hugepage/enabled", F_OK) == 0)
      CHECK(strstr(mapping_fact(memory, "VmFlags:"), " hg ") != NULL);
    CHECK_EQUAL(xt_memory_free(memory, pages * PAGE), 0);
    CHECK_EQUAL(msync(memory + (pages - 1) * PAGE, PAGE, MS_ASYNC), -1);
    CHECK_EQUAL(errno, ENOMEM);
  }
  CHECK_EQUAL((int)xt_memory_alloc_large(1ull << 60), -ENOMEM);
}

static uint64_t mapped_bytes(void) {
  unsigned long long pages = 0;
  FILE *statm = fopen("/proc/self/statm", "r");
  CHECK(statm != NULL);
  CHECK_EQUAL(fscanf(statm, "%llu", &pages), 1);
  fclose(statm);
  return pages * PAGE;
}

/* Nothing but the memory itself stays mapped. */
static void test_large_takes_no_more(void) {
  uint64_t before = mapped_bytes();
  uint8_t *memory = ADDRESS(xt_memory_alloc_large(3 * PAGE));
  CHECK_EQUAL(mapped_bytes() - before, 3 * PAGE);
  CHECK_EQUAL(xt_memory_free(memory, 3 * PAGE), 0);
  CHECK_EQUAL(mapped_bytes(), before);
}

/* What a data plane stores to does not fault on the way of a request. */
static void test_map_is_resident(void) {
  enum { PAGES = 300 };
  int fd = memfd_create("test", MFD_CLOEXEC);
  CHECK(fd >= 0);
  CHECK_EQUAL(ftruncate(fd, PAGES * PAGE), 0);
  uint8_t *writable = ADDRESS(xt_memory_map(fd, 0, PAGES * PAGE, 1));
  CHECK_EQUAL(strtoull(mapping_fact(writable, "Rss:"), NULL, 10), PAGES * PAGE / 1024);
  CHECK_EQUAL(xt_memory_free(writable, PAGES * PAGE), 0);
  close(fd);
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
  test_large();
  test_large_takes_no_more();
  test_map();
  test_map_is_resident();
  test_eventfd();
  test_accesses();
  return 0;
}
