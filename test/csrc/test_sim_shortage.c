/*
 * The simulated platform on a machine that lacks something: descriptors, memory for its files, room in a FIFO. And a
 * process that is killed while its forked child lives.
 */
#define _GNU_SOURCE
#include "sim_calls.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <sched.h>
#include <signal.h>
#include <string.h>
#include <sys/mount.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <sys/wait.h>

enum { HANDLE_PORTS = 4000 };

static char dir[64];

/* A file system of our own, so small that it is full soon, with a host of `domains` domains. */
static void make_host(const char *size, uint32_t domains, const struct xt_sim_limits *limits) {
  char options[64];
  int flags = CLONE_NEWNS | (geteuid() == 0 ? 0 : CLONE_NEWUSER);
  snprintf(dir, sizeof dir, "/tmp/xentool-ctest-XXXXXX");
  CHECK(mkdtemp(dir));
  CHECK_EQUAL(unshare(flags), 0);
  CHECK_EQUAL(mount("none", "/", NULL, MS_REC | MS_PRIVATE, NULL), 0);
  snprintf(options, sizeof options, "size=%s", size);
  CHECK_EQUAL(mount("none", dir, "tmpfs", 0, options), 0);
  CHECK_EQUAL(xt_sim_host_create(dir, limits), 0);
  for (uint32_t domid = 0; domid < domains; domid++) CHECK_EQUAL(xt_sim_domain_create(dir, domid), 1);
}

static void remove_host(void) {
  CHECK_EQUAL(umount2(dir, MNT_DETACH), 0);
  CHECK_EQUAL(rmdir(dir), 0);
}

static struct sim *attach(uint32_t domid) { return ADDRESS(xt_sim_open(dir, domid, 1)); }

static const struct xt_sim_limits SMALL = {64, 32, 64, 32, 16, 32};

/* Leaves this process without a free descriptor; returns the limit that was. */
static struct rlimit use_up_descriptors(void) {
  struct rlimit limit, low;
  CHECK_EQUAL(getrlimit(RLIMIT_NOFILE, &limit), 0);
  int next = dup(0);
  CHECK(next > 0);
  close(next);
  low = (struct rlimit){(rlim_t)next, limit.rlim_max};
  CHECK_EQUAL(setrlimit(RLIMIT_NOFILE, &low), 0);
  CHECK_EQUAL(dup(0), -1);
  return limit;
}

struct pair {
  struct sim *zero, *one;
  void *events0, *events1;
  int32_t port0, port1;
};

static struct pair connect_two(void) {
  struct pair pair = {.zero = attach(0), .one = attach(1)};
  pair.events0 = open_evtchn(pair.zero);
  pair.events1 = open_evtchn(pair.one);
  pair.port1 = xt_evtchn_bind_unbound(pair.events1, 0);
  pair.port0 = xt_evtchn_bind_interdomain(pair.events0, 1, (uint32_t)pair.port1);
  CHECK(pair.port1 > 0 && pair.port0 > 0);
  return pair;
}

static void disconnect(const struct pair *pair) {
  CHECK_EQUAL(xt_evtchn_close(pair->events0), 0);
  CHECK_EQUAL(xt_evtchn_close(pair->events1), 0);
  xt_platform_close(pair->zero);
  xt_platform_close(pair->one);
}

static int32_t next_port_of(void *events) {
  uint32_t port;
  return xt_evtchn_pending(events, &port, 1) == 1 ? (int32_t)port : 0;
}

static int32_t next_port(const struct pair *pair) { return next_port_of(pair->events1); }

/*
 * The side that offered the port opens its peer's FIFO with the first event. Without a descriptor the event waits for
 * the host, which finds it; once delivered, the port is as after any other event.
 */
static void test_no_descriptor_for_an_event(void) {
  make_host("1m", 2, &SMALL);
  struct pair pair = connect_two();
  CHECK_EQUAL(next_port_of(pair.events0), pair.port0); /* binding sent one */
  CHECK_EQUAL(xt_evtchn_unmask(pair.events0, (uint32_t)pair.port0), 0);
  struct rlimit limit = use_up_descriptors();
  CHECK_EQUAL(xt_evtchn_notify(pair.events1, (uint32_t)pair.port1), -EMFILE);
  CHECK_EQUAL(next_port_of(pair.events0), 0);
  CHECK_EQUAL(xt_sim_deliver(pair.zero), -EMFILE);
  CHECK_EQUAL(setrlimit(RLIMIT_NOFILE, &limit), 0);
  CHECK_EQUAL(xt_sim_deliver(pair.zero), 0);
  CHECK_EQUAL(next_port_of(pair.events0), pair.port0);
  CHECK_EQUAL(xt_sim_deliver(pair.zero), 0);
  CHECK_EQUAL(next_port_of(pair.events0), 0);
  CHECK_EQUAL(xt_evtchn_unmask(pair.events0, (uint32_t)pair.port0), 0);
  CHECK_EQUAL(next_port_of(pair.events0), 0);
  CHECK_EQUAL(xt_evtchn_notify(pair.events1, (uint32_t)pair.port1), 0);
  CHECK_EQUAL(next_port_of(pair.events0), pair.port0);
  disconnect(&pair);
  remove_host();
}

/* The side that bound last opened everything then: it needs no descriptor any more, not even for its peer's death. */
static void test_no_descriptor_after_binding(void) {
  make_host("1m", 2, &SMALL);
  struct pair pair = connect_two();
  struct rlimit limit = use_up_descriptors();
  for (int i = 0; i < 3; i++) {
    CHECK_EQUAL(xt_evtchn_notify(pair.events0, (uint32_t)pair.port0), 0);
    CHECK_EQUAL(next_port(&pair), pair.port1);
    CHECK_EQUAL(xt_evtchn_unmask(pair.events1, (uint32_t)pair.port1), 0);
  }
  CHECK_EQUAL(xt_evtchn_close(pair.events1), 0);
  CHECK_EQUAL(xt_evtchn_notify(pair.events0, (uint32_t)pair.port0), 0);
  CHECK_EQUAL(xt_evtchn_unbind(pair.events0, (uint32_t)pair.port0), 0);
  CHECK_EQUAL(pair.zero->ends == NULL, 1);
  CHECK_EQUAL(setrlimit(RLIMIT_NOFILE, &limit), 0);
  pair.events1 = open_evtchn(pair.one);
  disconnect(&pair);
  remove_host();
}

/* What reaches a masked port comes with the unmask, which needs no descriptor. */
static void test_no_descriptor_for_an_unmask(void) {
  make_host("1m", 2, &SMALL);
  struct pair pair = connect_two();
  for (int i = 0; i < 2; i++)
    CHECK_EQUAL(xt_evtchn_notify(pair.events0, (uint32_t)pair.port0), 0);
  CHECK_EQUAL(next_port(&pair), pair.port1);
  struct rlimit limit = use_up_descriptors();
  CHECK_EQUAL(xt_evtchn_unmask(pair.events1, (uint32_t)pair.port1), 0);
  CHECK_EQUAL(next_port(&pair), pair.port1);
  CHECK_EQUAL(setrlimit(RLIMIT_NOFILE, &limit), 0);
  disconnect(&pair);
  remove_host();
}

/* Nothing of a process that died is given up half-way: without descriptors the host buries nobody yet. */
static void test_no_descriptor_for_a_burial(void) {
  make_host("1m", 2, &SMALL);
  struct sim *zero = attach(0);
  pid_t child = fork();
  if (child == 0) {
    open_evtchn(attach(1));
    _exit(0);
  }
  CHECK_EQUAL(waitpid(child, NULL, 0), child);
  struct rlimit limit = use_up_descriptors();
  CHECK_EQUAL(xt_sim_sweep(zero), -EMFILE);
  CHECK_EQUAL(xt_sim_domain_destroy(zero, 1), -EMFILE);
  CHECK_EQUAL(setrlimit(RLIMIT_NOFILE, &limit), 0);
  struct xt_sim_item items[64];
  int32_t before = xt_sim_list(zero, items, 64);
  CHECK_EQUAL(xt_sim_sweep(zero), 0);
  CHECK_EQUAL(xt_sim_list(zero, items, 64), before - 2); /* its slot and its handle */
  xt_platform_close(zero);
  remove_host();
}

/* A FIFO of one page, as users have who hold many, is full of ports that nobody has read yet. */
static void test_full_fifo(void) {
  struct xt_sim_limits limits = {64, 32, 64, HANDLE_PORTS + 8, 16, 32};
  make_host("2m", 2, &limits);
  struct pair pair = connect_two();
  int fd = xt_evtchn_fd(pair.events1);
  CHECK_EQUAL(fcntl(fd, F_SETPIPE_SZ, 4096), 4096);
  for (int i = 0; i < 1024; i++) CHECK_EQUAL(write(fd, &i, sizeof i), sizeof i);
  CHECK_EQUAL(xt_evtchn_notify(pair.events0, (uint32_t)pair.port0), -EAGAIN);
  CHECK_EQUAL(xt_sim_deliver(pair.zero), 1);
  for (int i = 0; i < 1024; i++) CHECK_EQUAL(next_port(&pair), i);
  CHECK_EQUAL(xt_sim_deliver(pair.zero), 0);
  CHECK_EQUAL(next_port(&pair), pair.port1);
  disconnect(&pair);
  remove_host();
}

/* Sharing fails where the file system has no room, and nobody dies of SIGBUS; what is freed can be had again. */
static void test_full_file_system(void) {
  make_host("256k", 2, &(struct xt_sim_limits){256, 256, 64, 32, 16, 32});
  struct sim *one = attach(1);
  void *shares[256];
  double result = 0;
  uint8_t *memory;
  uint32_t ref, count = 0;
  for (; count < 256; count++) {
    result = share_pages(one, 0, 1, &ref, &memory);
    if (result < 0) break;
    shares[count] = (void *)(uintptr_t)result;
    memset(memory, 0xff, PAGE);
  }
  CHECK_EQUAL(result, -ENOSPC);
  CHECK(count > 4);
  CHECK_EQUAL(xt_sim_domain_create(dir, 2), -ENOSPC);
  CHECK_EQUAL((int)xt_sim_open(dir, 2, 1), -ESRCH);
  CHECK_EQUAL(xt_gntshr_unshare(shares[--count]), 0);
  void *again = ADDRESS(share_pages(one, 0, 1, &ref, &memory));
  CHECK_EQUAL(*memory, 0);
  CHECK_EQUAL(one->own->header->shared_pages, count + 1);
  xt_gntshr_unshare(again);
  while (count > 0) xt_gntshr_unshare(shares[--count]);
  CHECK_EQUAL(one->own->header->shared_pages, 0);
  xt_platform_close(one);
  remove_host();
}

static void test_full_file_system_for_a_file(void) {
  make_host("256k", 1, &SMALL);
  char name[96];
  snprintf(name, sizeof name, "%s/file", dir);
  int fd = open(name, O_RDWR | O_CREAT | O_CLOEXEC, 0600);
  CHECK(fd >= 0);
  CHECK_EQUAL(xt_memory_map(fd, 0, 1 << 20, 1), -ENOSPC);
  memset(ADDRESS(xt_memory_map(fd, 0, 4 * PAGE, 1)), 0xff, 4 * PAGE);
  close(fd);
  remove_host();
}

static uint32_t shared_pages(struct sim *sim, uint32_t domid) {
  struct domain *domain = sim_domain_get(sim, domid);
  uint32_t count = domain->header->shared_pages;
  sim_domain_put(domain);
  return count;
}

/* The host learns of a death by the end of a connection, which a child of a fork must not keep open. */
static void test_forked_child(void) {
  make_host("1m", 2, &SMALL);
  struct sockaddr_un address = {.sun_family = AF_UNIX};
  snprintf(address.sun_path, sizeof address.sun_path, "%s/host.sock", dir);
  int listener = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0), alive[2];
  CHECK_EQUAL(bind(listener, (struct sockaddr *)&address, sizeof address), 0);
  CHECK_EQUAL(listen(listener, 4), 0);
  CHECK_EQUAL(pipe(alive), 0);
  pid_t parent = fork();
  if (parent == 0) {
    double address;
    uint8_t *memory;
    uint32_t ref;
    struct sim *one = ADDRESS(xt_sim_open(dir, 1, 0));
    void *gntshr = ADDRESS(xt_gntshr_open(one));
    void *shared = ADDRESS(share_pages(one, 0, 1, &ref, &memory));
    if (fork() == 0) {
      /* Not attached: nothing it does changes what its parent holds. */
      CHECK_EQUAL(xt_gntshr_share(gntshr, 0, 1, 1, -1, -1, &ref, &address), -ENODEV);
      CHECK_EQUAL(xt_gntshr_unshare(shared), 0);
      xt_gntshr_close(gntshr);
      xt_platform_close(one);
      pid_t self = getpid();
      CHECK_EQUAL(write(alive[1], &self, sizeof self), sizeof self);
    }
    for (;;) pause();
  }
  close(alive[1]);
  char line[128];
  pid_t child;
  int connection = accept(listener, NULL, NULL);
  CHECK(connection >= 0 && read(connection, line, sizeof line) > 0);
  CHECK_EQUAL(read(alive[0], &child, sizeof child), sizeof child);
  struct sim *zero = attach(0);
  CHECK_EQUAL(zero->host->slots[1].in_use, 1);
  CHECK_EQUAL(shared_pages(zero, 1), 1);
  CHECK_EQUAL(kill(parent, SIGKILL), 0);
  CHECK_EQUAL(waitpid(parent, NULL, 0), parent);
  struct pollfd ended[2] = {{connection, POLLIN, 0}, {alive[0], POLLIN, 0}};
  CHECK_EQUAL(poll(ended, 1, 10000), 1);
  CHECK_EQUAL(read(connection, line, sizeof line), 0);
  CHECK_EQUAL(poll(ended + 1, 1, 0), 0); /* the child lives */
  CHECK_EQUAL(kill(child, SIGKILL), 0);
  CHECK_EQUAL(xt_sim_reap(zero, 1, zero->host->slots[1].generation), 0);
  CHECK_EQUAL(shared_pages(zero, 1), 0);
  xt_platform_close(zero);
  close(connection);
  close(listener);
  remove_host();
}

int main(void) {
  test_no_descriptor_for_an_event();
  test_no_descriptor_after_binding();
  test_no_descriptor_for_an_unmask();
  test_no_descriptor_for_a_burial();
  test_full_fifo();
  test_full_file_system();
  test_full_file_system_for_a_file();
  test_forked_child();
  return 0;
}
