/*
 * Real Xen on Linux: /dev/xen/evtchn, /dev/xen/gntdev and /dev/xen/gntalloc. Request numbers and layouts come from the
 * kernel's uapi headers xen/evtchn.h, gntdev.h and gntalloc.h. They are spelled out because those headers are not
 * installed everywhere.
 */
#define _GNU_SOURCE
#include "layouts.h"
#include "platform.h"

#include <errno.h>
#include <fcntl.h>
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
  MAP_RETRIES = 1000, /* retries on EAGAIN (a paged-out grant): about a second */
};

static int32_t call(int32_t fd, unsigned long request, void *argument) {
  int answer;
  do answer = ioctl(fd, request, argument);
  while (answer < 0 && errno == EINTR);
  return answer < 0 ? -errno : answer;
}

/* ---- devices ---- */

/* An open device. Pages mapped through it need it for their unmapping, so it is closed with the last of them. */
struct device {
  int fd;
  uint32_t users;
};

struct linux_platform {
  struct platform base;
  int evtchn, gntdev; /* what is open already, or -1 */
};

/* The descriptor of a device; another one of `given`, should that be open already. */
static int descriptor_of(const char *path, int given, int flags) {
  return given >= 0 ? fcntl(given, F_DUPFD_CLOEXEC, 0) : open(path, O_RDWR | flags);
}

static int32_t open_device(const char *path, int given, struct device **device) {
  *device = calloc(1, sizeof **device);
  if (!*device) return -ENOMEM;
  int fd = descriptor_of(path, given, O_CLOEXEC);
  int32_t error = fd < 0 ? -errno : 0;
  **device = (struct device){fd, 1};
  if (error) free(*device);
  return error;
}

static void retain(struct device *device) { __atomic_add_fetch(&device->users, 1, __ATOMIC_RELAXED); }

static void release(struct device *device) {
  if (__atomic_sub_fetch(&device->users, 1, __ATOMIC_ACQ_REL) > 0) return;
  close(device->fd);
  free(device);
}

static int32_t linux_close(struct platform *platform) {
  free(platform);
  return 0;
}

/* ---- event channels ---- */

static int32_t linux_evtchn_open(struct platform *platform, uint32_t flags, struct evtchn **evtchn) {
  int nonblock = flags & XT_EVTCHN_NONBLOCK ? O_NONBLOCK : 0, cloexec = flags & XT_EVTCHN_KEEP ? 0 : O_CLOEXEC;
  *evtchn = calloc(1, sizeof **evtchn);
  if (!*evtchn) return -ENOMEM;
  int fd = descriptor_of("/dev/xen/evtchn", ((struct linux_platform *)platform)->evtchn, nonblock | cloexec);
  int32_t error = fd < 0 ? -errno : 0;
  **evtchn = (struct evtchn){platform->ops, fd};
  if (error) free(*evtchn);
  return error;
}

static int32_t linux_evtchn_close(struct evtchn *evtchn) {
  int32_t error = close(evtchn->fd) ? -errno : 0;
  free(evtchn);
  return error;
}

static int32_t linux_bind_interdomain(struct evtchn *evtchn, uint32_t domid, uint32_t port) {
  uint32_t argument[2] = {domid, port};
  return call(evtchn->fd, IOCTL_EVTCHN_BIND_INTERDOMAIN, argument);
}

static int32_t linux_bind_unbound(struct evtchn *evtchn, uint32_t domid) {
  return call(evtchn->fd, IOCTL_EVTCHN_BIND_UNBOUND_PORT, &domid);
}

static int32_t linux_unbind(struct evtchn *evtchn, uint32_t port) {
  return call(evtchn->fd, IOCTL_EVTCHN_UNBIND, &port);
}

static int32_t linux_notify(struct evtchn *evtchn, uint32_t port) {
  return call(evtchn->fd, IOCTL_EVTCHN_NOTIFY, &port);
}

static int32_t linux_unmask(struct evtchn *evtchn, uint32_t port) {
  return write(evtchn->fd, &port, sizeof port) == (ssize_t)sizeof port ? 0 : -errno;
}

static int32_t linux_restrict(struct evtchn *evtchn, uint32_t domid) {
  uint16_t argument = (uint16_t)domid;
  return call(evtchn->fd, IOCTL_EVTCHN_RESTRICT_DOMID, &argument);
}

/* ---- mappings and shares ---- */

/* Pages that gntdev or gntalloc knows by `index`. */
struct linux_pages {
  struct pages base;
  struct device *device;
  uint64_t index;
  uint32_t count;
};

static int32_t forget_index(int fd, unsigned long request, uint64_t index, uint32_t count) {
  struct { uint64_t index; uint32_t count, pad; } argument = {index, count, 0};
  return call(fd, request, &argument);
}

static int32_t set_notify(const struct linux_pages *pages, unsigned long request, struct notify notify) {
  struct { uint64_t index; uint32_t action, port; } argument = {pages->index, 0, 0};
  if (notify.clear_byte >= 0) {
    argument.index += (uint64_t)notify.clear_byte;
    argument.action |= NOTIFY_CLEAR_BYTE;
  }
  if (notify.port >= 0) {
    argument.port = (uint32_t)notify.port;
    argument.action |= NOTIFY_SEND_EVENT;
  }
  return argument.action ? call(pages->device->fd, request, &argument) : 0;
}

/* EAGAIN means that a page of the peer is paged out and on its way back. */
static int32_t map_index(struct linux_pages *pages, int protection) {
  void *address = MAP_FAILED;
  for (int tries = 0; tries < MAP_RETRIES; tries++) {
    address = mmap(NULL, (size_t)pages->count * PAGE, protection, MAP_SHARED, pages->device->fd, (off_t)pages->index);
    if (address != MAP_FAILED || errno != EAGAIN) break;
    usleep(1000);
  }
  pages->base.address = address;
  return address == MAP_FAILED ? -errno : 0;
}

/* ---- grants of others ---- */

struct linux_gnttab {
  struct gnttab base;
  struct device *device;
};

static int32_t linux_gnttab_open(struct platform *platform, struct gnttab **gnttab) {
  struct linux_gnttab *opened = calloc(1, sizeof *opened);
  if (!opened) return -ENOMEM;
  opened->base.ops = platform->ops;
  int32_t error = open_device("/dev/xen/gntdev", ((struct linux_platform *)platform)->gntdev, &opened->device);
  if (error) free(opened);
  else *gnttab = &opened->base;
  return error;
}

static int32_t linux_gnttab_close(struct gnttab *gnttab) {
  struct linux_gnttab *opened = (struct linux_gnttab *)gnttab;
  release(opened->device);
  free(opened);
  return 0;
}

static int32_t map_grants(int fd, const uint32_t *domids, const uint32_t *refs, uint32_t count, uint64_t *index) {
  struct { uint32_t count, pad; uint64_t index; struct { uint32_t domid, ref; } refs[]; } *map;
  map = calloc(1, sizeof *map + count * sizeof map->refs[0]);
  if (!map) return -ENOMEM;
  map->count = count;
  for (uint32_t i = 0; i < count; i++) {
    map->refs[i].domid = domids[i];
    map->refs[i].ref = refs[i];
  }
  int32_t error = call(fd, IOCTL_GNTDEV_MAP_GRANT_REF, map);
  *index = map->index;
  free(map);
  return error < 0 ? error : 0;
}

static int32_t unmap(struct linux_pages *pages) {
  int32_t error = munmap(pages->base.address, (size_t)pages->count * PAGE) ? -errno : 0;
  int32_t forgotten = forget_index(pages->device->fd, IOCTL_GNTDEV_UNMAP_GRANT_REF, pages->index, pages->count);
  return error ? error : forgotten;
}

static int32_t linux_gnttab_unmap(struct pages *base) {
  struct linux_pages *pages = (struct linux_pages *)base;
  int32_t error = unmap(pages);
  release(pages->device);
  free(pages);
  return error;
}

static int32_t linux_gnttab_map(struct gnttab *gnttab, const uint32_t *domids, const uint32_t *refs, uint32_t count,
                                int writable, struct notify notify, struct pages **mapped) {
  struct device *device = ((struct linux_gnttab *)gnttab)->device;
  struct linux_pages *pages = calloc(1, sizeof *pages);
  if (!pages) return -ENOMEM;
  *pages = (struct linux_pages){.base.ops = gnttab->ops, .device = device, .count = count};
  int32_t error = map_grants(device->fd, domids, refs, count, &pages->index);
  if (error == 0) {
    error = map_index(pages, writable ? PROT_READ | PROT_WRITE : PROT_READ);
    if (error) {
      forget_index(device->fd, IOCTL_GNTDEV_UNMAP_GRANT_REF, pages->index, count);
    } else {
      error = set_notify(pages, IOCTL_GNTDEV_SET_UNMAP_NOTIFY, notify);
      if (error) unmap(pages);
    }
  }
  if (error) {
    free(pages);
    return error;
  }
  retain(device);
  *mapped = &pages->base;
  return 0;
}

static int32_t linux_gnttab_copy(struct gnttab *gnttab, struct xt_copy_segment *segments, uint32_t count) {
  int fd = ((struct linux_gnttab *)gnttab)->device->fd;
  struct { uint32_t count; struct xt_copy_segment *segments; } copy = {count, segments};
  int32_t error = call(fd, IOCTL_GNTDEV_GRANT_COPY, &copy);
  /* A paged-out page is on its way back: retry those segments for about a second. */
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

/* ---- grants of our own ---- */

struct linux_gntshr {
  struct gntshr base;
  struct device *device;
};

static int32_t linux_gntshr_open(struct platform *platform, struct gntshr **gntshr) {
  struct linux_gntshr *opened = calloc(1, sizeof *opened);
  if (!opened) return -ENOMEM;
  opened->base.ops = platform->ops;
  int32_t error = open_device("/dev/xen/gntalloc", -1, &opened->device);
  if (error) free(opened);
  else *gntshr = &opened->base;
  return error;
}

static int32_t linux_gntshr_close(struct gntshr *gntshr) {
  struct linux_gntshr *opened = (struct linux_gntshr *)gntshr;
  release(opened->device);
  free(opened);
  return 0;
}

static int32_t allocate_grants(int fd, uint32_t domid, uint32_t count, int writable, uint32_t *refs,
                               uint64_t *index) {
  struct { uint16_t domid, flags; uint32_t count; uint64_t index; uint32_t refs[]; } *alloc;
  alloc = calloc(1, sizeof *alloc + count * sizeof alloc->refs[0]);
  if (!alloc) return -ENOMEM;
  alloc->domid = (uint16_t)domid;
  alloc->flags = writable ? 1 : 0;
  alloc->count = count;
  int32_t error = call(fd, IOCTL_GNTALLOC_ALLOC_GREF, alloc);
  *index = alloc->index;
  if (error >= 0) memcpy(refs, alloc->refs, count * sizeof refs[0]);
  free(alloc);
  return error < 0 ? error : 0;
}

/* The references are released first; the kernel frees each page once nobody maps it any more. */
static int32_t unshare(struct linux_pages *pages) {
  int32_t error = forget_index(pages->device->fd, IOCTL_GNTALLOC_DEALLOC_GREF, pages->index, pages->count);
  if (munmap(pages->base.address, (size_t)pages->count * PAGE)) return -errno;
  return error < 0 ? error : 0;
}

static int32_t linux_gntshr_unshare(struct pages *base) {
  struct linux_pages *pages = (struct linux_pages *)base;
  int32_t error = unshare(pages);
  release(pages->device);
  free(pages);
  return error;
}

static int32_t linux_gntshr_share(struct gntshr *gntshr, uint32_t domid, uint32_t count, int writable,
                                  struct notify notify, uint32_t *refs, struct pages **shared) {
  struct device *device = ((struct linux_gntshr *)gntshr)->device;
  struct linux_pages *pages = calloc(1, sizeof *pages);
  if (!pages) return -ENOMEM;
  *pages = (struct linux_pages){.base.ops = gntshr->ops, .device = device, .count = count};
  int32_t error = allocate_grants(device->fd, domid, count, writable, refs, &pages->index);
  if (error == 0) {
    error = map_index(pages, PROT_READ | PROT_WRITE);
    if (error) {
      forget_index(device->fd, IOCTL_GNTALLOC_DEALLOC_GREF, pages->index, count);
    } else {
      error = set_notify(pages, IOCTL_GNTALLOC_SET_UNMAP_NOTIFY, notify);
      if (error) unshare(pages);
    }
  }
  if (error) {
    free(pages);
    return error;
  }
  retain(device);
  *shared = &pages->base;
  return 0;
}

static const struct platform_ops linux_ops = {
    .close = linux_close,
    .evtchn_open = linux_evtchn_open,
    .evtchn_close = linux_evtchn_close,
    .evtchn_bind_interdomain = linux_bind_interdomain,
    .evtchn_bind_unbound = linux_bind_unbound,
    .evtchn_unbind = linux_unbind,
    .evtchn_notify = linux_notify,
    .evtchn_unmask = linux_unmask,
    .evtchn_restrict = linux_restrict,
    .gnttab_open = linux_gnttab_open,
    .gnttab_close = linux_gnttab_close,
    .gnttab_map = linux_gnttab_map,
    .gnttab_unmap = linux_gnttab_unmap,
    .gnttab_copy = linux_gnttab_copy,
    .gntshr_open = linux_gntshr_open,
    .gntshr_close = linux_gntshr_close,
    .gntshr_share = linux_gntshr_share,
    .gntshr_unshare = linux_gntshr_unshare,
};

double xt_linux_open(int32_t evtchn, int32_t gntdev) {
  struct linux_platform *platform = calloc(1, sizeof *platform);
  if (!platform) return -ENOMEM;
  *platform = (struct linux_platform){{&linux_ops}, evtchn, gntdev};
  return (double)(uintptr_t)platform;
}
