/* The functions of xen.h. Each calls its platform's. */
#define _GNU_SOURCE
#include "platform.h"

#include <errno.h>
#include <unistd.h>

static const struct platform_ops *ops_of(const void *handle) { return ((const struct platform *)handle)->ops; }

static double handle_or_error(int32_t error, const void *handle) {
  return error ? (double)error : (double)(uintptr_t)handle;
}

int32_t xt_platform_close(void *platform) { return ops_of(platform)->close(platform); }

/* ---- event channels ---- */

double xt_evtchn_open(void *platform, uint32_t flags) {
  struct evtchn *evtchn = NULL;
  int32_t error = ops_of(platform)->evtchn_open(platform, flags, &evtchn);
  return handle_or_error(error, evtchn);
}

int32_t xt_evtchn_close(void *evtchn) { return ops_of(evtchn)->evtchn_close(evtchn); }

int32_t xt_evtchn_fd(void *evtchn) { return ((const struct evtchn *)evtchn)->fd; }

int32_t xt_evtchn_bind_interdomain(void *evtchn, uint32_t domid, uint32_t port) {
  return ops_of(evtchn)->evtchn_bind_interdomain(evtchn, domid, port);
}

int32_t xt_evtchn_bind_unbound(void *evtchn, uint32_t domid) {
  return ops_of(evtchn)->evtchn_bind_unbound(evtchn, domid);
}

int32_t xt_evtchn_unbind(void *evtchn, uint32_t port) { return ops_of(evtchn)->evtchn_unbind(evtchn, port); }
int32_t xt_evtchn_notify(void *evtchn, uint32_t port) { return ops_of(evtchn)->evtchn_notify(evtchn, port); }
int32_t xt_evtchn_unmask(void *evtchn, uint32_t port) { return ops_of(evtchn)->evtchn_unmask(evtchn, port); }
int32_t xt_evtchn_restrict(void *evtchn, uint32_t domid) { return ops_of(evtchn)->evtchn_restrict(evtchn, domid); }

int32_t xt_evtchn_pending(void *evtchn, uint32_t *ports, uint32_t max) {
  size_t bytes = max * sizeof *ports > PAGE ? PAGE : max * sizeof *ports;
  ssize_t got = read(((const struct evtchn *)evtchn)->fd, ports, bytes);
  if (got >= 0) return (int32_t)((size_t)got / sizeof *ports);
  return errno == EAGAIN || errno == EINTR ? 0 : -errno;
}

/* ---- grants of others ---- */

double xt_gnttab_open(void *platform) {
  struct gnttab *gnttab = NULL;
  int32_t error = ops_of(platform)->gnttab_open(platform, &gnttab);
  return handle_or_error(error, gnttab);
}

int32_t xt_gnttab_close(void *gnttab) { return ops_of(gnttab)->gnttab_close(gnttab); }

double xt_gnttab_map(void *gnttab, const uint32_t *domids, const uint32_t *refs, uint32_t count, int32_t writable,
                     int64_t clear_byte, int64_t port, double *address) {
  struct pages *pages = NULL;
  if (count == 0) return -EINVAL;
  struct notify notify = {clear_byte, port};
  int32_t error = ops_of(gnttab)->gnttab_map(gnttab, domids, refs, count, writable != 0, notify, &pages);
  if (error == 0) *address = (double)(uintptr_t)pages->address;
  return handle_or_error(error, pages);
}

int32_t xt_gnttab_unmap(void *mapping) { return ops_of(mapping)->gnttab_unmap(mapping); }

int32_t xt_gnttab_copy(void *gnttab, struct xt_copy_segment *segments, uint32_t count) {
  return ops_of(gnttab)->gnttab_copy(gnttab, segments, count);
}

/* ---- grants of our own ---- */

double xt_gntshr_open(void *platform) {
  struct gntshr *gntshr = NULL;
  int32_t error = ops_of(platform)->gntshr_open(platform, &gntshr);
  return handle_or_error(error, gntshr);
}

int32_t xt_gntshr_close(void *gntshr) { return ops_of(gntshr)->gntshr_close(gntshr); }

double xt_gntshr_share(void *gntshr, uint32_t domid, uint32_t count, int32_t writable, int64_t clear_byte,
                       int64_t port, uint32_t *refs, double *address) {
  struct pages *pages = NULL;
  if (count == 0) return -EINVAL;
  struct notify notify = {clear_byte, port};
  int32_t error = ops_of(gntshr)->gntshr_share(gntshr, domid, count, writable != 0, notify, refs, &pages);
  if (error == 0) *address = (double)(uintptr_t)pages->address;
  return handle_or_error(error, pages);
}

int32_t xt_gntshr_unshare(void *share) { return ops_of(share)->gntshr_unshare(share); }
