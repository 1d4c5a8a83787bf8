/* The time: exactly, and without a system call. */
#pragma once
#include <stdint.h>

/* Microseconds since some moment: for deadlines. */
int64_t xt_system_us(void);

/*
 * The same without a system call, right within some percent: for deciding how long to look at a ring, and whether it
 * paid. It may jump when the process moves to another processor or the domain to another host; who waits by it bounds
 * the wait by XT_ROUNDS_PER_US as well.
 */
int64_t xt_clock_us(void);

/* Rounds of XT_LOOKS looks with a pause after each: no processor does more of them in a microsecond. */
enum { XT_LOOKS = 16, XT_ROUNDS_PER_US = 100 };

static inline void xt_pause(void) {
#if defined(__x86_64__)
  __builtin_ia32_pause();
#endif
}
