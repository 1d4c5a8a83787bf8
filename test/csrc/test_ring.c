/*
 * The shared ring: what is copied, what is published and when the other side wants to be told, with indices
 * around the wrap of 32 bits. The judge of notifications is the definition, step by step: told exactly when
 * one of the indices just published is the one the other side waits for. With a gap, requests are in the
 * x86_32 layout on the ring and in the x86_64 one outside.
 */
#include "check.h"
#include "xentool.h"

#include <string.h>

enum { SLOTS = 8, STRIDE = 112, HEADER = 64, GAP = 4 };

static _Alignas(4096) uint8_t page[4096];
static uint32_t *const words = (uint32_t *)page;
enum { REQ_PROD, REQ_EVENT, RSP_PROD, RSP_EVENT };

static void fill(uint8_t *slots, uint32_t first, uint32_t count, uint32_t size) {
  for (uint32_t i = 0; i < count; i++)
    for (uint32_t at = 0; at < size; at++) slots[(size_t)i * size + at] = (uint8_t)((first + i) * 37 + at);
}

static const uint8_t *slot(uint32_t index) { return page + HEADER + (size_t)(index % SLOTS) * STRIDE; }

/* Whether going from `old` to `old + count` passes `event`, one index after the other. */
static int passes(uint32_t old, uint32_t count, uint32_t event) {
  for (uint32_t i = 1; i <= count; i++)
    if (old + i == event) return 1;
  return 0;
}

static const uint32_t starts[] = {0, 1, 7, 8, 0x7ffffffc, 0xfffffff8, 0xfffffffd, 0xffffffff};

static void test_init(void) {
  memset(page, 0xee, sizeof page);
  xt_ring_init(page);
  CHECK_EQUAL(words[REQ_PROD], 0);
  CHECK_EQUAL(words[REQ_EVENT], 1);
  CHECK_EQUAL(words[RSP_PROD], 0);
  CHECK_EQUAL(words[RSP_EVENT], 1);
  for (int i = 16; i < HEADER; i++) CHECK_EQUAL(page[i], 0);
  CHECK_EQUAL(page[HEADER], 0xee);
}

/* The request `index` as it lies on the ring: the private copy without its gap. */
static void check_on_ring(const uint8_t *request, uint32_t index, uint32_t stride, uint32_t gap) {
  const uint8_t *on_ring = page + HEADER + (size_t)(index % SLOTS) * stride;
  CHECK_EQUAL(memcmp(on_ring, request, 4), 0);
  CHECK_EQUAL(memcmp(on_ring + 4, request + 4 + gap, stride - 4), 0);
}

static void test_requests(uint32_t start, uint32_t count, uint32_t gap) {
  uint8_t from[SLOTS * STRIDE], to[SLOTS * STRIDE];
  uint32_t stride = STRIDE - gap;
  fill(from, start, count, STRIDE);
  for (int offset = -2; offset <= SLOTS + 2; offset++) {
    words[REQ_PROD] = start;
    words[REQ_EVENT] = start + (uint32_t)offset;
    int told = xt_ring_push_requests(page, from, start, count, SLOTS, stride, gap);
    CHECK_EQUAL(told, passes(start, count, start + (uint32_t)offset));
    CHECK_EQUAL(words[REQ_PROD], start + count);
  }
  for (uint32_t i = 0; i < count; i++) check_on_ring(from + i * STRIDE, start + i, stride, gap);
  memset(to, 0xdd, sizeof to);
  xt_ring_copy_requests(to, page, start, count, SLOTS, stride, gap);
  for (uint32_t i = 0; i < count; i++) memset(from + i * STRIDE + 4, 0, gap);
  CHECK_EQUAL(memcmp(to, from, (size_t)count * STRIDE), 0);
  CHECK_EQUAL(xt_ring_final_check_requests(page, start), start + count);
  CHECK_EQUAL(words[REQ_EVENT], start + 1);
}

static void test_responses(uint32_t start, uint32_t count) {
  enum { SIZE = 16 };
  uint8_t from[SLOTS * SIZE], to[SLOTS * SIZE];
  fill(from, start, count, SIZE);
  for (int offset = -2; offset <= SLOTS + 2; offset++) {
    memset(page + HEADER, 0x55, SLOTS * STRIDE);
    words[RSP_PROD] = start;
    words[RSP_EVENT] = start + (uint32_t)offset;
    int told = xt_ring_push_responses(page, from, start, count, SLOTS, STRIDE, SIZE);
    CHECK_EQUAL(told, passes(start, count, start + (uint32_t)offset));
    CHECK_EQUAL(words[RSP_PROD], start + count);
  }
  for (uint32_t i = 0; i < count; i++) CHECK_EQUAL(slot(start + i)[SIZE], 0x55);
  xt_ring_copy_responses(to, page, start, count, SLOTS, STRIDE, SIZE);
  CHECK_EQUAL(memcmp(to, from, (size_t)count * SIZE), 0);
  CHECK_EQUAL(xt_ring_final_check_responses(page, start + count), start + count);
  CHECK_EQUAL(words[RSP_EVENT], start + count + 1);
}

int main(void) {
  test_init();
  for (size_t i = 0; i < sizeof starts / sizeof starts[0]; i++)
    for (uint32_t count = 0; count <= SLOTS; count++) {
      test_requests(starts[i], count, 0);
      test_requests(starts[i], count, GAP);
      test_responses(starts[i], count);
    }
  for (size_t i = HEADER + SLOTS * STRIDE; i < sizeof page; i++) CHECK_EQUAL(page[i], 0xee);
  return 0;
}
