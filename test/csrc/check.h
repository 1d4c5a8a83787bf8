/* Checks of the shim's C tests: the first that fails says where, and ends the test with status 1. */
#ifndef CHECK_H
#define CHECK_H

#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <time.h>
#include <unistd.h>

#define CHECK(condition)                                                                                       \
  do {                                                                                                         \
    if (!(condition)) {                                                                                        \
      fprintf(stderr, "%s:%d: not so: %s\n", __FILE__, __LINE__, #condition);                                  \
      exit(1);                                                                                                 \
    }                                                                                                          \
  } while (0)

#define CHECK_EQUAL(actual, expected)                                                                          \
  do {                                                                                                         \
    long long actual_ = (long long)(actual), expected_ = (long long)(expected);                                \
    if (actual_ != expected_) {                                                                                \
      fprintf(stderr, "%s:%d: %s is %lld, not %lld\n", __FILE__, __LINE__, #actual, actual_, expected_);       \
      exit(1);                                                                                                 \
    }                                                                                                          \
  } while (0)

/* What a function that makes an address or a handle gave; fails on an error. */
#define ADDRESS(call) address_of((call), __FILE__, __LINE__)
static inline void *address_of(double value, const char *file, int line) {
  if (value < 0) {
    fprintf(stderr, "%s:%d: error %d\n", file, line, (int)value);
    exit(1);
  }
  return (void *)(uintptr_t)value;
}

/* Random numbers that SEED=n repeats. */
static uint64_t random_state;
static inline void seed_random(void) {
  const char *text = getenv("SEED");
  random_state = text ? strtoull(text, NULL, 10) : (uint64_t)time(NULL) * 1000 + (uint64_t)getpid();
  printf("SEED=%llu\n", (unsigned long long)random_state);
  fflush(stdout);
}
static inline uint32_t random_below(uint32_t limit) {
  random_state = random_state * 6364136223846793005u + 1442695040888963407u;
  return (uint32_t)((random_state >> 33) % limit);
}

#endif
