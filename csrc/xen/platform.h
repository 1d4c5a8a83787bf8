/*
 * The interface that a platform implements. Every kind of handle begins with its platform's operations; xen.c calls
 * those and checks almost nothing itself.
 */
#ifndef XENTOOL_PLATFORM_H
#define XENTOOL_PLATFORM_H

#include "xen.h"

enum { PAGE = 4096 };

struct platform {
  const struct platform_ops *ops;
};
struct evtchn {
  const struct platform_ops *ops;
  int fd;
};
struct gnttab {
  const struct platform_ops *ops;
};
struct gntshr {
  const struct platform_ops *ops;
};
/* Mapped or shared pages. */
struct pages {
  const struct platform_ops *ops;
  void *address;
};

/* The actions that follow the unmapping of pages. */
struct notify {
  int64_t clear_byte; /* or -1 */
  int64_t port;       /* or -1 */
};

/* All return -errno on error. */
struct platform_ops {
  int32_t (*close)(struct platform *platform);

  int32_t (*evtchn_open)(struct platform *platform, uint32_t flags, struct evtchn **evtchn);
  int32_t (*evtchn_close)(struct evtchn *evtchn);
  int32_t (*evtchn_bind_interdomain)(struct evtchn *evtchn, uint32_t domid, uint32_t port);
  int32_t (*evtchn_bind_unbound)(struct evtchn *evtchn, uint32_t domid);
  int32_t (*evtchn_unbind)(struct evtchn *evtchn, uint32_t port);
  int32_t (*evtchn_notify)(struct evtchn *evtchn, uint32_t port);
  int32_t (*evtchn_unmask)(struct evtchn *evtchn, uint32_t port);
  int32_t (*evtchn_restrict)(struct evtchn *evtchn, uint32_t domid);

  int32_t (*gnttab_open)(struct platform *platform, struct gnttab **gnttab);
  int32_t (*gnttab_close)(struct gnttab *gnttab);
  int32_t (*gnttab_map)(struct gnttab *gnttab, const uint32_t *domids, const uint32_t *refs, uint32_t count,
                        int writable, struct notify notify, struct pages **pages);
  int32_t (*gnttab_unmap)(struct pages *pages);
  int32_t (*gnttab_copy)(struct gnttab *gnttab, struct xt_copy_segment *segments, uint32_t count);

  int32_t (*gntshr_open)(struct platform *platform, struct gntshr **gntshr);
  int32_t (*gntshr_close)(struct gntshr *gntshr);
  int32_t (*gntshr_share)(struct gntshr *gntshr, uint32_t domid, uint32_t count, int writable, struct notify notify,
                          uint32_t *refs, struct pages **pages);
  int32_t (*gntshr_unshare)(struct pages *pages);
};

#endif
