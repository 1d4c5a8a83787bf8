/*
 * Atomic accesses to memory that another domain may change at any moment. All are sequentially consistent except the
 * polling loads of xt_changes_within, which only acquire.
 */
#define _GNU_SOURCE
#include "clock.h"
#include "xentool.h"

uint32_t xt_load8(const void *address) { return __atomic_load_n((const uint8_t *)address, __ATOMIC_SEQ_CST); }
void xt_store8(void *address, uint32_t value) {
  __atomic_store_n((uint8_t *)address, (uint8_t)value, __ATOMIC_SEQ_CST);
}
uint32_t xt_fetch_or8(void *address, uint32_t bits) {
  return __atomic_fetch_or((uint8_t *)address, (uint8_t)bits, __ATOMIC_SEQ_CST);
}
uint32_t xt_changes_within(const void *address, uint32_t value, uint32_t us) {
  const uint32_t *word = address;
  if (us == 0) return __atomic_load_n(word, __ATOMIC_ACQUIRE) != value;
  int64_t begin = xt_clock_us(), lasted = 0;
  for (uint32_t rounds = us * XT_ROUNDS_PER_US; rounds && lasted >= 0 && lasted < us; rounds--) {
    for (int i = 0; i < XT_LOOKS; i++) {
      if (__atomic_load_n(word, __ATOMIC_ACQUIRE) != value) return 1;
      xt_pause();
    }
    lasted = xt_clock_us() - begin;
  }
  return 0;
}
