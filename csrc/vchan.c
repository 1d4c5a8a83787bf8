/*
 * One end of a vchan (io/libxenvchan.h): moves bytes between the shared rings and memory or descriptors. The peer may
 * write anything into the shared page at any moment. Therefore each of its words is loaded once and checked before use,
 * our own counters live in private memory, and our words in the page are only ever stored.
 */
#define _GNU_SOURCE
#include "clock.h"
#include "copy.h"
#include "xen/layouts.h"
#include "xentool.h"

#include <errno.h>
#include <stddef.h>
#include <sys/socket.h>
#include <sys/uio.h>
#include <unistd.h>

/* Offsets in the shared page. For the rest of its layout, and which side owns what, see src/protocol/vchan.ts. */
enum {
  LEFT_CONS = offsetof(struct vchan_interface, left.cons),
  LEFT_PROD = offsetof(struct vchan_interface, left.prod),
  RIGHT_CONS = offsetof(struct vchan_interface, right.cons),
  RIGHT_PROD = offsetof(struct vchan_interface, right.prod),
  CLI_LIVE = offsetof(struct vchan_interface, cli_live),
  SRV_LIVE = offsetof(struct vchan_interface, srv_live),
  CLI_NOTIFY = offsetof(struct vchan_interface, cli_notify),
  SRV_NOTIFY = offsetof(struct vchan_interface, srv_notify),
};
enum { GONE = 0 };

static uint8_t *page(const struct xt_vchan *vchan) { return (uint8_t *)(uintptr_t)vchan->header; }

static uint32_t load(const struct xt_vchan *vchan, uint32_t offset) {
  return __atomic_load_n((const uint32_t *)(page(vchan) + offset), __ATOMIC_ACQUIRE);
}

/* The release order makes every earlier copy into or out of the ring complete before the peer sees the counter. */
static void publish(const struct xt_vchan *vchan, uint32_t offset, uint32_t counter) {
  __atomic_store_n((uint32_t *)(page(vchan) + offset), counter, __ATOMIC_RELEASE);
}

static uint32_t peer_prod(const struct xt_vchan *v) { return load(v, v->is_server ? LEFT_PROD : RIGHT_PROD); }
static uint32_t peer_cons(const struct xt_vchan *v) { return load(v, v->is_server ? RIGHT_CONS : LEFT_CONS); }
static uint32_t peer_live(const struct xt_vchan *v) {
  return __atomic_load_n(page(v) + (v->is_server ? CLI_LIVE : SRV_LIVE), __ATOMIC_ACQUIRE);
}
static uint32_t peer_end(const struct xt_vchan *v) { return load(v, v->end_offset + (v->is_server ? 4 : 0)); }

/* A counter of the peer may only move forward, and no further than to where the ring is full or empty. */
static int is_sane(uint32_t distance, uint32_t distance_before, uint32_t size) {
  return distance <= size && distance >= distance_before;
}

int32_t xt_vchan_sample(struct xt_vchan *vchan) {
  if (vchan->peer_live == GONE) return 0;
  vchan->peer_live = peer_live(vchan);
  vchan->peer_end = peer_end(vchan);
  uint32_t prod = peer_prod(vchan), cons = peer_cons(vchan);
  if (!is_sane(prod - vchan->read_cons, vchan->read_prod - vchan->read_cons, vchan->read_size)) {
    vchan->bad_counter = prod;
    return XT_VCHAN_BAD_PROD;
  }
  uint32_t start = vchan->write_prod - vchan->write_size;
  if (!is_sane(cons - start, vchan->write_cons - start, vchan->write_size)) {
    vchan->bad_counter = cons;
    return XT_VCHAN_BAD_CONS;
  }
  vchan->read_prod = prod;
  vchan->write_cons = cons;
  return 0;
}

/* Stores the one or two runs that hold `count` bytes from `counter` on; returns the number of runs. */
static int split(struct iovec runs[2], double data, uint32_t size, uint32_t counter, uint32_t count) {
  uint8_t *base = (uint8_t *)(uintptr_t)data;
  uint32_t at = counter & (size - 1), first = size - at < count ? size - at : count;
  runs[0] = (struct iovec){base + at, first};
  runs[1] = (struct iovec){base, count - first};
  return count > first ? 2 : 1;
}

static uint32_t at_most(uint32_t count, uint32_t max) { return count < max ? count : max; }
static uint32_t readable(const struct xt_vchan *v) { return v->read_prod - v->read_cons; }
static uint32_t writable(const struct xt_vchan *v) { return v->write_size - (v->write_prod - v->write_cons); }

static void consume(struct xt_vchan *vchan, uint32_t count) {
  vchan->read_cons += count;
  publish(vchan, vchan->is_server ? LEFT_CONS : RIGHT_CONS, vchan->read_cons);
}

static void produce(struct xt_vchan *vchan, uint32_t count) {
  vchan->write_prod += count;
  publish(vchan, vchan->is_server ? RIGHT_PROD : LEFT_PROD, vchan->write_prod);
}

int32_t xt_vchan_read(struct xt_vchan *vchan, void *to, uint32_t size) {
  struct iovec runs[2];
  uint32_t count = at_most(size, readable(vchan));
  if (count == 0) return 0;
  split(runs, vchan->read_data, vchan->read_size, vchan->read_cons, count);
  xt_copy(to, runs[0].iov_base, runs[0].iov_len);
  xt_copy((uint8_t *)to + runs[0].iov_len, runs[1].iov_base, runs[1].iov_len);
  consume(vchan, count);
  return (int32_t)count;
}

int32_t xt_vchan_write(struct xt_vchan *vchan, const void *from, uint32_t size) {
  struct iovec runs[2];
  uint32_t count = at_most(size, writable(vchan));
  if (count == 0) return 0;
  split(runs, vchan->write_data, vchan->write_size, vchan->write_prod, count);
  xt_copy(runs[0].iov_base, from, runs[0].iov_len);
  xt_copy(runs[1].iov_base, (const uint8_t *)from + runs[0].iov_len, runs[1].iov_len);
  produce(vchan, count);
  return (int32_t)count;
}

int32_t xt_vchan_fill(struct xt_vchan *vchan, int32_t fd, int32_t is_socket, uint32_t max) {
  struct iovec runs[2];
  uint32_t count = at_most(max, writable(vchan));
  if (count == 0) return -ENOBUFS;
  int run_count = split(runs, vchan->write_data, vchan->write_size, vchan->write_prod, count);
  struct msghdr message = {.msg_iov = runs, .msg_iovlen = (size_t)run_count};
  ssize_t got;
  do got = is_socket ? recvmsg(fd, &message, MSG_DONTWAIT) : readv(fd, runs, run_count);
  while (got < 0 && errno == EINTR);
  if (got < 0) return -errno;
  if (got > 0) produce(vchan, (uint32_t)got);
  return (int32_t)got;
}

int32_t xt_vchan_drain(struct xt_vchan *vchan, int32_t fd, int32_t is_socket, uint32_t max) {
  struct iovec runs[2];
  uint32_t count = at_most(max, readable(vchan));
  if (count == 0) return 0;
  int run_count = split(runs, vchan->read_data, vchan->read_size, vchan->read_cons, count);
  struct msghdr message = {.msg_iov = runs, .msg_iovlen = (size_t)run_count};
  ssize_t put;
  do put = is_socket ? sendmsg(fd, &message, MSG_DONTWAIT | MSG_NOSIGNAL) : writev(fd, runs, run_count);
  while (put < 0 && errno == EINTR);
  if (put < 0) return -errno;
  if (put > 0) consume(vchan, (uint32_t)put);
  return (int32_t)put;
}

/* The fence pairs with the one in xt_vchan_arm: either the peer sees our counter or we see its request. */
int32_t xt_vchan_take_request(struct xt_vchan *vchan, uint32_t bits) {
  uint8_t *requests = page(vchan) + (vchan->is_server ? SRV_NOTIFY : CLI_NOTIFY);
  __atomic_thread_fence(__ATOMIC_SEQ_CST);
  if (!(__atomic_load_n(requests, __ATOMIC_RELAXED) & bits)) return 0;
  return __atomic_fetch_and(requests, (uint8_t)~bits, __ATOMIC_SEQ_CST) & bits ? 1 : 0;
}

static int32_t has_news(const struct xt_vchan *v, uint32_t wants) {
  if (v->peer_live == GONE) return 0;
  return ((wants & XT_VCHAN_WRITTEN) && peer_prod(v) != v->read_prod) ||
         ((wants & XT_VCHAN_READ) && peer_cons(v) != v->write_cons) || peer_live(v) != v->peer_live ||
         peer_end(v) != v->peer_end;
}

int32_t xt_vchan_look(const struct xt_vchan *vchan, uint32_t wants, uint32_t us) {
  if (us == 0) return has_news(vchan, wants);
  int64_t begin = xt_clock_us(), lasted = 0;
  for (uint32_t rounds = us * XT_ROUNDS_PER_US; rounds && lasted >= 0 && lasted < us; rounds--) {
    for (int i = 0; i < XT_LOOKS; i++) {
      if (has_news(vchan, wants)) return 1;
      xt_pause();
    }
    lasted = xt_clock_us() - begin;
  }
  return 0;
}

int32_t xt_vchan_arm(const struct xt_vchan *vchan, uint32_t wants) {
  uint8_t *requests = page(vchan) + (vchan->is_server ? CLI_NOTIFY : SRV_NOTIFY);
  __atomic_fetch_or(requests, (uint8_t)wants, __ATOMIC_SEQ_CST);
  __atomic_thread_fence(__ATOMIC_SEQ_CST);
  return has_news(vchan, wants);
}
