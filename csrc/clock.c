/*
 * The processor's own counter, measured against the system's clock once: asking that one is a system call in a PV
 * guest of Xen, which may cost as much as what is waited for.
 */
#define _GNU_SOURCE
#include "clock.h"

#include <time.h>

enum { MEASURED_US = 200 };

static int64_t system_us(void) {
  struct timespec now;
  clock_gettime(CLOCK_MONOTONIC, &now);
  return now.tv_sec * 1000000ll + now.tv_nsec / 1000;
}

#if defined(__x86_64__) || defined(__aarch64__)

static uint64_t ticks(void) {
#if defined(__x86_64__)
  return __builtin_ia32_rdtsc();
#else
  uint64_t count;
  __asm__ volatile("mrs %0, cntvct_el0" : "=r"(count));
  return count;
#endif
}

static double measure(void) {
  uint64_t first = ticks();
  int64_t begin = system_us(), lasted;
  do lasted = system_us() - begin;
  while (lasted < MEASURED_US);
  uint64_t count = ticks() - first;
  return count ? (double)count / (double)lasted : 1;
}

int64_t xt_clock_us(void) {
  static double ticks_per_us;
  double rate;
  __atomic_load(&ticks_per_us, &rate, __ATOMIC_RELAXED);
  if (rate == 0) {
    rate = measure();
    __atomic_store(&ticks_per_us, &rate, __ATOMIC_RELAXED);
  }
  return (int64_t)((double)ticks() / rate);
}

#else

int64_t xt_clock_us(void) { return system_us(); }

#endif
