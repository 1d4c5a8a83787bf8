/* Memory and eventfds: the foundation of every data plane. */
#define _GNU_SOURCE
#include "copy.h"
#include "reserve.h"
#include "xentool.h"

#include <errno.h>
#include <sys/eventfd.h>
#include <sys/mman.h>
#include <unistd.h>

enum { LARGE_PAGE = 2 << 20 };

uint32_t xt_abi_version(void) { return XT_ABI_VERSION; }

static double address_or_errno(void *address) {
  return address == MAP_FAILED ? (double)-errno : (double)(uintptr_t)address;
}

static void *map_anonymous(uint64_t size) {
  return mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
}

double xt_memory_alloc(uint64_t size) { return address_or_errno(map_anonymous(size)); }

/* Only a large page's own boundary will do, and older kernels map anywhere: take more, and give back both ends. */
double xt_memory_alloc_large(uint64_t size) {
  uint8_t *memory = map_anonymous(size + LARGE_PAGE);
  if (memory == MAP_FAILED) return -(double)errno;
  uint64_t before = (LARGE_PAGE - (uintptr_t)memory % LARGE_PAGE) % LARGE_PAGE;
  if (before) munmap(memory, before);
  memory += before;
  munmap(memory + size, LARGE_PAGE - before);
  madvise(memory, size, MADV_HUGEPAGE); /* a kernel without large pages refuses */
  return (double)(uintptr_t)memory;
}

int32_t xt_memory_free(void *address, uint64_t size) { return munmap(address, size) ? -errno : 0; }

double xt_memory_map(int32_t fd, uint64_t offset, uint64_t size, int32_t writable) {
  int protection = writable ? PROT_READ | PROT_WRITE : PROT_READ;
  int flags = writable ? MAP_SHARED | MAP_POPULATE : MAP_SHARED;
  int error = writable ? xt_reserve(fd, offset, size) : 0;
  if (error) return error;
  return address_or_errno(mmap(NULL, size, protection, flags, fd, (off_t)offset));
}

int32_t xt_memory_copy(void *to, const void *from, uint64_t size) {
  xt_copy(to, from, size);
  return 0;
}

int32_t xt_eventfd(void) {
  int fd = eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC);
  return fd < 0 ? -errno : fd;
}

int32_t xt_eventfd_signal(int32_t fd) {
  uint64_t one = 1;
  return write(fd, &one, sizeof one) < 0 && errno != EAGAIN ? -errno : 0;
}

int32_t xt_eventfd_drain(int32_t fd) {
  uint64_t value;
  return read(fd, &value, sizeof value) < 0 && errno != EAGAIN ? -errno : 0;
}
