/*
 * Writes a xenstore ring page in a named state to stdout, as a guest, a server or an accident leaves it: what
 * `xsring inspect` is judged by. The page is a C struct with the fields of public/io/xs_wire.h, and bytes get
 * into it as hvmloader and xenstored put them there: nothing here comes from the code that is tested.
 */
#include <stdint.h>
#include <stdio.h>
#include <string.h>

struct xenstore_domain_interface {
  char req[1024], rsp[1024];
  uint32_t req_cons, req_prod, rsp_cons, rsp_prod;
  uint32_t server_features, connection, error, evtchn_port;
};

struct xsd_sockmsg {
  uint32_t type, req_id, tx_id, len;
};

enum { READ = 2, WATCH = 4, WRITE = 11, WATCH_EVENT = 15, ERROR = 16 };

static union {
  struct xenstore_domain_interface ring;
  char bytes[4096];
} page;

#define ring page.ring

static void put(char *data, uint32_t *prod, const void *from, uint32_t size) {
  for (uint32_t i = 0; i < size; i++) data[(*prod)++ % 1024] = ((const char *)from)[i];
}

static void packet(char *data, uint32_t *prod, uint32_t type, uint32_t id, const void *payload, uint32_t len) {
  struct xsd_sockmsg header = {type, id, 0, len};
  put(data, prod, &header, sizeof header);
  put(data, prod, payload, len);
}

static void request(uint32_t type, uint32_t id, const void *payload, uint32_t len) {
  packet(ring.req, &ring.req_prod, type, id, payload, len);
}

static void reply(uint32_t type, uint32_t id, const void *payload, uint32_t len) {
  packet(ring.rsp, &ring.rsp_prod, type, id, payload, len);
}

static void taken(void) { ring.req_cons = ring.req_prod; }
static void received(void) { ring.rsp_cons = ring.rsp_prod; }

/* One READ and its answer, all taken. */
static void exchange(uint32_t id, const char *path, const char *value) {
  request(READ, id, path, strlen(path) + 1);
  taken();
  reply(READ, id, value, strlen(value));
  received();
}

static void fill(char byte) {
  memset(ring.req, byte, 1024);
  memset(ring.rsp, byte, 1024);
}

static void deadbeef(void) {
  for (int i = 0; i < 2048; i++) page.bytes[i] = "deadbeef"[i % 8];
}

static void start_at(uint32_t index) {
  ring.req_cons = ring.req_prod = ring.rsp_cons = ring.rsp_prod = index;
}

static int make(const char *state) {
  static char large[4096];
  if (!strcmp(state, "unused")) {
  } else if (!strcmp(state, "idle")) {
    ring.server_features = 1;
    exchange(1, "domid", "7");
    exchange(2, "name", "guest");
  } else if (!strcmp(state, "guest-waits")) {
    exchange(1, "domid", "7");
    request(READ, 2, "name", 5);
    request(WRITE, 3, "data/x\0v\x1b[31m\x80", 14);
  } else if (!strcmp(state, "unanswered")) {
    exchange(1, "domid", "7");
    request(READ, 2, "name", 5);
    taken();
  } else if (!strcmp(state, "server-waits")) {
    exchange(1, "domid", "7");
    request(READ, 2, "nothing", 8);
    taken();
    reply(ERROR, 2, "ENOENT", 7);
    reply(WATCH_EVENT, 0, "data/x\0token", 13);
  } else if (!strcmp(state, "half-request")) { /* 300 of 4,016 bytes are there, 200 were taken */
    exchange(1, "domid", "7");
    struct xsd_sockmsg header = {WRITE, 2, 0, 4000};
    memcpy(large, "data/large", 11);
    put(ring.req, &ring.req_prod, &header, 16);
    put(ring.req, &ring.req_prod, large, 284);
    ring.req_cons += 200;
  } else if (!strcmp(state, "half-request-taken")) {
    exchange(1, "domid", "7");
    struct xsd_sockmsg header = {WRITE, 2, 0, 4000};
    put(ring.req, &ring.req_prod, &header, 16);
    put(ring.req, &ring.req_prod, "data/large", 11);
    taken();
  } else if (!strcmp(state, "half-header")) {
    exchange(1, "domid", "7");
    put(ring.req, &ring.req_prod, "\2\0\0\0\5", 5);
  } else if (!strcmp(state, "full")) {
    start_at(5000);
    for (int i = 0; i < 32; i++) reply(WATCH_EVENT, 0, "data/abcd\0token", 16);
  } else if (!strcmp(state, "wrapped")) { /* indices beyond 2^32 */
    start_at(0xfffffff8);
    exchange(1, "domid", "7");
    request(READ, 2, "name", 5);
  } else if (!strcmp(state, "reset-0xff")) {
    fill((char)0xff);
    ring.server_features = 1;
  } else if (!strcmp(state, "reset-deadbeef")) {
    deadbeef();
    ring.server_features = 1;
  } else if (!strcmp(state, "used-after-reset")) {
    deadbeef();
    ring.server_features = 1;
    exchange(0, "domid", "7");
  } else if (!strcmp(state, "reads-poison")) {
    fill((char)0xff);
    ring.req_prod = 16;
  } else if (!strcmp(state, "reconnect")) {
    exchange(1, "domid", "7");
    ring.server_features = 1;
    ring.connection = 1;
  } else if (!strcmp(state, "reconnect-in-vain")) {
    exchange(1, "domid", "7");
    ring.connection = 1;
  } else if (!strcmp(state, "bad-request-index")) {
    ring.req_prod = 1025;
  } else if (!strcmp(state, "bad-response-index")) {
    exchange(1, "domid", "7");
    ring.rsp_cons = ring.rsp_prod + 1;
  } else if (!strcmp(state, "too-long")) {
    exchange(1, "domid", "7");
    struct xsd_sockmsg header = {WRITE, 2, 0, 4097};
    put(ring.req, &ring.req_prod, &header, 16);
  } else if (!strcmp(state, "unknown-type")) {
    exchange(1, "domid", "7");
    request(99, 2, "x", 2);
  } else if (!strcmp(state, "error-word")) {
    exchange(1, "domid", "7");
    ring.server_features = 2 | 4 | 8;
    ring.error = 2;
  } else if (!strcmp(state, "bad-connection")) {
    exchange(1, "domid", "7");
    ring.connection = 77;
  } else if (!strcmp(state, "hvmloader")) { /* every id is 0 */
    exchange(0, "domid", "7");
    exchange(0, "hvmloader/bios", "seabios");
    request(READ, 0, "platform/acpi", 14);
    taken();
    reply(ERROR, 0, "ENOENT", 7);
    received();
  } else if (!strcmp(state, "long-history")) {
    char value[64];
    for (uint32_t i = 0; i < 500; i++) {
      memset(value, 'a' + i % 26, sizeof value);
      value[i % 40 + 1] = 0;
      exchange(i, "data/some/where", value);
    }
  } else {
    return 1;
  }
  return 0;
}

int main(int argc, char **argv) {
  if (argc != 2 || make(argv[1])) {
    fprintf(stderr, "usage: ring_pages STATE\n");
    return 2;
  }
  return fwrite(page.bytes, sizeof page.bytes, 1, stdout) == 1 ? 0 : 1;
}
