/*
 * Microseconds from the processor's own counter, calibrated once against the system clock. In a PV guest of Xen reading
 * the system clock is a system call, which may cost as much as the event being waited for.
 */
#define _GNU_SOURCE
#include "clock.h"
#include "xentool.h"

#include <sched.h>
#include <time.h>

enum { MEASUREMENTS = 3, MEASURED_US = 100 };

int64_t xt_system_us(void) {
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

/*
 * Takes the smallest of several samples: an interruption between reading the two clocks only ever makes a sample too
 * large.
 */
static double measure(void) {
  double rate = 0;
  for (int i = 0; i < MEASUREMENTS; i++) {
    uint64_t first = ticks();
    int64_t begin = xt_system_us(), lasted;
    do lasted = xt_system_us() - begin;
    while (lasted < MEASURED_US);
    double one = (double)(ticks() - first) / (double)lasted;
    if (one > 0 && (rate == 0 || one < rate)) rate = one;
  }
  return rate > 0 ? rate : 1;
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

int64_t xt_clock_us(void) { return xt_system_us(); }

#endif

double xt_now_us(void) { return (double)xt_clock_us(); }

int32_t xt_yield(void) { return sched_yield(); }
