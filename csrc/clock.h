/* Two clocks: an exact one, and one that needs no system call. */
#pragma once
#include <stdint.h>

/* Microseconds since an arbitrary moment, for deadlines. */
int64_t xt_system_us(void);

/*
 * The same without a system call, accurate to within a few percent. It serves to decide how long to look at a ring, and
 * whether looking paid. It may jump when the process moves to another processor or the domain to another host, so
 * callers that wait by it must also bound the wait by XT_ROUNDS_PER_US.
 */
int64_t xt_clock_us(void);

/*
 * A round is XT_LOOKS looks with a pause after each. No processor does more than XT_ROUNDS_PER_US rounds in a
 * microsecond.
 */
enum { XT_LOOKS = 16, XT_ROUNDS_PER_US = 100 };

static inline void xt_pause(void) {
#if defined(__x86_64__)
  __builtin_ia32_pause();
#endif
}
