/*
 * The shared ring of public/io/ring.h. Indices run freely modulo 2^32; a slot is index & (slots - 1). The other side
 * may change anything read here at any moment, so each word is loaded once and slots are copied out before their
 * contents are examined.
 */
#include "xen/layouts.h"
#include "xentool.h"

#include <stddef.h>
#include <string.h>

enum { RING_HEADER_BYTES = offsetof(struct sring, ring) };

static void store(uint32_t *word, uint32_t value, int order) { __atomic_store_n(word, value, order); }

static uint8_t *slot(const void *ring, uint32_t index, uint32_t slots, uint32_t stride) {
  return (uint8_t *)ring + RING_HEADER_BYTES + (size_t)(index & (slots - 1)) * stride;
}

/*
 * Requests are kept in the x86_64 layout. In the x86_32 layout everything after the first word lies four bytes earlier:
 * `gap` bytes are inserted there when copying out and skipped when copying in.
 */
static void request_out(uint8_t *to, const uint8_t *from, uint32_t stride, uint32_t gap) {
  memcpy(to, from, 4);
  memset(to + 4, 0, gap);
  memcpy(to + 4 + gap, from + 4, stride - 4);
}

static void request_in(uint8_t *to, const uint8_t *from, uint32_t stride, uint32_t gap) {
  memcpy(to, from, 4);
  memcpy(to + 4, from + 4 + gap, stride - 4);
}

/* Publishes `prod` and returns whether the other side's event index lies in the part just published. */
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
  struct sring *header = ring;
  memset(ring, 0, RING_HEADER_BYTES);
  store(&header->req_event, 1, __ATOMIC_RELAXED);
  store(&header->rsp_event, 1, __ATOMIC_SEQ_CST);
}

void xt_ring_copy_requests(void *to, const void *ring, uint32_t cons, uint32_t count, uint32_t slots,
                           uint32_t stride, uint32_t gap) {
  __atomic_thread_fence(__ATOMIC_ACQUIRE);
  for (uint32_t i = 0; i < count; i++)
    request_out((uint8_t *)to + (size_t)i * (stride + gap), slot(ring, cons + i, slots, stride), stride, gap);
}

int32_t xt_ring_push_responses(void *ring, const void *from, uint32_t prod, uint32_t count, uint32_t slots,
                               uint32_t stride, uint32_t size) {
  struct sring *header = ring;
  for (uint32_t i = 0; i < count; i++)
    memcpy(slot(ring, prod + i, slots, stride), (const uint8_t *)from + (size_t)i * size, size);
  return publish(&header->rsp_prod, &header->rsp_event, prod + count, count);
}

uint32_t xt_ring_final_check_requests(void *ring, uint32_t cons) {
  struct sring *header = ring;
  return arm(&header->req_event, &header->req_prod, cons);
}

int32_t xt_ring_push_requests(void *ring, const void *from, uint32_t prod, uint32_t count, uint32_t slots,
                              uint32_t stride, uint32_t gap) {
  struct sring *header = ring;
  for (uint32_t i = 0; i < count; i++)
    request_in(slot(ring, prod + i, slots, stride), (const uint8_t *)from + (size_t)i * (stride + gap), stride, gap);
  return publish(&header->req_prod, &header->req_event, prod + count, count);
}

void xt_ring_copy_responses(void *to, const void *ring, uint32_t cons, uint32_t count, uint32_t slots,
                            uint32_t stride, uint32_t size) {
  __atomic_thread_fence(__ATOMIC_ACQUIRE);
  for (uint32_t i = 0; i < count; i++)
    memcpy((uint8_t *)to + (size_t)i * size, slot(ring, cons + i, slots, stride), size);
}

uint32_t xt_ring_final_check_responses(void *ring, uint32_t cons) {
  struct sring *header = ring;
  return arm(&header->rsp_event, &header->rsp_prod, cons);
}
