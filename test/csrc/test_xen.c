/*
 * What programs that know nothing of us need of the platform: handles used by many threads, several domains in one
 * mapping, descriptors as Linux' devices have them, and their error numbers.
 */
#define _GNU_SOURCE
#include "sim_calls.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <string.h>

enum { THREADS = 6, ROUNDS = 300 };

static char dir[64];

static struct sim *attach(uint32_t domid) { return ADDRESS(xt_sim_open(dir, domid, 1)); }

static void make_host(void) {
  struct xt_sim_limits limits = {128, 64, 128, 64, 16, 32};
  snprintf(dir, sizeof dir, "%s/xentool-ctest-XXXXXX", access("/dev/shm", W_OK) ? "/tmp" : "/dev/shm");
  CHECK(mkdtemp(dir));
  CHECK_EQUAL(xt_sim_host_create(dir, &limits), 0);
  for (uint32_t domid = 0; domid < 3; domid++) CHECK_EQUAL(xt_sim_domain_create(dir, domid), 1);
}

/* Nothing is in use but the attachment that looks; then there is no host any more. */
static void remove_host(void) {
  struct sim *zero = attach(0);
  struct xt_sim_item items[64];
  int32_t count = xt_sim_list(zero, items, 64);
  CHECK(count >= 0 && count <= 64);
  for (int32_t i = 0; i < count; i++)
    if (items[i].kind == XT_SIM_ORPHAN || items[i].slot != 0) CHECK_EQUAL(items[i].kind, XT_SIM_SLOT);
  for (uint32_t domid = 3; domid-- > 0;) CHECK_EQUAL(xt_sim_domain_destroy(zero, domid), 0);
  xt_platform_close(zero);
  char name[96];
  snprintf(name, sizeof name, "%s/host", dir);
  CHECK_EQUAL(unlink(name), 0);
  CHECK_EQUAL(rmdir(dir), 0);
}

/* Pages of two domains, mixed, are one range in the order that was asked for; a bad one of them leaves nothing. */
static void test_several_domains(void) {
  make_host();
  struct sim *zero = attach(0), *one = attach(1), *two = attach(2);
  uint32_t refs1[2], refs2[2];
  uint8_t *memory1, *memory2, *mapped;
  void *share1 = ADDRESS(share_pages(one, 0, 2, refs1, &memory1));
  void *share2 = ADDRESS(share_pages(two, 0, 2, refs2, &memory2));
  for (int i = 0; i < 2; i++) memset(memory1 + i * PAGE, 10 + i, PAGE), memset(memory2 + i * PAGE, 20 + i, PAGE);
  uint32_t domids[5] = {1, 2, 2, 1, 2}, refs[5] = {refs1[1], refs2[0], refs2[1], refs1[0], refs2[0]};
  void *mapping = ADDRESS(map_refs(zero, domids, refs, 5, 1, &mapped));
  const uint8_t expected[5] = {11, 20, 21, 10, 20};
  for (int i = 0; i < 5; i++) CHECK_EQUAL(mapped[i * PAGE], expected[i]);
  mapped[4 * PAGE] = 99;
  CHECK_EQUAL(memory2[0], 99);
  CHECK_EQUAL(xt_gnttab_unmap(mapping), 0);

  refs[4] = 100;
  CHECK_EQUAL((int)map_refs(zero, domids, refs, 5, 1, &mapped), -EINVAL);
  domids[4] = 9;
  CHECK_EQUAL((int)map_refs(zero, domids, refs, 5, 1, &mapped), -EINVAL);
  for (int i = 0; i < 2; i++) {
    CHECK_EQUAL(one->own->records[refs1[i]].writers, 0);
    CHECK_EQUAL(two->own->records[refs2[i]].writers, 0);
  }
  xt_gntshr_unshare(share1);
  xt_gntshr_unshare(share2);
  xt_platform_close(zero);
  xt_platform_close(one);
  xt_platform_close(two);
  remove_host();
}

/* ---- threads ---- */

struct worker {
  pthread_t thread;
  struct sim *sim;
  void *events, *gnttab, *gntshr;
  uint32_t ref, number;
  int32_t peer_port;
};

/* One attachment, one handle of each kind, all at once; what each thread does is its own. */
static void *work(void *argument) {
  struct worker *worker = argument;
  uint8_t local[64], *page;
  for (uint32_t i = 0; i < ROUNDS; i++) {
    double address;
    uint32_t domid = 1;
    struct xt_copy_segment segment = {.length = sizeof local, .flags = XT_COPY_SOURCE_GREF};
    segment.source.foreign.domid = 1;
    segment.source.foreign.ref = worker->ref;
    segment.source.foreign.offset = (uint16_t)(worker->number * sizeof local);
    segment.dest.address = (uintptr_t)local;
    void *mapping = ADDRESS(xt_gnttab_map(worker->gnttab, &domid, &worker->ref, 1, 1, -1, -1, &address));
    page = (uint8_t *)(uintptr_t)address + worker->number * sizeof local;
    memset(page, (int)i, sizeof local);
    CHECK_EQUAL(xt_gnttab_copy(worker->gnttab, &segment, 1), 0);
    CHECK_EQUAL(segment.status, GNTST_OKAY);
    CHECK_EQUAL(memcmp(page, local, sizeof local), 0);
    void *share = ADDRESS(xt_gntshr_share(worker->gntshr, 1, 2, 1, -1, -1, (uint32_t[2]){0}, &address));
    int32_t port = xt_evtchn_bind_unbound(worker->events, 1);
    CHECK(port > 0);
    CHECK_EQUAL(xt_evtchn_notify(worker->events, (uint32_t)port), 0);
    CHECK_EQUAL(xt_evtchn_unbind(worker->events, (uint32_t)port), 0);
    void *own = open_evtchn(worker->sim);
    CHECK_EQUAL(xt_evtchn_close(own), 0);
    CHECK_EQUAL(xt_gntshr_unshare(share), 0);
    CHECK_EQUAL(xt_gnttab_unmap(mapping), 0);
  }
  return NULL;
}

static void test_threads(void) {
  make_host();
  struct sim *zero = attach(0), *one = attach(1);
  uint32_t ref;
  uint8_t *memory;
  void *shared = ADDRESS(share_pages(one, 0, 1, &ref, &memory));
  void *events = open_evtchn(zero), *gnttab = ADDRESS(xt_gnttab_open(zero)), *gntshr = ADDRESS(xt_gntshr_open(zero));
  struct worker workers[THREADS];
  for (uint32_t i = 0; i < THREADS; i++) {
    workers[i] = (struct worker){
        .sim = zero, .events = events, .gnttab = gnttab, .gntshr = gntshr, .ref = ref, .number = i};
    CHECK_EQUAL(pthread_create(&workers[i].thread, NULL, work, &workers[i]), 0);
  }
  for (uint32_t i = 0; i < THREADS; i++) CHECK_EQUAL(pthread_join(workers[i].thread, NULL), 0);
  xt_evtchn_close(events);
  xt_gnttab_close(gnttab);
  xt_gntshr_close(gntshr);
  xt_gntshr_unshare(shared);
  xt_platform_close(zero);
  xt_platform_close(one);
  remove_host();
}

/* ---- descriptors ---- */

static void *wait_for_port(void *events) {
  uint32_t port = 0;
  CHECK_EQUAL(xt_evtchn_pending(events, &port, 1), 1);
  return (void *)(uintptr_t)port;
}

/* Reading a blocking handle waits for an event, and its own full FIFO stops nobody. */
static void test_descriptors(void) {
  make_host();
  struct sim *zero = attach(0), *one = attach(1);
  void *waiting = ADDRESS(xt_evtchn_open(one, 0)), *kept = ADDRESS(xt_evtchn_open(one, XT_EVTCHN_KEEP));
  void *events = open_evtchn(zero), *thread_said = NULL;
  CHECK_EQUAL(fcntl(xt_evtchn_fd(waiting), F_GETFD), FD_CLOEXEC);
  CHECK_EQUAL(fcntl(xt_evtchn_fd(waiting), F_GETFL) & O_NONBLOCK, 0);
  CHECK_EQUAL(fcntl(xt_evtchn_fd(kept), F_GETFD), 0);
  CHECK_EQUAL(fcntl(xt_evtchn_fd(events), F_GETFL) & O_NONBLOCK, O_NONBLOCK);
  int32_t far = xt_evtchn_bind_unbound(waiting, 0), near = xt_evtchn_bind_interdomain(events, 1, (uint32_t)far);
  CHECK(far > 0 && near > 0);
  pthread_t thread;
  CHECK_EQUAL(pthread_create(&thread, NULL, wait_for_port, waiting), 0);
  CHECK_EQUAL(xt_evtchn_notify(events, (uint32_t)near), 0);
  CHECK_EQUAL(pthread_join(thread, &thread_said), 0);
  CHECK_EQUAL((uintptr_t)thread_said, far);

  CHECK_EQUAL(xt_evtchn_notify(events, (uint32_t)near), 0); /* pending: the port is masked */
  CHECK_EQUAL(fcntl(xt_evtchn_fd(waiting), F_SETPIPE_SZ, PAGE), PAGE);
  for (uint32_t i = 0; i < PAGE / 4; i++) CHECK_EQUAL(write(xt_evtchn_fd(waiting), &i, sizeof i), sizeof i);
  CHECK_EQUAL(xt_evtchn_unmask(waiting, (uint32_t)far), 0);
  for (uint32_t i = 0; i < PAGE / 4; i++) CHECK_EQUAL((uintptr_t)wait_for_port(waiting), i);
  CHECK_EQUAL(xt_sim_deliver(zero), 0);
  CHECK_EQUAL((uintptr_t)wait_for_port(waiting), far);
  for (int i = 0; i < 3; i++) CHECK_EQUAL(xt_evtchn_close(((void *[]){waiting, kept, events})[i]), 0);
  xt_platform_close(zero);
  xt_platform_close(one);
  remove_host();
}

static void test_error_numbers(void) {
  make_host();
  struct sim *zero = attach(0);
  void *events = open_evtchn(zero), *other = open_evtchn(zero), *gnttab = ADDRESS(xt_gnttab_open(zero));
  int32_t port = xt_evtchn_bind_unbound(events, 1);
  CHECK_EQUAL(xt_evtchn_notify(other, (uint32_t)port), -ENOTCONN);
  CHECK_EQUAL(xt_evtchn_unbind(other, (uint32_t)port), -ENOTCONN);
  CHECK_EQUAL(xt_evtchn_notify(events, 1u << 17), -EINVAL);
  CHECK_EQUAL(xt_evtchn_unbind(events, 1u << 17), -EINVAL);
  CHECK_EQUAL(xt_evtchn_unmask(other, (uint32_t)port), 0);
  CHECK_EQUAL(xt_evtchn_bind_interdomain(events, 1, 40), -EINVAL);
  CHECK_EQUAL(xt_evtchn_restrict(events, 0), -EINVAL);
  CHECK_EQUAL(xt_evtchn_restrict(events, DOMID_FIRST_RESERVED), -EINVAL);
  CHECK_EQUAL(xt_evtchn_restrict(events, 1), 0);
  CHECK_EQUAL(xt_evtchn_restrict(events, 1), -EACCES);
  CHECK_EQUAL(xt_evtchn_bind_unbound(events, 2), -EACCES);
  CHECK_EQUAL(xt_evtchn_bind_interdomain(events, 2, 1), -EACCES);
  CHECK(xt_evtchn_bind_unbound(events, 1) > 0);
  CHECK_EQUAL(xt_gnttab_copy(gnttab, NULL, 0), 0);
  CHECK_EQUAL((int)xt_gnttab_map(gnttab, NULL, NULL, 0, 1, -1, -1, NULL), -EINVAL);
  CHECK_EQUAL(xt_sim_domain_create(dir, DOMID_FIRST_RESERVED), -EINVAL);
  xt_gnttab_close(gnttab);
  xt_evtchn_close(other);
  xt_evtchn_close(events);
  xt_platform_close(zero);
  remove_host();
}

int main(void) {
  test_several_domains();
  test_threads();
  test_descriptors();
  test_error_numbers();
  return 0;
}
