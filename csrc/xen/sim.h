/*
 * The simulated platform's shared state, as the sim_*.c files see it. A simulated host is a directory: `host` holds the
 * limits and a slot for each process; `domN/memory` holds domain N's grant table, the records of who maps what, its
 * event channels and its page frames; `domN/evtchn-H` is the FIFO of event-channel handle H.
 * A domain has two robust mutexes. A process that dies holding one leaves the tables in a state from which the next
 * owner can continue (sim_grant_lock). Lock order: of two domains the lower number first, grants before event channels,
 * and an attachment's own lock last.
 * Calls go one way: sim_platform.c -> sim_grant.c, sim_copy.c -> sim_evtchn.c -> sim_peer.c -> sim_attach.c ->
 * sim_table.c -> sim_domain.c, and sim_host.c -> sim_evtchn.c. A file may skip some of these.
 */
#ifndef XENTOOL_SIM_H
#define XENTOOL_SIM_H

#include "../old_libc.h"
#include "layouts.h"
#include "platform.h"

#include <pthread.h>
#include <stddef.h>

enum { KERNEL_SLOT = 0 /* owns what belongs to the domain itself, not to a process */ };

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

/* struct grant_entry_v1. `access` combines flags (low half) and domid (high half), so that both change as one word. */
struct grant_entry {
  uint32_t access, frame;
};

enum { GRANT_FREE, GRANT_SHARED, GRANT_ORPHAN };
struct grant_record {
  uint32_t state, slot;
  uint32_t readers, writers; /* number of pins, by kind of access */
  int32_t clear_byte;        /* unmap-notify: offset in the page, or -1 */
  uint32_t port;             /* unmap-notify: port of the owner's domain, or 0 */
};

/* One page of this domain, mapped by a process of domain `domid`. */
struct track {
  uint32_t in_use, slot, ref, frame;
  uint16_t domid, writable;
  int32_t clear_byte;
  uint32_t port; /* unmap-notify: port of the mapping domain */
};

enum { PORT_FREE, PORT_UNBOUND, PORT_INTERDOMAIN };
struct port {
  uint32_t state, handle, slot;
  uint32_t remote_domid, remote_port;
  uint32_t sender;          /* slot of a process that is just writing it into the FIFO, or 0 */
  uint32_t references;      /* pending unmap-notifies that will send on it; they may outlive its handle */
  uint8_t pending, masked;
  uint8_t kernel;           /* belongs to the domain: a handle may adopt it but never closes it */
  uint8_t zombie;           /* closed by its owner but kept because of `references` */
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

/* A domain's file, mapped as a whole into this process until the last reference is dropped. */
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

/* The other end of one of our ports. `fd` is the FIFO of its handle number `handle`, or -1. */
struct peer {
  uint32_t port, handle;
  struct domain *domain;
  int fd;
  struct peer *next;
};

/* The attachment of one process (in tests: of one platform object) to a simulated host. */
struct sim {
  struct platform base;
  int dir_fd, connection;
  struct host_file *host;
  uint64_t host_size;
  uint32_t slot, generation, domid;
  struct domain *own;
  uint32_t users; /* the attachment itself until closed, plus open mappings, shares and handles */
  int crashed;
  struct sim *next; /* list of this process's attachments */

  pthread_mutex_t lock; /* protects what follows */
  struct domain *peers[XT_SIM_DOMAINS_MAX];
  uint32_t peer_count;
  struct peer *ends; /* of our ports, by sim_peer.c */
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

/* An open event-channel handle. Its FIFO is base.fd. */
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
/* The mode of what is in a host's directory, whose own mode says whose processes get there. */
uint32_t sim_mode(int dir_fd, uint32_t alone, uint32_t shared);
/* Maps the host's file. Returns MAP_FAILED with errno on error: EPROTO if it is not a host file of this version. */
struct host_file *sim_map_host(int dir_fd, uint64_t *size);
/* Locks the mutex; returns nonzero if its last owner died holding it. */
int sim_mutex_lock(pthread_mutex_t *mutex);
/*
 * Maps a domain's file and returns it with one reference for the caller; NULL with errno, ESRCH if there is no such
 * domain.
 */
struct domain *sim_domain_open(int dir_fd, uint32_t domid);
void sim_domain_hold(struct domain *domain);
void sim_domain_put(struct domain *domain);
int sim_domain_is_dead(const struct domain *domain);

/* ---- sim_table.c: a domain's grant table. Except for the lock functions, callers hold its grant lock ---- */

void sim_grant_lock(struct domain *domain);
void sim_grant_unlock(struct domain *domain);
/* Either may be NULL, and both may be the same. */
void sim_grant_lock_two(struct domain *a, struct domain *b);
void sim_grant_unlock_two(struct domain *a, struct domain *b);
void sim_evtchn_lock_two(struct domain *a, struct domain *b);
void sim_evtchn_unlock_two(struct domain *a, struct domain *b);
/* GNTST_OKAY, with the entry's contents, if domain `by` may use `ref` this way. */
int16_t sim_check_entry(const struct domain *domain, uint32_t ref, uint32_t by, int write, uint32_t *access,
                        uint32_t *frame);
/* Pins `ref` for a mapping by domain `by`, made by the process in `slot`. Stores the track's number and the frame. */
int sim_track_take(struct domain *domain, uint32_t ref, uint32_t by, uint32_t slot, int write, uint32_t *number,
                   uint32_t *frame);
void sim_track_clear_byte(struct domain *domain, struct track *track);
void sim_track_drop(struct domain *domain, struct track *track);
/*
 * A free reference with memory reserved for its page, or 0 with *error. It stays free until its record's state is set.
 */
uint32_t sim_grant_take(struct domain *domain, int *error);
void sim_grant_clear_byte(struct domain *domain, uint32_t ref);
void sim_grant_end(struct domain *domain, uint32_t ref);

/* ---- sim_attach.c ---- */

/* Attaches to the host in `dir` and stores the attachment. Returns 0 or -errno. */
int sim_attach(struct sim **sim, const struct platform_ops *ops, const char *dir, uint32_t domid, int is_host);
/* 0, or -ENODEV if the process counts as dead, its domain is gone, or its slot was reaped. */
int sim_usable(const struct sim *sim);
/* Count an object that is opened or closed through the attachment. The last put frees the attachment. */
void sim_hold(struct sim *sim);
void sim_put(struct sim *sim);
/*
 * The domain `domid` with a reference, to be dropped with sim_domain_put. NULL with errno: ESRCH if it does not exist
 * (any more).
 */
struct domain *sim_domain_get(struct sim *sim, uint32_t domid);
/* Asks the host to send the events that we could not send. Returns 0, or -errno if the request was not sent. */
int sim_ask_to_deliver(const struct sim *sim);

/* ---- sim_peer.c ---- */

void sim_fifo_name(char *name, size_t size, uint32_t domid, uint32_t handle);
/* A peer in `domain`, for a port to be. NULL if there is no memory. */
struct peer *sim_peer_new(struct domain *domain);
/* Takes the peer over: keeps it with our port `port`, or frees it if that is an error. `handle`: its own, if known. */
void sim_peer_keep(struct sim *sim, struct peer *peer, int32_t port, uint32_t handle);
void sim_peer_forget(struct sim *sim, uint32_t port);
/* Domain `domid`, at the other end of port `port` of `domain`, with a reference. NULL with errno. */
struct domain *sim_peer_domain(struct sim *sim, struct domain *domain, uint32_t port, uint32_t domid);
/* Puts `number` into the FIFO of a handle of `domain`; `from` is our port that has it as its peer, or 0. */
int sim_fifo_write(struct sim *sim, uint32_t from, const struct domain *domain, uint32_t handle, uint32_t number);

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
/* Holds a port for an unmap-notify, so that the event is sent even if its handle is closed first. */
int sim_port_get(struct domain *domain, uint32_t port, uint32_t slot);
void sim_port_put(struct sim *sim, struct domain *domain, uint32_t port);
int sim_port_notify(struct sim *sim, struct domain *domain, uint32_t port);
void sim_port_close(struct sim *sim, struct domain *domain, uint32_t port);
void sim_handle_close(struct sim *sim, struct domain *domain, uint32_t handle);
/* Events that the slot's process was sending to `domain` when it died become pending again, sent or not. */
void sim_abandon_sending(struct domain *domain, uint32_t slot);
/* Sends the pending events of `domain` on unmasked ports. Returns how many could not be sent. */
int32_t sim_deliver_pending(struct sim *sim, struct domain *domain);

/* ---- sim_grant.c and sim_copy.c ---- */

int32_t sim_gnttab_map(struct gnttab *gnttab, const uint32_t *domids, const uint32_t *refs, uint32_t count,
                       int writable, struct notify notify, struct pages **pages);
int32_t sim_gnttab_unmap(struct pages *pages);
int32_t sim_gntshr_share(struct gntshr *gntshr, uint32_t domid, uint32_t count, int writable, struct notify notify,
                         uint32_t *refs, struct pages **pages);
int32_t sim_gntshr_unshare(struct pages *pages);
/* Maps our own page behind the reserved reference `ref`; MAP_FAILED with errno on error. */
void *sim_map_own(struct sim *sim, uint32_t ref);

int32_t sim_gnttab_copy(struct gnttab *gnttab, struct xt_copy_segment *segments, uint32_t count);

#endif
