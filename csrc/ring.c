/*
 * The shared ring of public/io/ring.h. Indices run freely modulo 2^32; a slot is index & (slots - 1).
 * Everything read here may be changed by the other side at any moment, so each word is loaded once and
 * slots are copied out before anyone looks at them.
 */
#include "xentool.h"

#include <stddef.h>
#include <string.h>

enum { RING_HEADER_BYTES = 64 };

struct ring_header {
  uint32_t req_prod, req_event, rsp_prod, rsp_event;
};

static void store(uint32_t *word, uint32_t value, int order) { __atomic_store_n(word, value, order); }

/* Copies run by run: the ring wraps at most once in `count` <= `slots` slots. */
static void copy_out(void *to, const void *ring, uint32_t from, uint32_t count, uint32_t slots, uint32_t stride,
                     uint32_t size) {
  const uint8_t *base = (const uint8_t *)ring + RING_HEADER_BYTES;
  uint8_t *out = to;
  for (uint32_t i = 0; i < count; i++)
    memcpy(out + (size_t)i * size, base + (size_t)((from + i) & (slots - 1)) * stride, size);
}

static void copy_in(void *ring, const void *from, uint32_t to, uint32_t count, uint32_t slots, uint32_t stride,
                    uint32_t size) {
  uint8_t *base = (uint8_t *)ring + RING_HEADER_BYTES;
  const uint8_t *in = from;
  for (uint32_t i = 0; i < count; i++)
    memcpy(base + (size_t)((to + i) & (slots - 1)) * stride, in + (size_t)i * size, size);
}

/* Publishes `prod` and tells whether the other side's event index lies in the part just published. */
static int32_t publish(uint32_t *prod_word, const uint32_t *event_word, uint32_t prod, uint32_t count) {
  store(prod_word, prod, __ATOMIC_RELEASE);
  __atomic_thread_fence(__ATOMIC_SEQ_CST);
  return (uint32_t)(prod - __atomic_load_n(event_word, __ATOMIC_RELAXED)) < count;
}

static uint32_t arm(uint32_t *event_word, const uint32_t *prod_word, uint32_t cons) {
  store(event_word, cons + 1, __ATOMIC_RELAXED);
  __atomic_thread_fence(__ATOMIC_SEQ_CST);
  return __atomic_load_n(prod_word, __ATOMIC_ACQUIRE);
}

void xt_ring_init(void *ring) {
  struct ring_header *header = ring;
  memset(ring, 0, RING_HEADER_BYTES);
  store(&header->req_event, 1, __ATOMIC_RELAXED);
  store(&header->rsp_event, 1, __ATOMIC_SEQ_CST);
}

void xt_ring_copy_requests(void *to, const void *ring, uint32_t cons, uint32_t count, uint32_t slots,
                           uint32_t stride) {
  __atomic_thread_fence(__ATOMIC_ACQUIRE);
  copy_out(to, ring, cons, count, slots, stride, stride);
}

int32_t xt_ring_push_responses(void *ring, const void *from, uint32_t prod, uint32_t count, uint32_t slots,
                               uint32_t stride, uint32_t size) {
  struct ring_header *header = ring;
  copy_in(ring, from, prod, count, slots, stride, size);
  return publish(&header->rsp_prod, &header->rsp_event, prod + count, count);
}

uint32_t xt_ring_final_check_requests(void *ring, uint32_t cons) {
  struct ring_header *header = ring;
  return arm(&header->req_event, &header->req_prod, cons);
}

int32_t xt_ring_push_requests(void *ring, const void *from, uint32_t prod, uint32_t count, uint32_t slots,
                              uint32_t stride) {
  struct ring_header *header = ring;
  copy_in(ring, from, prod, count, slots, stride, stride);
  return publish(&header->req_prod, &header->req_event, prod + count, count);
}

void xt_ring_copy_responses(void *to, const void *ring, uint32_t cons, uint32_t count, uint32_t slots,
                            uint32_t stride, uint32_t size) {
  __atomic_thread_fence(__ATOMIC_ACQUIRE);
  copy_out(to, ring, cons, count, slots, stride, size);
}

uint32_t xt_ring_final_check_responses(void *ring, uint32_t cons) {
  struct ring_header *header = ring;
  return arm(&header->rsp_event, &header->rsp_prod, cons);
}
