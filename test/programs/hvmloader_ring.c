/*
 * hvmloader's use of the xenstore ring, as a process of a simulated domain: it reads a few nodes, one request
 * at a time, every id 0, and hands the ring over as it found it: by the handshake where server_features offer
 * RECONNECTION, else by poison and zeroes. It can be told to die at any step, or to close in the middle of
 * what it does. Written from the protocol's description, without the code under test.
 *
 *   hvmloader_ring DIR DOMID [--rounds N] [--die-at STEP] [--messy] [--timeout MS]
 *
 * Prints one JSON object: what it read in the last round, how it closed, what it found in the ring after.
 * Exit status: 0; 1 the server broke the protocol; 3 no such host; 6 no answer in time.
 */
#define _POSIX_C_SOURCE 200809L
#include "xen/xen.h"

#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

struct xenstore_domain_interface {
  char req[1024], rsp[1024];
  uint32_t req_cons, req_prod, rsp_cons, rsp_prod;
  uint32_t server_features, connection, error, evtchn_port;
};

struct xsd_sockmsg {
  uint32_t type, req_id, tx_id, len;
};

enum { XS_READ = 2, XS_WATCH = 4, XS_TRANSACTION_START = 6, XS_WRITE = 11, XS_ERROR = 16 };
enum { RECONNECTION = 1, CONNECTED = 0, RECONNECT = 1, PAYLOAD_MAX = 4096 };

/* Where --die-at kills, in the order of time. */
enum {
  STEP_ATTACHED = 1,
  STEP_HALF_REQUEST,   /* half of a request is in the ring */
  STEP_UNANNOUNCED,    /* a request, without the event */
  STEP_REQUESTED,      /* and with it */
  STEP_HALF_REPLY,     /* the header of a reply was taken */
  STEP_ASKED,          /* connection is RECONNECT, without the event */
  STEP_KNOCKED,        /* and with it */
  STEP_POISONED,       /* without RECONNECTION: 0xff is in the ring, the indices are not zero */
  STEP_CLOSED,
};

static struct xenstore_domain_interface *ring;
static void *sim;
static uint32_t port;
static void *events;
static int die_at, timeout_ms = 10000;

static void fail(int status, const char *what) {
  fprintf(stderr, "hvmloader_ring: %s (req %u/%u, rsp %u/%u, connection %u, error %u)\n", what, ring ? ring->req_cons : 0,
          ring ? ring->req_prod : 0, ring ? ring->rsp_cons : 0, ring ? ring->rsp_prod : 0,
          ring ? ring->connection : 0, ring ? ring->error : 0);
  exit(status);
}

static void step(int number) {
  if (number == die_at) raise(SIGKILL);
}

static uint32_t load(const uint32_t *word) { return __atomic_load_n(word, __ATOMIC_SEQ_CST); }
static void store(uint32_t *word, uint32_t value) { __atomic_store_n(word, value, __ATOMIC_SEQ_CST); }

static void notify(void) { xt_evtchn_notify(events, port); }

static int64_t now_ms(void) {
  struct timespec now;
  clock_gettime(CLOCK_MONOTONIC, &now);
  return (int64_t)now.tv_sec * 1000 + now.tv_nsec / 1000000;
}

/* SCHEDOP_poll: until an event comes. What happened before is never missed: it is pending. */
static void sleep_for_event(int64_t deadline) {
  uint32_t ports[8];
  int64_t left = deadline - now_ms();
  if (left <= 0) fail(6, "no answer");
  struct pollfd polled = {.fd = xt_evtchn_fd(events), .events = POLLIN};
  poll(&polled, 1, (int)left);
  int32_t count = xt_evtchn_pending(events, ports, 8);
  for (int32_t i = 0; i < count; i++) xt_evtchn_unmask(events, ports[i]);
}

static void check(uint32_t cons, uint32_t prod) {
  if (prod - cons > 1024) fail(1, "impossible indices");
}

static void ring_write(const char *data, uint32_t len) {
  int64_t deadline = now_ms() + timeout_ms;
  while (len > 0) {
    uint32_t prod = load(&ring->req_prod), cons = load(&ring->req_cons), part = 0;
    check(cons, prod);
    if (prod - cons >= 1023) { /* one byte stays free */
      sleep_for_event(deadline);
      continue;
    }
    for (; part < len && prod + part - cons < 1023; part++) ring->req[(prod + part) % 1024] = data[part];
    store(&ring->req_prod, prod + part);
    data += part;
    len -= part;
    if (len > 0) notify();
  }
}

static void ring_read(char *data, uint32_t len) {
  int64_t deadline = now_ms() + timeout_ms;
  while (len > 0) {
    uint32_t cons = load(&ring->rsp_cons), prod = load(&ring->rsp_prod), part = 0;
    check(cons, prod);
    if (prod == cons) {
      sleep_for_event(deadline);
      continue;
    }
    for (; part < len && cons + part != prod; part++) data[part] = ring->rsp[(cons + part) % 1024];
    store(&ring->rsp_cons, cons + part);
    data += part;
    len -= part;
    notify();
  }
}

static void send_request(uint32_t type, const char *payload, uint32_t len) {
  struct xsd_sockmsg header = {type, 0, 0, len};
  ring_write((char *)&header, sizeof header);
  step(STEP_HALF_REQUEST);
  ring_write(payload, len);
  step(STEP_UNANNOUNCED);
  notify();
  step(STEP_REQUESTED);
}

/* The value of a node, or "" where there is none. */
static char *xenstore_read(const char *path) {
  static char payload[PAYLOAD_MAX + 1];
  struct xsd_sockmsg header;
  send_request(XS_READ, path, strlen(path) + 1);
  ring_read((char *)&header, sizeof header);
  step(STEP_HALF_REPLY);
  if (header.len > PAYLOAD_MAX) fail(1, "a reply is too long");
  if (header.type != XS_READ && header.type != XS_ERROR) fail(1, "a reply is of another type");
  if (header.req_id != 0) fail(1, "a reply is to somebody else's request");
  ring_read(payload, header.len);
  payload[header.len] = 0;
  return header.type == XS_ERROR ? "" : payload;
}

/* Leaves as much behind as there is: a watch, a transaction, replies unread, half of a 4 KiB write. */
static void make_a_mess(void) {
  static char large[2000];
  struct xsd_sockmsg header = {XS_WRITE, 0, 0, PAYLOAD_MAX};
  send_request(XS_WATCH, "data\0hvmloader", 15);
  send_request(XS_TRANSACTION_START, "", 1);
  strcpy(large, "data/large");
  ring_write((char *)&header, sizeof header);
  ring_write(large, sizeof large);
  notify();
}

/* Answers how the ring was handed over. */
static const char *close_ring(void) {
  if (!(load(&ring->server_features) & RECONNECTION)) {
    /*
     * Nothing tells when the server has looked for the last time, and one that looks between two of these
     * stores finds impossible indices. hvmloader has other things to do first; so it waits here.
     */
    nanosleep(&(struct timespec){.tv_nsec = 2000000}, NULL);
    memset(ring->req, 0xff, sizeof ring->req);
    memset(ring->rsp, 0xff, sizeof ring->rsp);
    step(STEP_POISONED);
    store(&ring->req_cons, 0), store(&ring->req_prod, 0);
    store(&ring->rsp_cons, 0), store(&ring->rsp_prod, 0);
    return "fallback";
  }
  int64_t deadline = now_ms() + timeout_ms;
  store(&ring->connection, RECONNECT);
  step(STEP_ASKED);
  notify();
  step(STEP_KNOCKED);
  while (load(&ring->connection) == RECONNECT) sleep_for_event(deadline);
  return "handshake";
}

static const char *poison(void) {
  const char *rings = ring->req;
  int ff = 1, deadbeef = 1;
  for (int i = 0; i < 2048; i++) {
    ff &= rings[i] == (char)0xff;
    deadbeef &= rings[i] == "deadbeef"[i % 8];
  }
  return ff ? "0xff" : deadbeef ? "deadbeef" : "none";
}

/* A predecessor may have died: its close is ended first, as Linux does when it boots. */
static void settle(void) {
  int64_t deadline = now_ms() + timeout_ms;
  if (load(&ring->connection) == RECONNECT) notify();
  while (load(&ring->connection) == RECONNECT && (load(&ring->server_features) & RECONNECTION))
    sleep_for_event(deadline);
  if (load(&ring->req_prod) | load(&ring->req_cons) | load(&ring->rsp_prod) | load(&ring->rsp_cons)) close_ring();
}

static void attach(const char *dir, uint32_t domid) {
  double opened = xt_sim_open(dir, domid, 0);
  if (opened < 0) exit(3);
  sim = (void *)(uintptr_t)opened;
  double channels = xt_evtchn_open(sim, XT_EVTCHN_NONBLOCK);
  if (channels < 0) exit(3);
  events = (void *)(uintptr_t)channels;
  int32_t adopted = xt_sim_adopt_store_port(events);
  double page = xt_sim_own_page(sim, XT_SIM_STORE_GREF);
  if (adopted < 0 || page < 0) exit(3);
  port = (uint32_t)adopted;
  ring = (struct xenstore_domain_interface *)(uintptr_t)page;
}

static void detach(void) {
  xt_memory_free(ring, 4096);
  xt_evtchn_close(events);
  xt_platform_close(sim);
}

int main(int argc, char **argv) {
  int rounds = 1, messy = 0;
  char domid[64] = "", name[64] = "", missing[64] = "";
  const char *closed = "";
  for (int i = 3; i < argc; i++) {
    int more = i + 1 < argc;
    if (!strcmp(argv[i], "--messy")) messy = 1;
    else if (!strcmp(argv[i], "--rounds") && more) rounds = atoi(argv[++i]);
    else if (!strcmp(argv[i], "--die-at") && more) die_at = atoi(argv[++i]);
    else if (!strcmp(argv[i], "--timeout") && more) timeout_ms = atoi(argv[++i]);
    else argc = 0;
  }
  if (argc < 3) {
    fprintf(stderr, "usage: hvmloader_ring DIR DOMID [--rounds N] [--die-at STEP] [--messy] [--timeout MS]\n");
    return 2;
  }
  attach(argv[1], (uint32_t)atoi(argv[2]));
  step(STEP_ATTACHED);
  settle();
  for (int round = 0; round < rounds; round++) {
    snprintf(domid, sizeof domid, "%s", xenstore_read("domid"));
    snprintf(name, sizeof name, "%s", xenstore_read("name"));
    snprintf(missing, sizeof missing, "%s", xenstore_read("platform/acpi"));
    if (strcmp(domid, argv[2])) fail(1, "the value of domid is not ours");
    if (messy) make_a_mess();
    closed = close_ring();
    step(STEP_CLOSED);
    if (ring->req_cons | ring->req_prod | ring->rsp_cons | ring->rsp_prod) fail(1, "the indices are not zero");
  }
  printf("{\"features\":%u,\"domid\":\"%s\",\"name\":\"%s\",\"missing\":\"%s\",\"closed\":\"%s\",\"poison\":\"%s\"}\n",
         ring->server_features, domid, name, missing, closed, poison());
  detach();
  return 0;
}
