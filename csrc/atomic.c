/* Single sequentially consistent accesses to memory that another domain may change at any moment. */
#define _GNU_SOURCE
#include "xentool.h"

#include <time.h>

uint32_t xt_load32(const void *address) { return __atomic_load_n((const uint32_t *)address, __ATOMIC_SEQ_CST); }
void xt_store32(void *address, uint32_t value) { __atomic_store_n((uint32_t *)address, value, __ATOMIC_SEQ_CST); }
uint32_t xt_load8(const void *address) { return __atomic_load_n((const uint8_t *)address, __ATOMIC_SEQ_CST); }
void xt_store8(void *address, uint32_t value) {
  __atomic_store_n((uint8_t *)address, (uint8_t)value, __ATOMIC_SEQ_CST);
}
uint32_t xt_fetch_or8(void *address, uint32_t bits) {
  return __atomic_fetch_or((uint8_t *)address, (uint8_t)bits, __ATOMIC_SEQ_CST);
}
uint32_t xt_fetch_and8(void *address, uint32_t bits) {
  return __atomic_fetch_and((uint8_t *)address, (uint8_t)bits, __ATOMIC_SEQ_CST);
}
void xt_fence(void) { __atomic_thread_fence(__ATOMIC_SEQ_CST); }

/* ---- looking for a change for a moment ---- */

enum { MEASURED_LOOKS = 256, LOOKS_PER_US_MAX = 1000 };

static uint32_t look(const uint32_t *word, uint32_t value, uint32_t times) {
  while (times--) {
    if (__atomic_load_n(word, __ATOMIC_ACQUIRE) != value) return 1;
#if defined(__x86_64__)
    __builtin_ia32_pause();
#endif
  }
  return 0;
}

static int64_t now_ns(void) {
  struct timespec now;
  clock_gettime(CLOCK_MONOTONIC, &now);
  return now.tv_sec * 1000000000ll + now.tv_nsec;
}

/* Measured once, because asking for the time is a system call in a guest of Xen, and may cost as much as the wait. */
static uint32_t looks_per_us(void) {
  static uint32_t measured;
  uint32_t rate = __atomic_load_n(&measured, __ATOMIC_RELAXED);
  if (rate) return rate;
  const uint32_t word = 0;
  for (int i = 0; i < 3; i++) {
    int64_t begin = now_ns();
    look(&word, 0, MEASURED_LOOKS);
    int64_t took = now_ns() - begin + 1, one = MEASURED_LOOKS * 1000ll / took;
    if (one > rate) rate = one < LOOKS_PER_US_MAX ? (uint32_t)one : LOOKS_PER_US_MAX;
  }
  if (rate == 0) rate = 1;
  __atomic_store_n(&measured, rate, __ATOMIC_RELAXED);
  return rate;
}

uint32_t xt_changes_within(const void *address, uint32_t value, uint32_t us) {
  return look(address, value, us ? us * looks_per_us() : 1);
}
