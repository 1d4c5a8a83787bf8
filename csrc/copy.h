/* Copies large blocks between memory areas that never overlap. */
#pragma once
#include <stdint.h>
#include <string.h>

/*
 * Like memcpy. From one page on it copies eight bytes at a time with a single instruction. On hardware (measured on Zen
 * 4) that is as fast as the library's memcpy; under emulation, where wide registers are slow, it is 1.7 times as fast.
 * It also avoids the library's worst case on Zen 4, which drops to a tenth of its speed when `to` lies up to 15 bytes
 * behind `from` in its page (docs/performance.md). Copies shorter than a page would spend a third of their time
 * starting that instruction.
 */
static inline void xt_copy(void *to, const void *from, uint64_t size) {
#if defined(__x86_64__) && !defined(__SANITIZE_ADDRESS__)
  if (size >= 4096) {
    uint64_t words = size / 8;
    __asm__ volatile("rep movsq" : "+D"(to), "+S"(from), "+c"(words)::"memory");
    size %= 8;
  }
#endif
  memcpy(to, from, size);
}
