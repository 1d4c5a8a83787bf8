/*
 * Calls every function of the libraries that ours replace, by Xen's own headers, in a domain that shares with itself:
 * what succeeds on Linux' devices succeeds, and what they refuse is refused with their error numbers. Status 0: all was
 * so.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <pthread.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>
#include <xencall.h>
#include <xenctrl.h>
#include <xendevicemodel.h>
#include <xenevtchn.h>
#include <xenforeignmemory.h>
#include <xengnttab.h>

enum { PAGE = 4096, SELF = 0, NO_PORT = -1 };

/* No other thread maps anything. */
static int is_alone = 1;

#define CHECK(condition)                                                        \
  do {                                                                          \
    if (!(condition)) {                                                         \
      fprintf(stderr, "%d: not so: %s (%m)\n", __LINE__, #condition);           \
      exit(1);                                                                  \
    }                                                                           \
  } while (0)
#define REFUSED(call, number) CHECK((errno = 0, (call)) && errno == (number))

static int is_readable(xenevtchn_handle *events) {
  struct pollfd polled = {.fd = xenevtchn_fd(events), .events = POLLIN};
  return poll(&polled, 1, 0) == 1;
}

static void event_channels(void) {
  xenevtchn_handle *one = xenevtchn_open(NULL, 0), *other = xenevtchn_open(NULL, XENEVTCHN_NO_CLOEXEC);
  CHECK(one && other);
  REFUSED(xenevtchn_open(NULL, 2) == NULL, EINVAL);
  REFUSED(xenevtchn_fdopen(NULL, 0, 0) == NULL, ENOSYS);
  REFUSED(xenevtchn_bind_virq(one, VIRQ_TIMER) == -1, ENOSYS);
  CHECK(xenevtchn_bind_virq(one, VIRQ_DOM_EXC) > 0 && !is_readable(one));
  int far = xenevtchn_bind_unbound_port(one, SELF), near = xenevtchn_bind_interdomain(other, SELF, (unsigned)far);
  CHECK(far > 0 && near > 0);
  CHECK(xenevtchn_pending(other) == near); /* the event of binding */
  CHECK(xenevtchn_unmask(other, (unsigned)near) == 0);
  CHECK(!is_readable(one) && xenevtchn_notify(other, (unsigned)near) == 0 && is_readable(one));
  CHECK(xenevtchn_pending(one) == far && !is_readable(one));
  CHECK(xenevtchn_notify(other, (unsigned)near) == 0 && !is_readable(one)); /* masked */
  CHECK(xenevtchn_unmask(one, (unsigned)far) == 0 && xenevtchn_pending(one) == far);
  REFUSED(xenevtchn_notify(one, (unsigned)near) == -1, ENOTCONN);
  REFUSED(xenevtchn_unbind(one, (unsigned)near) == -1, ENOTCONN);
  REFUSED(xenevtchn_bind_interdomain(one, 99, 1) == -1, ESRCH);
  CHECK(xenevtchn_unbind(other, (unsigned)near) == 0);
  CHECK(xenevtchn_restrict(one, 1) == 0);
  REFUSED(xenevtchn_restrict(one, 1) == -1, EACCES);
  REFUSED(xenevtchn_bind_unbound_port(one, SELF) == -1, EACCES);
  CHECK(xenevtchn_close(one) == 0 && xenevtchn_close(other) == 0);
}

/* A descriptor blocks unless the program changes that, and goes to children of exec only if asked to. */
static void *takes_an_event(void *events) { return (void *)(intptr_t)xenevtchn_pending(events); }

static void waits(void) {
  xenevtchn_handle *events = xenevtchn_open(NULL, 0), *kept = xenevtchn_open(NULL, XENEVTCHN_NO_CLOEXEC);
  int fd = xenevtchn_fd(events), flags = fcntl(fd, F_GETFL);
  int far = xenevtchn_bind_unbound_port(events, SELF), near = xenevtchn_bind_interdomain(kept, SELF, (unsigned)far);
  CHECK(far > 0 && near > 0 && !(flags & O_NONBLOCK));
  CHECK((fcntl(fd, F_GETFD) & FD_CLOEXEC) && !(fcntl(xenevtchn_fd(kept), F_GETFD) & FD_CLOEXEC));
  pthread_t waiter;
  void *port;
  CHECK(pthread_create(&waiter, NULL, takes_an_event, events) == 0);
  CHECK(xenevtchn_notify(kept, (unsigned)near) == 0);
  CHECK(pthread_join(waiter, &port) == 0 && (intptr_t)port == far);
  CHECK(fcntl(fd, F_SETFL, flags | O_NONBLOCK) == 0);
  REFUSED(xenevtchn_pending(events) == -1, EAGAIN);
  CHECK(xenevtchn_close(events) == 0 && xenevtchn_close(kept) == 0);
}

static void mappings(xengnttab_handle *table, uint32_t *refs, uint8_t *shared) {
  uint32_t domids[2] = {SELF, SELF}, backwards[2] = {refs[1], refs[0]};
  shared[0] = 10;
  shared[PAGE] = 11;
  uint8_t *page = xengnttab_map_grant_ref(table, SELF, refs[0], PROT_READ);
  uint8_t *two = xengnttab_map_grant_refs(table, 2, domids, backwards, PROT_READ | PROT_WRITE);
  uint8_t *both = xengnttab_map_domain_grant_refs(table, 2, SELF, refs, PROT_READ | PROT_WRITE);
  CHECK(page && two && both);
  CHECK(page[0] == 10 && two[0] == 11 && two[PAGE] == 10 && both[PAGE] == 11);
  two[1] = 77;
  CHECK(shared[PAGE + 1] == 77);
  REFUSED(xengnttab_unmap(table, two, 1) == -1, EINVAL);
  REFUSED(xengnttab_unmap(table, two + PAGE, 1) == -1, EINVAL);
  CHECK(xengnttab_unmap(table, page, 1) == 0 && xengnttab_unmap(table, two, 2) == 0);
  /* Another thread's mapping may already be where this one was. */
  if (is_alone) REFUSED(xengnttab_unmap(table, two, 2) == -1, EINVAL);
  CHECK(xengnttab_unmap(table, both, 2) == 0);
  REFUSED(xengnttab_map_grant_ref(table, SELF, 20000, PROT_READ) == NULL, EINVAL);
  CHECK(xengnttab_set_max_grants(table, 100) == 0);
  REFUSED(xengnttab_fd(table) == -1, EOPNOTSUPP);
}

static void dma_buffers(xengnttab_handle *table, uint32_t *refs) {
  uint32_t fd = 0;
  REFUSED(xengnttab_dmabuf_exp_from_refs(table, SELF, 0, 1, refs, &fd) == -1, ENOTTY);
  REFUSED(xengnttab_dmabuf_exp_wait_released(table, fd, 1) == -1, ENOTTY);
  REFUSED(xengnttab_dmabuf_imp_to_refs(table, SELF, fd, 1, refs) == -1, ENOTTY);
  REFUSED(xengnttab_dmabuf_imp_release(table, fd) == -1, ENOTTY);
}

static void copies(xengnttab_handle *table, const uint32_t *refs, uint8_t *shared) {
  char local[16] = "from us";
  xengnttab_grant_copy_segment_t segments[3] = {{.len = 8, .flags = GNTCOPY_dest_gref},
                                                {.len = 8, .flags = GNTCOPY_source_gref},
                                                {.len = 8, .flags = GNTCOPY_source_gref}};
  for (int i = 1; i < 3; i++) {
    segments[i].source.foreign.ref = i == 1 ? refs[0] : 20000;
    segments[i].source.foreign.offset = 100;
    segments[i].dest.virt = local + 8;
  }
  segments[0].source.virt = local;
  segments[0].dest.foreign.ref = refs[0];
  segments[0].dest.foreign.offset = 100;
  CHECK(xengnttab_grant_copy(table, 3, segments) == 0);
  CHECK(segments[0].status == GNTST_okay && segments[1].status == GNTST_okay && segments[2].status != GNTST_okay);
  CHECK(strcmp((char *)shared + 100, "from us") == 0 && strcmp(local + 8, "from us") == 0);
  CHECK(xengnttab_grant_copy(table, 0, NULL) == 0);
}

/* The byte is cleared and the port notified, by unsharing and by unmapping. */
static void notifies(xengnttab_handle *table, xengntshr_handle *sharer) {
  xenevtchn_handle *ours = xenevtchn_open(NULL, 0), *theirs = xenevtchn_open(NULL, 0);
  int far = xenevtchn_bind_unbound_port(theirs, SELF), near = xenevtchn_bind_interdomain(ours, SELF, (unsigned)far);
  uint32_t ref;
  uint8_t *shared = xengntshr_share_page_notify(sharer, SELF, &ref, 1, 20, (unsigned)near);
  uint8_t *mapped = xengnttab_map_grant_ref_notify(table, SELF, ref, PROT_READ | PROT_WRITE, 21, (unsigned)near);
  uint8_t *plain = xengnttab_map_grant_ref_notify(table, SELF, ref, PROT_READ | PROT_WRITE, PAGE, (unsigned)NO_PORT);
  CHECK(shared && mapped && plain);
  memset(plain, 1, 32);
  CHECK(xengnttab_unmap(table, mapped, 1) == 0 && plain[21] == 0 && plain[20] == 1 && xenevtchn_pending(theirs) == far);
  CHECK(xenevtchn_unmask(theirs, (unsigned)far) == 0);
  CHECK(xengntshr_unshare(sharer, shared, 1) == 0 && plain[20] == 0 && xenevtchn_pending(theirs) == far);
  CHECK(xengnttab_unmap(table, plain, 1) == 0);
  CHECK(xenevtchn_close(ours) == 0 && xenevtchn_close(theirs) == 0);
}

static void grants(void) {
  xengnttab_handle *table = xengnttab_open(NULL, 0);
  xengntshr_handle *sharer = xengntshr_open(NULL, 0);
  uint32_t refs[2];
  CHECK(table && sharer);
  uint8_t *shared = xengntshr_share_pages(sharer, SELF, 2, refs, 1);
  CHECK(shared);
  mappings(table, refs, shared);
  dma_buffers(table, refs);
  copies(table, refs, shared);
  notifies(table, sharer);
  REFUSED(xengntshr_unshare(sharer, shared, 1) == -1, EINVAL);
  CHECK(xengntshr_unshare(sharer, shared, 2) == 0);
  REFUSED(xengntshr_share_pages(sharer, SELF, 100000, refs, 1) == NULL, ENOSPC);
  REFUSED(xengntshr_fd(sharer) == -1, EOPNOTSUPP);
  CHECK(xengnttab_close(table) == 0 && xengntshr_close(sharer) == 0);
}

/* The real libxenctrl opens on top of ours, and all that it asks is refused. */
static void hypercalls(void) {
  xc_interface *xc = xc_interface_open(NULL, NULL, 0);
  xc_domaininfo_t info;
  CHECK(xc);
  CHECK(xc_domain_getinfolist(xc, 0, 1, &info) < 0);
  CHECK(xc_interface_close(xc) == 0);

  xencall_handle *call = xencall_open(NULL, 0);
  uint8_t *buffer = xencall_alloc_buffer(call, 100), *pages = xencall_alloc_buffer_pages(call, 2);
  CHECK(buffer && ((uintptr_t)buffer & (PAGE - 1)) == 0);
  CHECK(pages && ((uintptr_t)pages & (PAGE - 1)) == 0 && pages[0] == 0 && pages[2 * PAGE - 1] == 0);
  xencall_free_buffer(call, buffer);
  xencall_free_buffer_pages(call, pages, 2);
  CHECK(xencall_buffers_never_fault(call) == 1);
  REFUSED(xencall_fd(call) == -1, ENOSYS);
  REFUSED(xencall0(call, 1) == -1, ENOSYS);
  REFUSED(xencall1(call, 1, 2) == -1, ENOSYS);
  REFUSED(xencall2(call, 1, 2, 3) == -1, ENOSYS);
  REFUSED(xencall2L(call, 1, 2, 3) == -1, ENOSYS);
  REFUSED(xencall3(call, 1, 2, 3, 4) == -1, ENOSYS);
  REFUSED(xencall4(call, 1, 2, 3, 4, 5) == -1, ENOSYS);
  REFUSED(xencall5(call, 1, 2, 3, 4, 5, 6) == -1, ENOSYS);
  CHECK(xencall_close(call) == 0);
}

static void foreign_memory(void) {
  xenforeignmemory_handle *memory = xenforeignmemory_open(NULL, 0);
  const xen_pfn_t pfn = 1;
  void *wanted = NULL;
  size_t size;
  CHECK(memory);
  REFUSED(xenforeignmemory_map(memory, 1, PROT_READ, 1, &pfn, NULL) == NULL, ENOSYS);
  REFUSED(xenforeignmemory_map2(memory, 1, NULL, PROT_READ, 0, 1, &pfn, NULL) == NULL, ENOSYS);
  REFUSED(xenforeignmemory_map_resource(memory, 1, 0, 0, 0, 1, &wanted, PROT_READ, 0) == NULL, EOPNOTSUPP);
  REFUSED(xenforeignmemory_map_resource(memory, 1, 0, 0, 0, 1, &wanted, PROT_READ, MAP_FIXED) == NULL, EINVAL);
  REFUSED(xenforeignmemory_resource_size(memory, 1, 0, 0, &size) == -1, EOPNOTSUPP);
  CHECK(xenforeignmemory_unmap_resource(memory, NULL) == 0);
  void *page = mmap(NULL, PAGE, PROT_READ, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  REFUSED(xenforeignmemory_unmap(memory, (char *)page + 1, 1) == -1, EINVAL);
  CHECK(xenforeignmemory_unmap(memory, page, 1) == 0 && madvise(page, PAGE, MADV_NORMAL) == -1);
  CHECK(xenforeignmemory_restrict(memory, 1) == 0 && xenforeignmemory_close(memory) == 0);
}

static void device_model(void) {
  xendevicemodel_handle *model = xendevicemodel_open(NULL, 0);
  struct xen_dm_op_modified_memory_extent extent = {.nr = 1};
  ioservid_t id;
  xen_pfn_t pfn;
  evtchn_port_t port;
  unsigned int vcpus;
  unsigned long bitmap;
  CHECK(model);
#define NO_HYPERCALL(name, ...) REFUSED(xendevicemodel_##name(model, 1, __VA_ARGS__) == -1, ENOSYS)
  NO_HYPERCALL(create_ioreq_server, 0, &id);
  NO_HYPERCALL(get_ioreq_server_info, 0, &pfn, &pfn, &port);
  NO_HYPERCALL(map_io_range_to_ioreq_server, 0, 1, 0, 1);
  NO_HYPERCALL(unmap_io_range_from_ioreq_server, 0, 1, 0, 1);
  NO_HYPERCALL(map_mem_type_to_ioreq_server, 0, 0, 0);
  NO_HYPERCALL(map_pcidev_to_ioreq_server, 0, 0, 0, 1, 0);
  NO_HYPERCALL(unmap_pcidev_from_ioreq_server, 0, 0, 0, 1, 0);
  NO_HYPERCALL(destroy_ioreq_server, 0);
  NO_HYPERCALL(set_ioreq_server_state, 0, 1);
  NO_HYPERCALL(set_pci_intx_level, 0, 0, 1, 0, 1);
  NO_HYPERCALL(set_isa_irq_level, 1, 1);
  NO_HYPERCALL(set_irq_level, 1, 1);
  NO_HYPERCALL(set_pci_link_route, 0, 1);
  NO_HYPERCALL(inject_msi, 0xfee00000, 1);
  NO_HYPERCALL(track_dirty_vram, 1, 1, &bitmap);
  NO_HYPERCALL(modified_memory, 1, 1);
  NO_HYPERCALL(modified_memory_bulk, &extent, 1);
  NO_HYPERCALL(set_mem_type, HVMMEM_ram_rw, 1, 1);
  NO_HYPERCALL(inject_event, 0, 32, 0, 0, 0, 0);
  NO_HYPERCALL(shutdown, 0);
  NO_HYPERCALL(relocate_memory, 1, 1, 2);
  NO_HYPERCALL(pin_memory_cacheattr, 0, PAGE, 6);
  NO_HYPERCALL(nr_vcpus, &vcpus);
  CHECK(xendevicemodel_restrict(model, 1) == 0 && xendevicemodel_close(model) == 0);
}

/* One call maps pages of two domains: our own, and that of a child that runs in domain 1. */
static void two_domains(void) {
  int told[2], ended[2], status;
  CHECK(pipe(told) == 0 && pipe(ended) == 0);
  pid_t child = fork();
  if (child == 0) {
    char end;
    uint32_t ref;
    CHECK(close(ended[1]) == 0 && setenv("XENTOOL_DOMID", "1", 1) == 0);
    xengntshr_handle *sharer = xengntshr_open(NULL, 0);
    uint8_t *page = sharer ? xengntshr_share_pages(sharer, SELF, 1, &ref, 1) : NULL;
    CHECK(page);
    page[0] = 21;
    CHECK(write(told[1], &ref, sizeof ref) == sizeof ref && read(ended[0], &end, 1) == 0 && page[1] == 22);
    CHECK(xengntshr_unshare(sharer, page, 1) == 0 && xengntshr_close(sharer) == 0);
    exit(0);
  }
  xengnttab_handle *table = xengnttab_open(NULL, 0);
  xengntshr_handle *sharer = xengntshr_open(NULL, 0);
  uint32_t refs[2], domids[2] = {SELF, 1};
  CHECK(close(told[1]) == 0 && read(told[0], &refs[1], sizeof refs[1]) == sizeof refs[1]);
  uint8_t *own = xengntshr_share_pages(sharer, SELF, 1, refs, 1);
  uint8_t *both = xengnttab_map_grant_refs(table, 2, domids, refs, PROT_READ | PROT_WRITE);
  CHECK(own && both);
  own[0] = 20;
  CHECK(both[0] == 20 && both[PAGE] == 21);
  both[PAGE + 1] = 22;
  domids[1] = 99;
  REFUSED(xengnttab_map_grant_refs(table, 2, domids, refs, PROT_READ) == NULL, EINVAL);
  CHECK(xengnttab_unmap(table, both, 2) == 0 && xengntshr_unshare(sharer, own, 1) == 0);
  CHECK(close(ended[1]) == 0 && waitpid(child, &status, 0) == child && status == 0);
  CHECK(close(told[0]) == 0 && close(ended[0]) == 0);
  CHECK(xengnttab_close(table) == 0 && xengntshr_close(sharer) == 0);
}

/* A child has lost its parent's handles, and may open its own. */
static void forks(void) {
  xenevtchn_handle *events = xenevtchn_open(NULL, 0);
  int status, port = xenevtchn_bind_unbound_port(events, SELF);
  CHECK(port > 0);
  pid_t child = fork();
  if (child == 0) {
    REFUSED(xenevtchn_bind_unbound_port(events, SELF) == -1, ENODEV);
    CHECK(xenevtchn_close(events) == 0);
    event_channels();
    grants();
    _exit(0);
  }
  CHECK(waitpid(child, &status, 0) == child && status == 0);
  CHECK(xenevtchn_unbind(events, (unsigned)port) == 0 && xenevtchn_close(events) == 0);
}

static void *all(void *unused) {
  for (int i = 0; i < 20; i++) {
    event_channels();
    waits();
    grants();
  }
  return unused;
}

int main(void) {
  pthread_t threads[4];
  event_channels();
  waits();
  grants();
  two_domains();
  hypercalls();
  foreign_memory();
  device_model();
  is_alone = 0;
  for (int i = 0; i < 4; i++) CHECK(pthread_create(&threads[i], NULL, all, NULL) == 0);
  for (int i = 0; i < 4; i++) CHECK(pthread_join(threads[i], NULL) == 0);
  is_alone = 1;
  forks();
  return 0;
}
