/*
 * The other end of a vchan, on Debian's libxenvchan: what xentool is tested against and measured beside.
 *
 *   vchan-peer server DOMID PATH READ_SIZE WRITE_SIZE JOB...     rings as libxenvchan_server_init's
 *   vchan-peer client DOMID PATH JOB...                          waits for the server to come
 *   vchan-peer liar DOMID PATH ORDER    a server that says that its left ring has this order, until it is killed
 *   vchan-peer pattern BYTES SEED      writes a stream of pseudo-random bytes to standard output
 *   vchan-peer check BYTES SEED        standard input must be exactly that stream
 * A JOB is one of
 *   stream BYTES SEED BYTES SEED       sends the first stream and receives the second at once, then closes;
 *                                      with `wait` behind it, lets the peer close
 *   packets COUNT                      sends packets of 1 byte up to a ring's size, and receives each back
 *   hold                               says "connected", then waits for the peer to close or die
 *   bench-serve                        serves `xentool vchan bench connect`, or bench
 *   bench BYTES ROUNDS                 measures: BYTES each way and both ways, ROUNDS of one byte there and back
 * Every byte that comes is compared with what must come. The exit status says whether all was well.
 */
#include <errno.h>
#include <libxenvchan.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

enum { BLOCK = 65536, CLIENT_PATIENCE_MS = 120000, RETRY_MS = 50 };

static struct libxenvchan *vchan;
static size_t read_size, write_size;

static void die(const char *what) {
  fprintf(stderr, "vchan-peer: %s\n", what);
  exit(1);
}

static uint64_t number(const char *text) {
  char *end;
  errno = 0;
  uint64_t value = strtoull(text, &end, 10);
  if (errno || *end || end == text) die("a number is none");
  return value;
}

static double now(void) {
  struct timespec t;
  clock_gettime(CLOCK_MONOTONIC, &t);
  return (double)t.tv_sec + (double)t.tv_nsec / 1e9;
}

/* ---- a stream that both ends can make: xorshift64, a block at a time ---- */

struct pattern {
  uint64_t state, left;
  size_t at;
  uint64_t block[BLOCK / 8];
};

static struct pattern *pattern_new(const char *bytes, const char *seed) {
  struct pattern *pattern = calloc(1, sizeof *pattern);
  if (!pattern) die("out of memory");
  pattern->state = (number(seed) + 1) * 0x9e3779b97f4a7c15u;
  pattern->left = number(bytes);
  pattern->at = BLOCK;
  return pattern;
}

/* The next bytes, as many as lie together; *count is 0 at the end. */
static const uint8_t *pattern_peek(struct pattern *pattern, size_t *count) {
  if (pattern->at == BLOCK) {
    uint64_t x = pattern->state;
    for (size_t i = 0; i < BLOCK / 8; i++) {
      x ^= x << 13;
      x ^= x >> 7;
      x ^= x << 17;
      pattern->block[i] = x;
    }
    pattern->state = x;
    pattern->at = 0;
  }
  *count = BLOCK - pattern->at < pattern->left ? BLOCK - pattern->at : (size_t)pattern->left;
  return (const uint8_t *)pattern->block + pattern->at;
}

static void pattern_take(struct pattern *pattern, size_t count) {
  pattern->at += count;
  pattern->left -= count;
}

/* `bytes` must be what comes next. */
static void pattern_expect(struct pattern *pattern, const uint8_t *bytes, size_t count) {
  while (count > 0) {
    size_t part;
    const uint8_t *expected = pattern_peek(pattern, &part);
    if (part == 0) die("more bytes came than were sent");
    if (part > count) part = count;
    if (memcmp(bytes, expected, part)) die("other bytes came than were sent");
    pattern_take(pattern, part);
    bytes += part;
    count -= part;
  }
}

static void write_pattern(struct pattern *pattern) {
  while (pattern->left > 0) {
    size_t count;
    const uint8_t *bytes = pattern_peek(pattern, &count);
    ssize_t written = write(STDOUT_FILENO, bytes, count);
    if (written <= 0) die("cannot write the pattern");
    pattern_take(pattern, (size_t)written);
  }
}

static void check_pattern(struct pattern *pattern) {
  static uint8_t bytes[BLOCK];
  ssize_t count;
  while ((count = read(STDIN_FILENO, bytes, sizeof bytes)) > 0) pattern_expect(pattern, bytes, (size_t)count);
  if (count < 0 || pattern->left > 0) die("fewer bytes came than were sent");
}

/* ---- connecting ---- */

static void serve(int domid, const char *path, size_t read_min, size_t write_min) {
  vchan = libxenvchan_server_init(NULL, domid, path, read_min, write_min);
  if (!vchan) die("libxenvchan_server_init failed");
  while (libxenvchan_is_open(vchan) == 2) libxenvchan_wait(vchan);
}

static void connect_to(int domid, const char *path) {
  for (int waited_ms = 0; waited_ms < CLIENT_PATIENCE_MS; waited_ms += RETRY_MS) {
    vchan = libxenvchan_client_init(NULL, domid, path);
    if (vchan) return;
    usleep(RETRY_MS * 1000);
  }
  die("libxenvchan_client_init failed");
}

static void lie(int domid, const char *path, uint16_t order) {
  vchan = libxenvchan_server_init(NULL, domid, path, 65536, 65536);
  if (!vchan) die("libxenvchan_server_init failed");
  vchan->ring->left_order = order;
  puts("lying");
  for (;;) pause();
}

/* Whatever still comes, until the peer has closed. */
static void await_close(void) {
  uint8_t byte;
  vchan->blocking = 1;
  while (libxenvchan_is_open(vchan)) libxenvchan_read(vchan, &byte, 1);
}

/* ---- jobs ---- */

/* Both directions at once; libxenvchan asks for the event that ends a wait when a read or a write gets nothing. */
static void stream(struct pattern *out, struct pattern *in) {
  static uint8_t bytes[BLOCK];
  vchan->blocking = 0;
  while (out->left > 0 || in->left > 0) {
    size_t count;
    const uint8_t *next = pattern_peek(out, &count);
    int written = count > 0 ? libxenvchan_write(vchan, next, count) : 0;
    if (written < 0) die("the peer closed before everything was sent");
    pattern_take(out, (size_t)written);
    int got = in->left > 0 ? libxenvchan_read(vchan, bytes, sizeof bytes) : 0;
    if (got < 0) die("the peer closed before everything was received");
    pattern_expect(in, bytes, (size_t)got);
    if (written == 0 && got == 0) libxenvchan_wait(vchan);
  }
}

static void packets(uint64_t count) {
  size_t limit = read_size < write_size ? read_size : write_size;
  uint8_t *sent = malloc(limit), *got = malloc(limit);
  if (!sent || !got) die("out of memory");
  vchan->blocking = 1;
  for (uint64_t i = 0; i < count; i++) {
    size_t size = i == count - 1 ? limit : 1 + i * 997 % limit;
    memset(sent, (int)i, size);
    sent[0] = (uint8_t)size;
    if (libxenvchan_send(vchan, sent, size) != (int)size) die("send failed");
    if (libxenvchan_recv(vchan, got, size) != (int)size) die("recv failed");
    if (memcmp(sent, got, size)) die("another packet came back");
  }
  free(sent);
  free(got);
}

/* ---- the benchmark: the wire format of `xentool vchan bench` (src/vchan/bench.ts) ---- */

enum kind { SEND, RECEIVE, BOTH, ROUND_TRIP };
static const char *const kind_names[] = {"send", "receive", "both", "round-trip"};
struct job {
  uint32_t magic, kind;
  double amount;
};
enum { MAGIC = 0x62786378 };

/* All of it, blocking; false when the peer has closed. */
static int put(const void *bytes, size_t size) {
  vchan->blocking = 1;
  return libxenvchan_write(vchan, bytes, size) == (int)size;
}

static int get(void *bytes, size_t size) {
  vchan->blocking = 1;
  for (size_t got = 0; got < size;) {
    int count = libxenvchan_read(vchan, (uint8_t *)bytes + got, size - got);
    if (count <= 0) return 0;
    got += (size_t)count;
  }
  return 1;
}

/* So many bytes each way: blocking where there is one way, as libxenvchan is fastest. */
static void pump(uint64_t to_send, uint64_t to_receive) {
  static uint8_t out[BLOCK], in[BLOCK];
  vchan->blocking = to_send == 0 || to_receive == 0;
  while (to_send > 0 || to_receive > 0) {
    int written = 0, got = 0;
    if (to_send > 0) written = libxenvchan_write(vchan, out, to_send < BLOCK ? (size_t)to_send : BLOCK);
    if (to_receive > 0) got = libxenvchan_read(vchan, in, to_receive < BLOCK ? (size_t)to_receive : BLOCK);
    if (written < 0 || got < 0) die("the peer closed in the middle of a benchmark");
    to_send -= (uint64_t)written;
    to_receive -= (uint64_t)got;
    if (written == 0 && got == 0) libxenvchan_wait(vchan);
  }
}

static void bounce(uint64_t rounds, int starts) {
  uint8_t byte = 0;
  for (uint64_t i = 0; i < rounds; i++) {
    if (starts && !put(&byte, 1)) die("the peer closed in the middle of a round trip");
    if (!get(&byte, 1)) die("the peer closed in the middle of a round trip");
    if (!starts && !put(&byte, 1)) die("the peer closed in the middle of a round trip");
  }
}

static void bench_serve(void) {
  struct job job;
  while (get(&job, sizeof job)) {
    uint64_t amount = (uint64_t)job.amount;
    if (job.magic != MAGIC || job.kind > ROUND_TRIP) die("the peer does not speak the benchmark's protocol");
    if (job.kind == ROUND_TRIP) bounce(amount, 0);
    else {
      pump(job.kind == SEND ? 0 : amount, job.kind == RECEIVE ? 0 : amount);
      if (!put("", 1)) die("the peer closed in the middle of a benchmark");
    }
  }
}

/* One job, and how many seconds it took. */
static double measure(enum kind kind, uint64_t amount) {
  struct job job = {MAGIC, kind, (double)amount};
  double started = now();
  if (!put(&job, sizeof job)) die("the peer closed before the benchmark");
  if (kind == ROUND_TRIP) bounce(amount, 1);
  else {
    uint8_t done;
    pump(kind == RECEIVE ? 0 : amount, kind == SEND ? 0 : amount);
    if (!get(&done, 1)) die("the peer closed in the middle of a benchmark");
  }
  return now() - started;
}

static void bench(uint64_t bytes, uint64_t rounds) {
  uint64_t amounts[] = {bytes, bytes, bytes, rounds};
  /* As xentool's: everything unmeasured first, a tenth, for some seconds. What runs for the first time is slower. */
  double warm_until = now() + 3;
  do for (enum kind kind = SEND; kind <= ROUND_TRIP; kind++) measure(kind, (amounts[kind] + 9) / 10);
  while (now() < warm_until);
  for (enum kind kind = SEND; kind <= ROUND_TRIP; kind++) {
    double seconds = measure(kind, amounts[kind]);
    if (kind == ROUND_TRIP) printf("%s %.1f us\n", kind_names[kind], seconds / (double)rounds * 1e6);
    else printf("%s %.3f MB/s\n", kind_names[kind], (double)bytes / seconds / 1e6);
  }
}

static int is_job(int argc, char **argv, const char *name, int arguments) {
  return argc >= 1 + arguments && strcmp(argv[0], name) == 0;
}

static void run_job(int argc, char **argv) {
  if (is_job(argc, argv, "stream", 4)) {
    stream(pattern_new(argv[1], argv[2]), pattern_new(argv[3], argv[4]));
    if (argc > 5) await_close();
  } else if (is_job(argc, argv, "packets", 1)) packets(number(argv[1]));
  else if (is_job(argc, argv, "hold", 0)) await_close();
  else if (is_job(argc, argv, "bench-serve", 0)) bench_serve();
  else if (is_job(argc, argv, "bench", 2)) bench(number(argv[1]), number(argv[2]));
  else die("no such job");
}

int main(int argc, char **argv) {
  if (is_job(argc - 1, argv + 1, "pattern", 2)) {
    write_pattern(pattern_new(argv[2], argv[3]));
    return 0;
  }
  if (is_job(argc - 1, argv + 1, "check", 2)) {
    check_pattern(pattern_new(argv[2], argv[3]));
    return 0;
  }
  setvbuf(stdout, NULL, _IOLBF, 0);
  if (is_job(argc - 1, argv + 1, "liar", 3)) lie((int)number(argv[2]), argv[3], (uint16_t)number(argv[4]));
  int job = 4;
  if (is_job(argc - 1, argv + 1, "server", 5)) {
    serve((int)number(argv[2]), argv[3], number(argv[4]), number(argv[5]));
    job = 6;
  } else if (is_job(argc - 1, argv + 1, "client", 3)) connect_to((int)number(argv[2]), argv[3]);
  else die("server, client, pattern or check?");
  read_size = (size_t)1 << vchan->read.order;
  write_size = (size_t)1 << vchan->write.order;
  puts("connected");
  run_job(argc - job, argv + job);
  libxenvchan_close(vchan);
  puts("closed");
  return 0;
}
