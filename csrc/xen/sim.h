/*
 * The simulated platform's shared state, as its files sim_*.c see it. A simulated host is a directory:
 * `host` holds the limits and a slot for each process; `domN/memory` holds domain N's grant table, the
 * records of who maps what, its event channels and its page frames; `domN/evtchn-H` is the FIFO of
 * event-channel handle H.
 *
 * A domain has two robust mutexes: a process that dies holding one leaves the tables such that the next
 * owner can go on (sim_grant_lock). Two domains are locked in the order of their numbers, grants before
 * event channels, an attachment's own lock last.
 *
 * Calls go one way: sim_platform.c -> sim_grant.c, sim_copy.c -> sim_evtchn.c -> sim_attach.c -> sim_table.c ->
 * sim_domain.c, and sim_host.c -> sim_evtchn.c; each may leave some out.
 */
#ifndef XENTOOL_SIM_H
#define XENTOOL_SIM_H

#include "../old_libc.h"
#include "layouts.h"
#include "platform.h"

#include <pthread.h>
#include <stddef.h>

enum {
  KERNEL_SLOT = 0, /* owner of what belongs to a domain itself and to no process */
  FIFO_CACHE = 64,
};

struct slot {
  uint32_t in_use, generation, pid, domid;
  uint32_t is_host;
};

struct host_file {
  uint64_t magic;
  uint32_t version;
  struct xt_sim_limits limits;
  pthread_mutex_t lock;
  struct slot slots[];
};

/* struct grant_entry_v1; `access` is flags (low half) and domid (high half), changed as one word. */
struct grant_entry {
  uint32_t access, frame;
};

enum { GRANT_FREE, GRANT_SHARED, GRANT_ORPHAN };
struct grant_record {
  uint32_t state, slot;
  uint32_t readers, writers; /* pins, by access */
  int32_t clear_byte;        /* unmap-notify: offset in the page, or -1 */
  uint32_t port;             /* unmap-notify: port of the owner's domain, or 0 */
};

/* One page of this domain that is mapped by a process of domain `domid`. */
struct track {
  uint32_t in_use, slot, ref, frame;
  uint16_t domid, writable;
  int32_t clear_byte;
  uint32_t port; /* of the mapping domain */
};

enum { PORT_FREE, PORT_UNBOUND, PORT_INTERDOMAIN };
struct port {
  uint32_t state, handle, slot;
  uint32_t remote_domid, remote_port;
  uint32_t references;      /* unmap-notifies that will send on it: they outlive its handle */
  uint8_t pending, masked;
  uint8_t kernel;           /* the domain's own: may be adopted by a handle, is never closed with it */
  uint8_t zombie;           /* closed by its owner, kept for `references` */
};

struct handle {
  uint32_t id, slot; /* id 0: free */
};

struct domain_header {
  uint64_t magic;
  uint32_t version, domid;
  struct xt_sim_limits limits;
  uint32_t dead;
  uint32_t store_port;
  pthread_mutex_t grant_lock;
  uint32_t shared_pages;
  uint32_t gref_low, gref_high;   /* no free reference below low; none in use from high on */
  uint32_t track_low, track_high;
  pthread_mutex_t evtchn_lock;
  uint32_t next_handle;
};

/* A domain's file, mapped whole in this process, until the last reference is put. */
struct domain {
  uint32_t domid, references;
  int fd;
  uint64_t size, frames_offset;
  struct domain_header *header;
  struct grant_entry *entries;
  struct grant_record *records;
  struct track *tracks;
  struct port *ports;
  struct handle *handles;
  uint8_t *frames;
};

/* A peer's FIFO. */
struct fifo {
  uint32_t domid, handle;
  int fd;
};

/* One process's (in tests: one platform object's) attachment to a simulated host. */
struct sim {
  struct platform base;
  int dir_fd, connection;
  struct host_file *host;
  uint64_t host_size;
  uint32_t slot, generation, domid;
  struct domain *own;
  uint32_t users; /* itself until it is closed; mappings, shares and handles that are open */
  int crashed;
  struct sim *next; /* of this process's attachments */

  pthread_mutex_t lock; /* of what follows */
  struct domain *peers[XT_SIM_DOMAINS_MAX];
  uint32_t peer_count;
  struct fifo fifos[FIFO_CACHE];
  struct sim_evtchn *handles;
};

struct sim_gnttab {
  struct gnttab base;
  struct sim *sim;
};
struct sim_gntshr {
  struct gntshr base;
  struct sim *sim;
};

/* An open event-channel handle; its FIFO is base.fd. */
struct sim_evtchn {
  struct evtchn base;
  struct sim *sim;
  uint32_t id;
  int blocks;
  uint32_t restricted_to; /* or ANYBODY */
  struct sim_evtchn *next;
};

/* ---- sim_domain.c ---- */

int sim_open_dir(const char *dir);
/* Maps the host's file, or MAP_FAILED with errno: EPROTO when it is none of this version. */
struct host_file *sim_map_host(int dir_fd, uint64_t *size);
/* Locks; nonzero when the last owner died holding it. */
int sim_mutex_lock(pthread_mutex_t *mutex);
/* Maps a domain's file; NULL with errno, ESRCH when there is no such domain. One reference is the caller's. */
struct domain *sim_domain_open(int dir_fd, uint32_t domid);
void sim_domain_hold(struct domain *domain);
void sim_domain_put(struct domain *domain);
int sim_domain_is_dead(const struct domain *domain);

/* ---- sim_table.c: a domain's grant table. But for locking, its grant lock is held ---- */

void sim_grant_lock(struct domain *domain);
void sim_grant_unlock(struct domain *domain);
/* Either may be NULL or the same. */
void sim_grant_lock_two(struct domain *a, struct domain *b);
void sim_grant_unlock_two(struct domain *a, struct domain *b);
void sim_evtchn_lock_two(struct domain *a, struct domain *b);
void sim_evtchn_unlock_two(struct domain *a, struct domain *b);
/* GNTST_OKAY, with what the entry says, when domain `by` may use `ref` so. */
int16_t sim_check_entry(const struct domain *domain, uint32_t ref, uint32_t by, int write, uint32_t *access,
                        uint32_t *frame);
/* Pins `ref` for a mapping by `by`, of the process in `slot`; stores the track's number and the frame. */
int sim_track_take(struct domain *domain, uint32_t ref, uint32_t by, uint32_t slot, int write, uint32_t *number,
                   uint32_t *frame);
void sim_track_clear_byte(struct domain *domain, struct track *track);
void sim_track_drop(struct domain *domain, struct track *track);
/* A free reference, with memory for its page; 0 with *error when there is none. It counts once its record does. */
uint32_t sim_grant_take(struct domain *domain, int *error);
void sim_grant_clear_byte(struct domain *domain, uint32_t ref);
void sim_grant_end(struct domain *domain, uint32_t ref);

/* ---- sim_attach.c ---- */

/* Attaches to the host in `dir`; stores the attachment. 0 or -errno. */
int sim_attach(struct sim **sim, const struct platform_ops *ops, const char *dir, uint32_t domid, int is_host);
/* 0, or -ENODEV when the process counts as dead, its domain is gone or it was reaped. */
int sim_usable(const struct sim *sim);
/* One thing more, or less, is open through it; the last frees it. */
void sim_hold(struct sim *sim);
void sim_put(struct sim *sim);
/* The domain `domid`, referenced: sim_domain_put it. NULL with errno, ESRCH when there is none (any more). */
struct domain *sim_domain_get(struct sim *sim, uint32_t domid);
/* Asks the host to send the events that we could not. 0, or -errno: it was not asked. */
int sim_ask_to_deliver(const struct sim *sim);

/* ---- sim_evtchn.c ---- */

int32_t sim_evtchn_open(struct platform *platform, uint32_t flags, struct evtchn **evtchn);
int32_t sim_evtchn_close(struct evtchn *evtchn);
int32_t sim_evtchn_bind_interdomain(struct evtchn *evtchn, uint32_t domid, uint32_t port);
int32_t sim_evtchn_bind_unbound(struct evtchn *evtchn, uint32_t domid);
int32_t sim_evtchn_unbind(struct evtchn *evtchn, uint32_t port);
int32_t sim_evtchn_notify(struct evtchn *evtchn, uint32_t port);
int32_t sim_evtchn_unmask(struct evtchn *evtchn, uint32_t port);
int32_t sim_evtchn_restrict(struct evtchn *evtchn, uint32_t domid);
int32_t sim_evtchn_adopt_store(struct evtchn *evtchn);
/* Holds a port for an unmap-notify: closing its handle first does not take the event away. */
int sim_port_get(struct domain *domain, uint32_t port, uint32_t slot);
void sim_port_put(struct sim *sim, struct domain *domain, uint32_t port);
int sim_port_notify(struct sim *sim, struct domain *domain, uint32_t port);
void sim_port_close(struct sim *sim, struct domain *domain, uint32_t port);
void sim_handle_close(struct sim *sim, struct domain *domain, uint32_t handle);
/* Sends the pending events of `domain` that nothing masks; how many cannot be sent now. */
int32_t sim_deliver_pending(struct sim *sim, struct domain *domain);

/* ---- sim_grant.c and sim_copy.c ---- */

int32_t sim_gnttab_map(struct gnttab *gnttab, const uint32_t *domids, const uint32_t *refs, uint32_t count,
                       int writable, struct notify notify, struct pages **pages);
int32_t sim_gnttab_unmap(struct pages *pages);
int32_t sim_gntshr_share(struct gntshr *gntshr, uint32_t domid, uint32_t count, int writable, struct notify notify,
                         uint32_t *refs, struct pages **pages);
int32_t sim_gntshr_unshare(struct pages *pages);
/* Our own page behind the reserved reference `ref`, mapped; MAP_FAILED with errno. */
void *sim_map_own(struct sim *sim, uint32_t ref);

int32_t sim_gnttab_copy(struct gnttab *gnttab, struct xt_copy_segment *segments, uint32_t count);

#endif
