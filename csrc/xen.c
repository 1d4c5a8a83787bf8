/*
 * Real Xen on Linux: /dev/xen/evtchn, /dev/xen/gntdev and /dev/xen/gntalloc, one ioctl a function. Request
 * numbers and layouts are those of the kernel's uapi headers xen/evtchn.h, gntdev.h and gntalloc.h; they
 * are spelled out because those headers are not installed everywhere.
 */
#define _GNU_SOURCE
#include "xen_layouts.h"
#include "xentool.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <unistd.h>

enum {
  IOCTL_EVTCHN_BIND_INTERDOMAIN = 0x00084501,
  IOCTL_EVTCHN_BIND_UNBOUND_PORT = 0x00044502,
  IOCTL_EVTCHN_UNBIND = 0x00044503,
  IOCTL_EVTCHN_NOTIFY = 0x00044504,
  IOCTL_EVTCHN_RESTRICT_DOMID = 0x00024506,
  IOCTL_GNTDEV_MAP_GRANT_REF = 0x00184700,
  IOCTL_GNTDEV_UNMAP_GRANT_REF = 0x00104701,
  IOCTL_GNTDEV_SET_UNMAP_NOTIFY = 0x00104707,
  IOCTL_GNTDEV_GRANT_COPY = 0x00104708,
  IOCTL_GNTALLOC_ALLOC_GREF = 0x00184705,
  IOCTL_GNTALLOC_DEALLOC_GREF = 0x00104706,
  IOCTL_GNTALLOC_SET_UNMAP_NOTIFY = 0x00104707,
  NOTIFY_CLEAR_BYTE = 1,
  NOTIFY_SEND_EVENT = 2,
  MAP_RETRIES = 1000, /* a paged-out grant answers EAGAIN: about a second of them */
};
enum { PAGE = 4096 };

static int32_t call(int32_t fd, unsigned long request, void *argument) {
  int answer;
  do answer = ioctl(fd, request, argument);
  while (answer < 0 && errno == EINTR);
  return answer < 0 ? -errno : answer;
}

int32_t xt_xen_evtchn_bind_interdomain(int32_t fd, uint32_t domid, uint32_t port) {
  uint32_t argument[2] = {domid, port};
  return call(fd, IOCTL_EVTCHN_BIND_INTERDOMAIN, argument);
}

int32_t xt_xen_evtchn_bind_unbound(int32_t fd, uint32_t domid) {
  return call(fd, IOCTL_EVTCHN_BIND_UNBOUND_PORT, &domid);
}
int32_t xt_xen_evtchn_unbind(int32_t fd, uint32_t port) { return call(fd, IOCTL_EVTCHN_UNBIND, &port); }
int32_t xt_xen_evtchn_notify(int32_t fd, uint32_t port) { return call(fd, IOCTL_EVTCHN_NOTIFY, &port); }

int32_t xt_xen_evtchn_unmask(int32_t fd, uint32_t port) {
  return write(fd, &port, sizeof port) == (ssize_t)sizeof port ? 0 : -errno;
}

int32_t xt_xen_evtchn_restrict(int32_t fd, uint32_t domid) {
  uint16_t argument = (uint16_t)domid;
  return call(fd, IOCTL_EVTCHN_RESTRICT_DOMID, &argument);
}

int32_t xt_evtchn_pending(int32_t fd, uint32_t *ports, uint32_t max) {
  uint32_t bytes = max * 4 > PAGE ? PAGE : max * 4;
  ssize_t got = read(fd, ports, bytes);
  if (got >= 0) return (int32_t)(got / 4);
  return errno == EAGAIN || errno == EINTR ? 0 : -errno;
}

static int32_t set_notify(int32_t fd, unsigned long request, uint64_t index, int64_t clear_byte, int64_t port) {
  struct { uint64_t index; uint32_t action, port; } notify = {index, 0, 0};
  if (clear_byte >= 0) {
    notify.index += (uint64_t)clear_byte;
    notify.action |= NOTIFY_CLEAR_BYTE;
  }
  if (port >= 0) {
    notify.port = (uint32_t)port;
    notify.action |= NOTIFY_SEND_EVENT;
  }
  return call(fd, request, &notify);
}

double xt_xen_grant_map(int32_t fd, uint32_t domid, const uint32_t *refs, uint32_t count, int32_t writable,
                        uint64_t *index) {
  struct { uint32_t count, pad; uint64_t index; struct { uint32_t domid, ref; } refs[]; } *map;
  int protection = writable ? PROT_READ | PROT_WRITE : PROT_READ;
  if (count == 0) return -EINVAL;
  map = calloc(1, sizeof *map + count * sizeof map->refs[0]);
  if (!map) return -ENOMEM;
  map->count = count;
  for (uint32_t i = 0; i < count; i++) {
    map->refs[i].domid = domid;
    map->refs[i].ref = refs[i];
  }
  int32_t error = call(fd, IOCTL_GNTDEV_MAP_GRANT_REF, map);
  *index = map->index;
  free(map);
  if (error < 0) return error;
  void *address = MAP_FAILED;
  for (int tries = 0; address == MAP_FAILED && tries < MAP_RETRIES; tries++) {
    address = mmap(NULL, (size_t)count * PAGE, protection, MAP_SHARED, fd, (off_t)*index);
    if (address != MAP_FAILED || errno != EAGAIN) break;
    usleep(1000);
  }
  if (address != MAP_FAILED) return (double)(uintptr_t)address;
  error = -errno;
  struct { uint64_t index; uint32_t count, pad; } unmap = {*index, count, 0};
  call(fd, IOCTL_GNTDEV_UNMAP_GRANT_REF, &unmap);
  return error;
}

int32_t xt_xen_grant_unmap(int32_t fd, void *address, uint64_t index, uint32_t count) {
  struct { uint64_t index; uint32_t count, pad; } unmap = {index, count, 0};
  int32_t error = munmap(address, (size_t)count * PAGE) ? -errno : 0;
  int32_t unmap_error = call(fd, IOCTL_GNTDEV_UNMAP_GRANT_REF, &unmap);
  return error ? error : unmap_error;
}

int32_t xt_xen_grant_unmap_notify(int32_t fd, uint64_t index, int64_t clear_byte, int64_t port) {
  return set_notify(fd, IOCTL_GNTDEV_SET_UNMAP_NOTIFY, index, clear_byte, port);
}

int32_t xt_xen_grant_copy(int32_t fd, struct xt_copy_segment *segments, uint32_t count) {
  struct { uint32_t count; struct xt_copy_segment *segments; } copy = {count, segments};
  int32_t error = call(fd, IOCTL_GNTDEV_GRANT_COPY, &copy);
  /* A page that is paged out is on its way back: try those segments again for about a second. */
  for (uint32_t i = 0, tries = 0; error >= 0 && i < count && tries < MAP_RETRIES;) {
    if (segments[i].status != GNTST_EAGAIN) {
      i++;
      continue;
    }
    usleep(1000);
    tries++;
    copy.count = 1;
    copy.segments = &segments[i];
    error = call(fd, IOCTL_GNTDEV_GRANT_COPY, &copy);
  }
  return error;
}

double xt_xen_share(int32_t fd, uint32_t domid, uint32_t count, int32_t writable, uint32_t *refs, uint64_t *index) {
  struct { uint16_t domid, flags; uint32_t count; uint64_t index; uint32_t refs[]; } *alloc;
  if (count == 0) return -EINVAL;
  alloc = calloc(1, sizeof *alloc + count * sizeof alloc->refs[0]);
  if (!alloc) return -ENOMEM;
  alloc->domid = (uint16_t)domid;
  alloc->flags = writable ? 1 : 0;
  alloc->count = count;
  int32_t error = call(fd, IOCTL_GNTALLOC_ALLOC_GREF, alloc);
  *index = alloc->index;
  if (error >= 0) memcpy(refs, alloc->refs, count * sizeof refs[0]);
  free(alloc);
  if (error < 0) return error;
  void *address = mmap(NULL, (size_t)count * PAGE, PROT_READ | PROT_WRITE, MAP_SHARED, fd, (off_t)*index);
  if (address != MAP_FAILED) return (double)(uintptr_t)address;
  error = -errno;
  struct { uint64_t index; uint32_t count, pad; } dealloc = {*index, count, 0};
  call(fd, IOCTL_GNTALLOC_DEALLOC_GREF, &dealloc);
  return error;
}

int32_t xt_xen_share_notify(int32_t fd, uint64_t index, int64_t clear_byte, int64_t port) {
  return set_notify(fd, IOCTL_GNTALLOC_SET_UNMAP_NOTIFY, index, clear_byte, port);
}

/* The references are given up first: the kernel frees each page once nobody maps it any more. */
int32_t xt_xen_unshare(int32_t fd, void *address, uint64_t index, uint32_t count) {
  struct { uint64_t index; uint32_t count, pad; } dealloc = {index, count, 0};
  int32_t error = call(fd, IOCTL_GNTALLOC_DEALLOC_GREF, &dealloc);
  if (munmap(address, (size_t)count * PAGE)) return -errno;
  return error < 0 ? error : 0;
}
