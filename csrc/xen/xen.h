/*
 * Xen as programs need it: event channels, grants of others, grants of their own. One set of functions serves both
 * Linux's devices (linux.c) and a simulated host (sim_*.c), with the same rules and error numbers. Conventions are
 * those of xentool.h, except that any number of threads may use one handle; only one thread may close it, or unmap what
 * was mapped through it.
 */
#ifndef XENTOOL_XEN_H
#define XENTOOL_XEN_H

#include "../xentool.h"

/* ---- platforms ---- */

/*
 * Linux's devices in /dev/xen. Each is opened only when it is needed; not at all where its descriptor is given, for a
 * process that may not. That stays the caller's, and open for as long as the platform. -1: none is given.
 */
XT_API double xt_linux_open(int32_t evtchn, int32_t gntdev);
/* A platform stays alive until everything opened through it is closed as well. */
XT_API int32_t xt_platform_close(void *platform);

/* ---- event channels, as /dev/xen/evtchn: a delivered port stays masked until it is unmasked ---- */

/* NONBLOCK: reading ports never waits. KEEP: the descriptor survives an exec. */
enum { XT_EVTCHN_NONBLOCK = 1, XT_EVTCHN_KEEP = 2 };
XT_API double xt_evtchn_open(void *platform, uint32_t flags);
XT_API int32_t xt_evtchn_close(void *evtchn);
/* Readable when a delivered port is waiting to be read. */
XT_API int32_t xt_evtchn_fd(void *evtchn);
/* Returns the new local port. Binding immediately sends it one event. */
XT_API int32_t xt_evtchn_bind_interdomain(void *evtchn, uint32_t domid, uint32_t port);
XT_API int32_t xt_evtchn_bind_unbound(void *evtchn, uint32_t domid);
/* -ENOTCONN if it is not a port of this handle. */
XT_API int32_t xt_evtchn_unbind(void *evtchn, uint32_t port);
XT_API int32_t xt_evtchn_notify(void *evtchn, uint32_t port);
/* A port that is not this handle's is ignored. */
XT_API int32_t xt_evtchn_unmask(void *evtchn, uint32_t port);
/* From now on the handle binds only to `domid`. -EACCES if it was restricted before. */
XT_API int32_t xt_evtchn_restrict(void *evtchn, uint32_t domid);
/* Reads up to `max` ports. Returns how many: 0 if there are none (NONBLOCK) or a signal arrived. */
XT_API int32_t xt_evtchn_pending(void *evtchn, uint32_t *ports, uint32_t max);

/* ---- grants of others, as /dev/xen/gntdev ---- */

enum { XT_COPY_SOURCE_GREF = 1, XT_COPY_DEST_GREF = 2 };
struct xt_copy_foreign {
  uint32_t ref;
  uint16_t offset;
  uint16_t domid;
};
union xt_copy_side {
  uint64_t address;
  struct xt_copy_foreign foreign;
};
struct xt_copy_segment {
  union xt_copy_side source, dest;
  uint16_t length;
  uint16_t flags;
  int16_t status; /* GNTST_*: 0 okay, negative an error */
  uint16_t pad;
};

XT_API double xt_gnttab_open(void *platform);
/* Existing mappings remain. */
XT_API int32_t xt_gnttab_close(void *gnttab);
/*
 * Maps refs[i] of domids[i] contiguously. Stores the address and returns the handle for xt_gnttab_unmap. When the pages
 * are unmapped, even by the death of the process, the byte at `clear_byte` is cleared and `port` notified; -1 disables
 * either.
 */
XT_API double xt_gnttab_map(void *gnttab, const uint32_t *domids, const uint32_t *refs, uint32_t count,
                            int32_t writable, int64_t clear_byte, int64_t port, double *address);
XT_API int32_t xt_gnttab_unmap(void *mapping);
XT_API int32_t xt_gnttab_copy(void *gnttab, struct xt_copy_segment *segments, uint32_t count);

/* ---- grants of our own, as /dev/xen/gntalloc ---- */

XT_API double xt_gntshr_open(void *platform);
/* Existing shares remain. */
XT_API int32_t xt_gntshr_close(void *gntshr);
/*
 * Shares `count` new, zeroed pages with `domid`. Stores address and references and returns the handle for
 * xt_gntshr_unshare. clear_byte and port are as for xt_gnttab_map.
 */
XT_API double xt_gntshr_share(void *gntshr, uint32_t domid, uint32_t count, int32_t writable, int64_t clear_byte,
                              int64_t port, uint32_t *refs, double *address);
XT_API int32_t xt_gntshr_unshare(void *share);

/* ---- only on a simulated host. A `sim` is a platform: one process's attachment to a host's directory ---- */

/*
 * A host has at most DOMAINS_MAX domains. References below RESERVED belong to the toolstack; STORE is the xenstore
 * ring's.
 */
enum { XT_SIM_DOMAINS_MAX = 250, XT_SIM_STORE_GREF = 1, XT_SIM_RESERVED_GREFS = 8 };

struct xt_sim_limits {
  uint32_t grant_entries; /* references and page frames per domain */
  uint32_t share_pages;   /* pages that a domain's processes may share at a time, like gntalloc's limit */
  uint32_t maptrack;      /* mappings of a domain's pages by all others, in pages */
  uint32_t ports;         /* event channels per domain; port 0 is never used */
  uint32_t handles;       /* open event-channel handles per domain */
  uint32_t slots;         /* attached processes */
};

/*
 * Create the files of a new host in the empty directory `dir`, or those of one of its domains. A domain gets its
 * xenstore page (XT_SIM_STORE_GREF, granted to domain 0) and port; that port is returned.
 */
XT_API int32_t xt_sim_host_create(const char *dir, const struct xt_sim_limits *limits);
XT_API int32_t xt_sim_domain_create(const char *dir, uint32_t domid);
/*
 * Reaps every process of `domid` without unmap-notifies, as a domain's death does, closes its ports and removes its
 * files. Pages that others map stay in memory until they are unmapped.
 */
XT_API int32_t xt_sim_domain_destroy(void *sim, uint32_t domid);

/*
 * Attaches as a process of `domid`. With is_host there is no connection to host.sock, which otherwise reports the death
 * of the process. A child of a fork is not attached: to it everything looks as after xt_sim_crash.
 */
XT_API double xt_sim_open(const char *dir, uint32_t domid, int32_t is_host);
/* For tests: leaves things as kill -9 would. Closing what is still open then changes no table. */
XT_API int32_t xt_sim_crash(void *sim);
/*
 * Host only. Performs a dead process's unmap-notifies, closes its ports, drops its mappings and ends its shares. Like
 * all the host functions below, it changes nothing if it runs out of something (-EMFILE): call it again.
 */
XT_API int32_t xt_sim_reap(void *sim, uint32_t slot, uint32_t generation);
/* Host only. Reaps the slots of processes that no longer exist. */
XT_API int32_t xt_sim_sweep(void *sim);
/*
 * Host only. Sends the events that a process could not send, as its notify requested. Returns how many still cannot be
 * sent.
 */
XT_API int32_t xt_sim_deliver(void *sim);

enum { XT_SIM_SLOT = 0, XT_SIM_GRANT = 1, XT_SIM_ORPHAN = 2, XT_SIM_MAP = 3, XT_SIM_PORT = 4, XT_SIM_HANDLE = 5 };
struct xt_sim_item {
  uint32_t kind;
  uint32_t domid;
  uint32_t id;    /* slot: its number; grant, map: reference; or the port or handle */
  uint32_t peer;  /* grant: domain it is for; map: domain that maps; port: remote domain; slot: is_host */
  uint32_t count; /* grant: pins; map: writable; port: remote port, 0 when unbound; slot: generation */
  uint32_t slot;  /* the owner's; 0: the domain itself */
  uint32_t pid;   /* the owner's */
};
/* Lists everything in use in the whole host. Returns the number of items; stores at most `max`. */
XT_API int32_t xt_sim_list(void *sim, struct xt_sim_item *items, uint32_t max);

/* Takes over our domain's xenstore port, which no process owns, and returns it. */
XT_API int32_t xt_sim_adopt_store_port(void *evtchn);
/* Maps our own page behind the reserved reference `ref`. xt_memory_free unmaps it. */
XT_API double xt_sim_own_page(void *sim, uint32_t ref);

#endif
