/*
 * The simulated platform where only C reaches: forged grant entries, copies from domain to domain, locks
 * whose owner died in the middle of a change, and many processes at once of which some are killed.
 */
#define _GNU_SOURCE
#include "sim_calls.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/wait.h>

static char dir[64];

static struct sim *attach(uint32_t domid) { return ADDRESS(xt_sim_open(dir, domid, 1)); }

static void make_host(void) {
  struct xt_sim_limits limits = {64, 32, 64, 32, 16, 32};
  snprintf(dir, sizeof dir, "%s/xentool-ctest-XXXXXX", access("/dev/shm", W_OK) ? "/tmp" : "/dev/shm");
  CHECK(mkdtemp(dir));
  CHECK_EQUAL(xt_sim_host_create(dir, &limits), 0);
  for (uint32_t domid = 0; domid < 3; domid++) CHECK_EQUAL(xt_sim_domain_create(dir, domid), 1);
  CHECK_EQUAL(xt_sim_domain_create(dir, 1), -EEXIST);
}

static void remove_host(void) {
  char name[96];
  struct sim *sim = attach(0);
  for (uint32_t domid = 0; domid < 3; domid++) {
    snprintf(name, sizeof name, "%s/dom%u/memory", dir, domid);
    CHECK_EQUAL(unlink(name), 0);
    snprintf(name, sizeof name, "%s/dom%u", dir, domid);
    CHECK_EQUAL(rmdir(name), 0);
  }
  xt_platform_close(sim);
  snprintf(name, sizeof name, "%s/host", dir);
  CHECK_EQUAL(unlink(name), 0);
  CHECK_EQUAL(rmdir(dir), 0);
}

/* What processes hold: nothing at the end of each test. */
static uint32_t in_use(struct sim *sim) {
  struct xt_sim_item items[256];
  int32_t count = xt_sim_list(sim, items, 256);
  uint32_t held = 0;
  CHECK(count >= 0 && count <= 256);
  for (int32_t i = 0; i < count; i++)
    if (items[i].slot != 0 || items[i].kind == XT_SIM_ORPHAN) held++;
  return held;
}

static void expect_clean(void) {
  struct sim *sim = attach(0);
  xt_sim_sweep(sim);
  uint32_t held = in_use(sim);
  CHECK_EQUAL(held, 1); /* this attachment itself */
  xt_platform_close(sim);
}

static struct xt_copy_segment foreign_copy(uint16_t from, uint32_t from_ref, uint16_t to, uint32_t to_ref) {
  struct xt_copy_segment segment = {.length = 64, .flags = XT_COPY_SOURCE_GREF | XT_COPY_DEST_GREF};
  segment.source.foreign.domid = from;
  segment.source.foreign.ref = from_ref;
  segment.dest.foreign.domid = to;
  segment.dest.foreign.ref = to_ref;
  return segment;
}

static void test_copy_between_domains(void) {
  struct sim *one = attach(1), *two = attach(2), *zero = attach(0);
  uint32_t ref1, ref2;
  uint8_t *memory1, *memory2;
  void *share1 = ADDRESS(share_pages(one, 0, 1, &ref1, &memory1));
  void *share2 = ADDRESS(share_pages(two, 0, 1, &ref2, &memory2));
  memset(memory1, 7, 64);
  struct xt_copy_segment segments[3] = {foreign_copy(1, ref1, 2, ref2), foreign_copy(2, ref2, 2, ref2),
                                        foreign_copy(2, 63, 1, ref1)};
  segments[1].dest.foreign.offset = 100;
  CHECK_EQUAL(copy_segments(zero, segments, 3), 0);
  CHECK_EQUAL(segments[0].status, GNTST_OKAY);
  CHECK_EQUAL(segments[1].status, GNTST_OKAY);
  CHECK_EQUAL(segments[2].status, GNTST_GENERAL_ERROR);
  CHECK_EQUAL(memory2[63], 7);
  CHECK_EQUAL(memory2[64], 0);
  CHECK_EQUAL(memory2[163], 7);
  segments[0].flags = 0;
  CHECK_EQUAL(copy_segments(zero, segments, 1), -EINVAL);
  segments[0].flags = XT_COPY_SOURCE_GREF | XT_COPY_DEST_GREF;
  segments[0].dest.foreign.offset = PAGE - 63;
  CHECK_EQUAL(copy_segments(zero, segments, 1), -EINVAL);
  xt_gntshr_unshare(share1);
  xt_gntshr_unshare(share2);
  xt_platform_close(one);
  xt_platform_close(two);
  xt_platform_close(zero);
  expect_clean();
}

/* The granter's table is its own memory: whatever it writes there, nobody reads outside its frames. */
static void test_forged_entries(void) {
  struct sim *one = attach(1), *zero = attach(0);
  uint32_t ref;
  uint8_t *memory, *mapped, local[64];
  void *shared = ADDRESS(share_pages(one, 0, 1, &ref, &memory));
  struct grant_entry *entry = &one->own->entries[ref];
  struct grant_entry honest = *entry;
  struct xt_copy_segment segment = {.length = 64, .flags = XT_COPY_SOURCE_GREF};
  segment.source.foreign.domid = 1;
  segment.source.foreign.ref = ref;
  segment.dest.address = (uintptr_t)local;
  for (int i = 0; i < 3; i++) {
    entry->frame = (uint32_t[]){64, 0x100000, 0xffffffff}[i];
    CHECK_EQUAL(map_one(zero, 1, ref, 1, &mapped), -EINVAL);
    CHECK_EQUAL(copy_segments(zero, &segment, 1), 0);
    CHECK_EQUAL(segment.status, GNTST_BAD_PAGE);
  }
  entry->frame = honest.frame;
  entry->access = 2; /* accept_transfer */
  CHECK_EQUAL(map_one(zero, 1, ref, 1, &mapped), -EINVAL);
  entry->access = GTF_PERMIT_ACCESS | 2u << 16;
  CHECK_EQUAL(map_one(zero, 1, ref, 1, &mapped), -EINVAL);
  *entry = honest;
  void *mapping = ADDRESS(map_one(zero, 1, ref, 1, &mapped));
  CHECK_EQUAL(entry->access, (GTF_PERMIT_ACCESS | GTF_READING | GTF_WRITING));
  xt_gnttab_unmap(mapping);
  CHECK_EQUAL(entry->access, GTF_PERMIT_ACCESS);
  mapping = ADDRESS(map_one(zero, 1, ref, 0, &mapped));
  CHECK_EQUAL(entry->access, (GTF_PERMIT_ACCESS | GTF_READING));
  xt_gnttab_unmap(mapping);
  xt_gntshr_unshare(shared);
  CHECK_EQUAL(entry->access, 0);
  xt_platform_close(one);
  xt_platform_close(zero);
  expect_clean();
}

static void wait_for(pid_t child) {
  int status;
  CHECK_EQUAL(waitpid(child, &status, 0), child);
}

/* Dies with the lock held, the counters nonsense, and a change half done. */
static void die_within(uint32_t domid, uint32_t ref) {
  struct sim *sim = attach(domid);
  struct domain *own = sim->own;
  sim_grant_lock(own);
  own->header->shared_pages = 1000;
  own->header->gref_low = own->header->track_low = 64;
  own->records[ref].readers += 5;
  own->records[ref].writers = 9;
  own->entries[20].access = GTF_PERMIT_ACCESS | GTF_READING;
  own->records[20].slot = sim->slot; /* a share whose record does not count yet */
  own->records[21].slot = KERNEL_SLOT;
  own->records[21].state = GRANT_ORPHAN; /* given up, not freed yet */
  _exit(0);
}

static void test_death_with_the_grant_lock(void) {
  struct sim *one = attach(1), *zero = attach(0);
  uint32_t refs[2];
  uint8_t *memory, *mapped;
  void *shared = ADDRESS(share_pages(one, 0, 2, refs, &memory));
  void *first = ADDRESS(map_one(zero, 1, refs[0], 0, &mapped));
  void *second = ADDRESS(map_one(zero, 1, refs[0], 1, &mapped));
  pid_t child = fork();
  if (child == 0) die_within(1, refs[0]);
  wait_for(child);

  void *third = ADDRESS(map_one(zero, 1, refs[1], 1, &mapped));
  const struct grant_record *record = &one->own->records[refs[0]];
  CHECK_EQUAL(record->readers, 1);
  CHECK_EQUAL(record->writers, 1);
  CHECK_EQUAL(one->own->header->shared_pages, 2);
  CHECK_EQUAL(one->own->entries[20].access & GTF_READING, 0);
  CHECK_EQUAL(one->own->records[21].state, GRANT_FREE);
  xt_gnttab_unmap(second);
  CHECK_EQUAL(one->own->entries[refs[0]].access, (GTF_PERMIT_ACCESS | GTF_READING));
  xt_gnttab_unmap(first);
  xt_gnttab_unmap(third);
  xt_gntshr_unshare(shared);
  for (uint32_t ref = XT_SIM_RESERVED_GREFS; ref < 64; ref++) one->own->entries[ref].access = 0;
  xt_platform_close(one);
  xt_platform_close(zero);
  expect_clean();
}

static void test_death_with_the_evtchn_lock(void) {
  struct sim *one = attach(1), *zero = attach(0);
  uint32_t ports[4];
  void *events1 = open_evtchn(one), *events0 = open_evtchn(zero);
  int32_t port1 = xt_evtchn_bind_unbound(events1, 0);
  pid_t child = fork();
  if (child == 0) {
    /* An end that points to a port which does not point back: a bind that was cut short. */
    struct sim *sim = attach(0);
    sim_evtchn_lock_two(sim->own, one->own);
    sim->own->ports[30] = (struct port){
        .state = PORT_INTERDOMAIN, .slot = sim->slot, .remote_domid = 1, .remote_port = (uint32_t)port1};
    _exit(0);
  }
  wait_for(child);
  int32_t port0 = xt_evtchn_bind_interdomain(events0, 1, (uint32_t)port1);
  CHECK(port0 > 0);
  CHECK_EQUAL(xt_sim_sweep(zero), 0);
  CHECK_EQUAL(zero->own->ports[30].state, PORT_FREE);
  CHECK_EQUAL(xt_evtchn_notify(events0, (uint32_t)port0), 0);
  CHECK_EQUAL(xt_evtchn_pending(events1, ports, 4), 1);
  CHECK_EQUAL(ports[0], port1);
  xt_evtchn_close(events1);
  xt_evtchn_close(events0);
  xt_platform_close(one);
  xt_platform_close(zero);
  expect_clean();
}

/* A process that dies before, or after, it has written an event that it has marked. */
static void test_event_cut_short(void) {
  struct sim *zero = attach(0), *one = attach(1);
  void *events1 = open_evtchn(one);
  uint32_t ports[4];
  int32_t port1 = xt_evtchn_bind_unbound(events1, 0);
  for (int written = 0; written < 2; written++) {
    pid_t child = fork();
    if (child == 0) {
      struct sim *sim = attach(0);
      void *events0 = open_evtchn(sim);
      CHECK(xt_evtchn_bind_interdomain(events0, 1, (uint32_t)port1) > 0);
      struct domain *remote = sim_domain_get(sim, 1);
      struct port *end = &remote->ports[port1];
      end->sender = sim->slot;
      end->masked = 1;
      if (written) CHECK_EQUAL(sim_fifo_write(sim, 0, remote, end->handle, (uint32_t)port1), 0);
      _exit(0);
    }
    wait_for(child);
    CHECK_EQUAL(xt_sim_sweep(zero), 0);
    CHECK_EQUAL(xt_sim_deliver(zero), 0);
    CHECK_EQUAL(xt_evtchn_pending(events1, ports, 4), 1 + written);
    CHECK_EQUAL(ports[0], port1);
    CHECK_EQUAL(ports[written], port1);
    CHECK_EQUAL(one->own->ports[port1].sender, 0);
    CHECK_EQUAL(xt_evtchn_unmask(events1, (uint32_t)port1), 0);
    CHECK_EQUAL(xt_evtchn_pending(events1, ports, 4), 0);
  }
  xt_evtchn_close(events1);
  xt_platform_close(one);
  xt_platform_close(zero);
  expect_clean();
}

/* Shares, maps, copies and notifies at random until it is killed or has done enough. */
static void live(uint32_t domid, uint32_t rounds) {
  struct sim *sim = attach(domid);
  uint32_t peer = domid == 1 ? 2 : 1, refs[4], ports[16];
  void *events = open_evtchn(sim), *gnttab = ADDRESS(xt_gnttab_open(sim)), *gntshr = ADDRESS(xt_gntshr_open(sim));
  uint8_t *memory, *mapped, local[64];
  for (uint32_t i = 0; i < rounds; i++) {
    double address, shared = xt_gntshr_share(gntshr, peer, 1 + random_below(4), 1, 0, -1, refs, &address);
    uint32_t ref = XT_SIM_RESERVED_GREFS + random_below(16);
    double mapping = map_one(sim, peer, ref, (int)random_below(2), &mapped);
    struct xt_copy_segment segment = {.length = 64, .flags = XT_COPY_SOURCE_GREF};
    segment.source.foreign.domid = (uint16_t)peer;
    segment.source.foreign.ref = ref;
    segment.dest.address = (uintptr_t)local;
    CHECK_EQUAL(xt_gnttab_copy(gnttab, &segment, 1), 0);
    int32_t port = xt_evtchn_bind_interdomain(events, peer, 2 + random_below(8));
    int32_t unbound = xt_evtchn_bind_unbound(events, peer);
    if (port > 0) CHECK_EQUAL(xt_evtchn_notify(events, (uint32_t)port), 0);
    for (int32_t got = xt_evtchn_pending(events, ports, 16); got > 0; got--)
      xt_evtchn_unmask(events, ports[got - 1]);
    if (unbound > 0 && random_below(2)) xt_evtchn_unbind(events, (uint32_t)unbound);
    if (port > 0) CHECK_EQUAL(xt_evtchn_unbind(events, (uint32_t)port), 0);
    if (mapping > 0) xt_gnttab_unmap((void *)(uintptr_t)mapping);
    if (shared > 0) {
      memory = (uint8_t *)(uintptr_t)address;
      CHECK_EQUAL(memory[1], 0);
      memory[1] = 1;
      xt_gntshr_unshare((void *)(uintptr_t)shared);
    }
    if (random_below(16) == 0) {
      xt_evtchn_close(events);
      events = open_evtchn(sim);
    }
  }
  xt_evtchn_close(events);
  xt_gnttab_close(gnttab);
  xt_gntshr_close(gntshr);
  xt_platform_close(sim);
}

static void test_many_processes(void) {
  enum { PROCESSES = 8, GENERATIONS = 12 };
  struct sim *zero = attach(0);
  for (int generation = 0; generation < GENERATIONS; generation++) {
    pid_t children[PROCESSES];
    for (int i = 0; i < PROCESSES; i++) {
      random_below(2);
      children[i] = fork();
      CHECK(children[i] >= 0);
      if (children[i] > 0) continue;
      random_state += (uint64_t)i * 977;
      live(1 + (uint32_t)i % 2, i % 2 ? 100 : 100000);
      _exit(0);
    }
    poll(NULL, 0, (int)random_below(10));
    for (int i = 0; i < PROCESSES; i += 2) kill(children[i], SIGKILL);
    for (int i = 0; i < PROCESSES; i++) wait_for(children[i]);
    CHECK_EQUAL(xt_sim_sweep(zero), 0);
    CHECK_EQUAL(in_use(zero), 1);
    for (uint32_t domid = 1; domid < 3; domid++) {
      struct domain *domain = sim_domain_get(zero, domid);
      CHECK_EQUAL(domain->header->shared_pages, 0);
      for (uint32_t ref = XT_SIM_RESERVED_GREFS; ref < 64; ref++) CHECK_EQUAL(domain->entries[ref].access, 0);
      sim_domain_put(domain);
    }
  }
  xt_platform_close(zero);
  expect_clean();
}

static void test_refusals(void) {
  struct xt_sim_limits limits = {8, 32, 64, 32, 16, 32};
  CHECK_EQUAL(xt_sim_host_create(dir, &limits), -EINVAL);
  limits.grant_entries = 64;
  CHECK_EQUAL(xt_sim_host_create(dir, &limits), -EEXIST);
  CHECK_EQUAL(xt_sim_host_create("/nonexistent", &limits), -ENOENT);
  CHECK_EQUAL((int)xt_sim_open("/nonexistent", 0, 1), -ENOENT);
  CHECK_EQUAL((int)xt_sim_open(dir, 9, 1), -ESRCH);
  CHECK_EQUAL((int)xt_sim_open(dir, 0, 0), -ENOENT);
  char name[96];
  snprintf(name, sizeof name, "%s/dom9", dir);
  CHECK_EQUAL(mkdir(name, 0700), 0);
  snprintf(name, sizeof name, "%s/dom9/memory", dir);
  int fd = open(name, O_RDWR | O_CREAT | O_EXCL | O_CLOEXEC, 0600);
  CHECK(fd >= 0);
  CHECK_EQUAL((int)xt_sim_open(dir, 9, 1), -ESRCH);
  CHECK_EQUAL(ftruncate(fd, 3 * PAGE), 0);
  CHECK_EQUAL((int)xt_sim_open(dir, 9, 1), -ESRCH);
  close(fd);
  unlink(name);
  snprintf(name, sizeof name, "%s/dom9", dir);
  CHECK_EQUAL(rmdir(name), 0);
  expect_clean();
}

int main(void) {
  seed_random();
  make_host();
  test_refusals();
  test_copy_between_domains();
  test_forged_entries();
  test_death_with_the_grant_lock();
  test_death_with_the_evtchn_lock();
  test_event_cut_short();
  test_many_processes();
  remove_host();
  return 0;
}
