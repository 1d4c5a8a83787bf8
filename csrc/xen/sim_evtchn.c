/*
 * Event channels of the simulated platform. A handle is a FIFO that its owner opens and notifiers write to; it yields
 * u32 ports like /dev/xen/evtchn. A delivered port is masked until it is unmasked, so it is in the FIFO at most once. A
 * notifier writes to the FIFO without a lock: writing wakes the owner, often on the notifier's own processor, and the
 * first thing that the owner needs is that lock. So the port says who is sending it, and if that process dies first,
 * the host sends it: one event too many is possible, one too few is not. An event that cannot be written (because the
 * FIFO is full, or cannot be opened) stays pending on its unmasked port, where the host finds it and tries again.
 */
#define _GNU_SOURCE
#include "sim.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

/* PORTS_OF_XEN: EVTCHN_FIFO_NR_CHANNELS. */
enum { ANYBODY = UINT16_MAX, PORTS_OF_XEN = 1 << 17 };

/* 0, or -errno if the event is not in the FIFO. Written before it is marked, because we may die in between. */
static int send_port(struct sim *sim, struct domain *domain, struct port *port) {
  int error = sim_fifo_write(sim, 0, domain, port->handle, (uint32_t)(port - domain->ports));
  if (error) return error;
  port->masked = 1;
  port->pending = 0;
  return 0;
}

static int is_deliverable(const struct port *port) { return !port->masked && port->handle != 0; }

/* 0 if the event is in the FIFO, is pending until the port is unmasked, or will be sent by the host. */
static int deliver(struct sim *sim, struct domain *domain, struct port *port) {
  int error = is_deliverable(port) ? send_port(sim, domain, port) : -EAGAIN;
  if (error == 0) return 0;
  port->pending = 1;
  return is_deliverable(port) && sim_ask_to_deliver(sim) ? error : 0;
}

static struct port *port_at(struct domain *domain, uint32_t number) {
  return number > 0 && number < domain->header->limits.ports ? &domain->ports[number] : NULL;
}

/* Reads the state without the lock. Once it is set, the rest of the port is valid too (open_port). */
static int is_open(const struct port *port) { return __atomic_load_n(&port->state, __ATOMIC_ACQUIRE) != PORT_FREE; }

/* The port if it is open and belongs to this handle. */
static struct port *own_port(const struct sim_evtchn *evtchn, uint32_t number) {
  struct port *port = port_at(evtchn->sim->own, number);
  if (!port || !is_open(port) || port->zombie) return NULL;
  return port->handle == evtchn->id && port->slot == evtchn->sim->slot ? port : NULL;
}

static struct port *free_port(struct domain *domain) {
  for (uint32_t i = 1; i < domain->header->limits.ports; i++)
    if (domain->ports[i].state == PORT_FREE) return &domain->ports[i];
  return NULL;
}

/* The other end, if it still points back: no lock is held between reading a peer's number and locking the peer. */
static struct port *remote_end(struct domain *remote, const struct domain *domain, const struct port *port) {
  struct port *end = port_at(remote, port->remote_port);
  if (!end || end->state != PORT_INTERDOMAIN) return NULL;
  return end->remote_domid == domain->domid && end->remote_port == (uint32_t)(port - domain->ports) ? end : NULL;
}

/* A port becomes valid when its state is set, so everything else is stored first. */
static void open_port(struct port *port, struct port value) {
  uint32_t state = value.state;
  value.state = PORT_FREE;
  *port = value;
  __atomic_store_n(&port->state, state, __ATOMIC_RELEASE);
}

/* ---- handles ---- */

static struct handle *take_handle(struct sim *sim) {
  struct domain *own = sim->own;
  struct handle *handle = NULL;
  sim_evtchn_lock_two(own, NULL);
  for (uint32_t i = 0; !handle && i < own->header->limits.handles; i++)
    if (own->handles[i].id == 0) handle = &own->handles[i];
  if (handle) {
    handle->slot = sim->slot;
    __atomic_store_n(&handle->id, own->header->next_handle++, __ATOMIC_RELEASE);
  }
  sim_evtchn_unlock_two(own, NULL);
  return handle;
}

/* Creates and opens the handle's FIFO; returns its descriptor or -errno. */
static int open_fifo(const struct sim *sim, uint32_t id, uint32_t flags) {
  char name[64];
  int mode = O_RDWR | (flags & XT_EVTCHN_NONBLOCK ? O_NONBLOCK : 0) | (flags & XT_EVTCHN_KEEP ? 0 : O_CLOEXEC);
  sim_fifo_name(name, sizeof name, sim->domid, id);
  int fd = mkfifoat(sim->dir_fd, name, 0600) ? -1 : openat(sim->dir_fd, name, mode);
  if (fd < 0 || fchmod(fd, sim_mode(sim->dir_fd, 0600, 0666)) == 0) return fd < 0 ? -errno : fd;
  int error = -errno;
  close(fd);
  return error;
}

int32_t sim_evtchn_open(struct platform *platform, uint32_t flags, struct evtchn **opened) {
  struct sim *sim = (struct sim *)platform;
  if (sim_usable(sim)) return -ENODEV;
  struct sim_evtchn *evtchn = calloc(1, sizeof *evtchn);
  if (!evtchn) return -ENOMEM;
  struct handle *handle = take_handle(sim);
  uint32_t id = handle ? handle->id : 0;
  int fd = handle ? open_fifo(sim, id, flags) : -EMFILE;
  if (fd < 0) {
    if (handle) sim_handle_close(sim, sim->own, id);
    free(evtchn);
    return fd;
  }
  *evtchn = (struct sim_evtchn){.base = {platform->ops, fd},
                                .sim = sim,
                                .id = id,
                                .blocks = !(flags & XT_EVTCHN_NONBLOCK),
                                .restricted_to = ANYBODY};
  sim_hold(sim);
  pthread_mutex_lock(&sim->lock);
  evtchn->next = sim->handles;
  sim->handles = evtchn;
  pthread_mutex_unlock(&sim->lock);
  *opened = &evtchn->base;
  return 0;
}

/* Closes every port of a handle, then the handle. */
void sim_handle_close(struct sim *sim, struct domain *domain, uint32_t id) {
  char name[64];
  for (uint32_t i = 1; i < domain->header->limits.ports; i++)
    if (is_open(&domain->ports[i]) && domain->ports[i].handle == id) sim_port_close(sim, domain, i);
  sim_fifo_name(name, sizeof name, domain->domid, id);
  unlinkat(sim->dir_fd, name, 0);
  sim_evtchn_lock_two(domain, NULL);
  for (uint32_t i = 0; i < domain->header->limits.handles; i++)
    if (domain->handles[i].id == id) domain->handles[i] = (struct handle){0};
  sim_evtchn_unlock_two(domain, NULL);
}

static void forget_handle(struct sim *sim, const struct sim_evtchn *evtchn) {
  pthread_mutex_lock(&sim->lock);
  struct sim_evtchn **link = &sim->handles;
  while (*link != evtchn) link = &(*link)->next;
  *link = evtchn->next;
  pthread_mutex_unlock(&sim->lock);
}

int32_t sim_evtchn_close(struct evtchn *base) {
  struct sim_evtchn *evtchn = (struct sim_evtchn *)base;
  struct sim *sim = evtchn->sim;
  forget_handle(sim, evtchn);
  if (sim_usable(sim) == 0) sim_handle_close(sim, sim->own, evtchn->id);
  int error = close(base->fd) ? -errno : 0;
  free(evtchn);
  sim_put(sim);
  return error;
}

/* ---- ports ---- */

/* Xen's port numbers end at PORTS_OF_XEN; a number from there on cannot be anyone's port. */
static int is_no_port(uint32_t number) { return number >= PORTS_OF_XEN; }

/* 0, or the reason why a handle may not bind to `domid`. */
static int may_bind(const struct sim_evtchn *evtchn, uint32_t domid) {
  if (sim_usable(evtchn->sim)) return -ENODEV;
  uint32_t restricted_to = __atomic_load_n(&evtchn->restricted_to, __ATOMIC_ACQUIRE);
  return restricted_to == ANYBODY || restricted_to == domid ? 0 : -EACCES;
}

/* Like the device, refuses to restrict a handle to domain 0. */
int32_t sim_evtchn_restrict(struct evtchn *base, uint32_t domid) {
  struct sim_evtchn *evtchn = (struct sim_evtchn *)base;
  uint32_t anybody = ANYBODY;
  if (__atomic_load_n(&evtchn->restricted_to, __ATOMIC_ACQUIRE) != ANYBODY) return -EACCES;
  if (domid == 0 || domid >= DOMID_FIRST_RESERVED) return -EINVAL;
  return __atomic_compare_exchange_n(&evtchn->restricted_to, &anybody, domid, 0, __ATOMIC_ACQ_REL, __ATOMIC_ACQUIRE)
             ? 0
             : -EACCES;
}

/* The peer of a port to be, with its domain open; NULL with errno. */
static struct peer *find_peer(struct sim *sim, uint32_t domid) {
  struct domain *remote = sim_domain_get(sim, domid);
  if (!remote) return NULL;
  struct peer *peer = sim_peer_new(remote);
  sim_domain_put(remote);
  errno = ENOMEM;
  return peer;
}

int32_t sim_evtchn_bind_unbound(struct evtchn *base, uint32_t domid) {
  struct sim_evtchn *evtchn = (struct sim_evtchn *)base;
  struct sim *sim = evtchn->sim;
  int error = may_bind(evtchn, domid);
  if (error) return error;
  struct peer *peer = find_peer(sim, domid);
  if (!peer) return -errno;
  sim_evtchn_lock_two(sim->own, NULL);
  struct port *port = free_port(sim->own);
  if (port)
    open_port(port, (struct port){
                        .state = PORT_UNBOUND, .handle = evtchn->id, .slot = sim->slot, .remote_domid = domid});
  sim_evtchn_unlock_two(sim->own, NULL);
  int32_t number = port ? (int32_t)(port - sim->own->ports) : -ENOSPC;
  sim_peer_keep(sim, peer, number, 0);
  return number;
}

/* Creates our end first: if we die before the peer's end points back, closing the leftover end is harmless. */
static int32_t bind_ends(struct sim *sim, uint32_t handle, struct domain *remote, uint32_t remote_number) {
  struct port *far = port_at(remote, remote_number);
  if (!far || far->state != PORT_UNBOUND || far->remote_domid != sim->domid || far->zombie) return -EINVAL;
  struct port *near = free_port(sim->own);
  if (!near) return -ENOSPC;
  int32_t number = (int32_t)(near - sim->own->ports);
  open_port(near, (struct port){.state = PORT_INTERDOMAIN,
                                .handle = handle,
                                .slot = sim->slot,
                                .remote_domid = remote->domid,
                                .remote_port = remote_number});
  far->remote_port = (uint32_t)number;
  far->state = PORT_INTERDOMAIN;
  deliver(sim, sim->own, near); /* as in Xen: events sent before we listened are not lost */
  return number;
}

int32_t sim_evtchn_bind_interdomain(struct evtchn *base, uint32_t domid, uint32_t port) {
  struct sim_evtchn *evtchn = (struct sim_evtchn *)base;
  struct sim *sim = evtchn->sim;
  int32_t result = may_bind(evtchn, domid);
  if (result) return result;
  struct peer *peer = find_peer(sim, domid);
  if (!peer) return -errno;
  struct domain *remote = peer->domain;
  sim_evtchn_lock_two(sim->own, remote);
  result = remote->header->dead ? -ESRCH : bind_ends(sim, evtchn->id, remote, port);
  uint32_t handle = result < 0 ? 0 : remote->ports[port].handle;
  sim_evtchn_unlock_two(sim->own, remote);
  sim_peer_keep(sim, peer, result, handle);
  return result;
}

int32_t sim_evtchn_adopt_store(struct evtchn *base) {
  struct sim_evtchn *evtchn = (struct sim_evtchn *)base;
  struct sim *sim = evtchn->sim;
  struct port *port = port_at(sim->own, sim->own->header->store_port);
  int32_t result = port ? may_bind(evtchn, port->remote_domid) : -ENODEV;
  if (result) return result;
  struct peer *peer = find_peer(sim, port->remote_domid);
  if (!peer) return -errno;
  result = -EBUSY;
  sim_evtchn_lock_two(sim->own, NULL);
  if (port->kernel && port->handle == 0) {
    port->handle = evtchn->id;
    port->slot = sim->slot;
    port->masked = 0;
    if (port->pending) deliver(sim, sim->own, port);
    result = (int32_t)sim->own->header->store_port;
  }
  sim_evtchn_unlock_two(sim->own, NULL);
  sim_peer_keep(sim, peer, result, 0);
  return result;
}

/* The domains of both ends are locked. The peer's end is released first and then waits for our domain to bind again. */
static void close_locked(struct domain *domain, struct port *port, struct domain *remote) {
  if (port->kernel) {
    port->handle = 0;
    port->slot = KERNEL_SLOT;
    port->masked = 1;
    return;
  }
  if (port->references > 0) {
    port->zombie = 1;
    port->handle = 0;
    return;
  }
  struct port *end = port->state == PORT_INTERDOMAIN && remote ? remote_end(remote, domain, port) : NULL;
  if (end) {
    end->state = PORT_UNBOUND;
    end->remote_port = 0;
  }
  __atomic_store_n(&port->state, PORT_FREE, __ATOMIC_RELEASE);
}

void sim_port_close(struct sim *sim, struct domain *domain, uint32_t number) {
  struct port *port = &domain->ports[number];
  /* Even for an unbound port, because its peer may be binding to it right now. */
  struct domain *remote = sim_peer_domain(sim, domain, number, port->remote_domid);
  sim_evtchn_lock_two(domain, remote);
  close_locked(domain, port, remote);
  if (domain == sim->own && !port->zombie) sim_peer_forget(sim, number);
  sim_evtchn_unlock_two(domain, remote);
  sim_domain_put(remote);
}

int32_t sim_evtchn_unbind(struct evtchn *base, uint32_t number) {
  const struct sim_evtchn *evtchn = (struct sim_evtchn *)base;
  if (sim_usable(evtchn->sim)) return -ENODEV;
  if (is_no_port(number)) return -EINVAL;
  if (!own_port(evtchn, number)) return -ENOTCONN;
  sim_port_close(evtchn->sim, evtchn->sim->own, number);
  return 0;
}

/* The owner may be using the port again by now, and another process sending it. */
static void sent(struct sim *sim, struct domain *remote, struct port *end, int error) {
  uint32_t sender = sim->slot;
  if (error == 0) {
    __atomic_compare_exchange_n(&end->sender, &sender, 0, 0, __ATOMIC_RELEASE, __ATOMIC_RELAXED);
    return;
  }
  sim_evtchn_lock_two(remote, NULL);
  if (end->sender == sender) {
    end->sender = 0;
    end->masked = 0;
    end->pending = 1;
  }
  sim_evtchn_unlock_two(remote, NULL);
}

/* Sends an event to a port's other end; what `deliver` does, but the FIFO is written without the lock. */
static int notify_end(struct sim *sim, struct domain *domain, uint32_t number, struct domain *remote) {
  sim_evtchn_lock_two(remote, NULL);
  struct port *end = remote_end(remote, domain, &domain->ports[number]);
  int is_ours = end && is_deliverable(end);
  uint32_t handle = is_ours ? end->handle : 0;
  if (is_ours) {
    __atomic_store_n(&end->sender, sim->slot, __ATOMIC_RELAXED);
    end->masked = 1;
    end->pending = 0;
  } else if (end) {
    end->pending = 1;
  }
  sim_evtchn_unlock_two(remote, NULL);
  if (!is_ours) return 0;
  int error = sim_fifo_write(sim, domain == sim->own ? number : 0, remote, handle, (uint32_t)(end - remote->ports));
  sent(sim, remote, end, error);
  return error && sim_ask_to_deliver(sim) ? error : 0;
}

/* Sends an event over `domain`'s port `number`. */
int sim_port_notify(struct sim *sim, struct domain *domain, uint32_t number) {
  sim_evtchn_lock_two(domain, NULL);
  struct port copy = domain->ports[number];
  sim_evtchn_unlock_two(domain, NULL);
  if (copy.state != PORT_INTERDOMAIN) return 0;
  struct domain *remote = sim_peer_domain(sim, domain, number, copy.remote_domid);
  if (!remote) return errno == ESRCH ? 0 : -errno;
  int error = notify_end(sim, domain, number, remote);
  sim_domain_put(remote);
  return error;
}

void sim_abandon_sending(struct domain *domain, uint32_t slot) {
  sim_evtchn_lock_two(domain, NULL);
  for (uint32_t i = 1; i < domain->header->limits.ports; i++) {
    struct port *port = &domain->ports[i];
    if (port->state == PORT_FREE || port->sender != slot) continue;
    port->sender = 0;
    port->masked = 0;
    port->pending = 1;
  }
  sim_evtchn_unlock_two(domain, NULL);
}

int32_t sim_deliver_pending(struct sim *sim, struct domain *domain) {
  int32_t left = 0;
  sim_evtchn_lock_two(domain, NULL);
  for (uint32_t i = 1; i < domain->header->limits.ports; i++) {
    struct port *port = &domain->ports[i];
    if (port->state == PORT_FREE || port->handle == 0 || port->masked || !port->pending) continue;
    if (deliver(sim, domain, port)) left++;
  }
  sim_evtchn_unlock_two(domain, NULL);
  return left;
}

int32_t sim_evtchn_notify(struct evtchn *base, uint32_t number) {
  const struct sim_evtchn *evtchn = (struct sim_evtchn *)base;
  if (sim_usable(evtchn->sim)) return -ENODEV;
  if (is_no_port(number)) return -EINVAL;
  if (!own_port(evtchn, number)) return -ENOTCONN;
  return sim_port_notify(evtchn->sim, evtchn->sim->own, number);
}

/* Like the device, ignores a port that is not ours. */
int32_t sim_evtchn_unmask(struct evtchn *base, uint32_t number) {
  const struct sim_evtchn *evtchn = (struct sim_evtchn *)base;
  struct sim *sim = evtchn->sim;
  if (sim_usable(sim)) return -ENODEV;
  sim_evtchn_lock_two(sim->own, NULL);
  struct port *port = own_port(evtchn, number);
  if (port) {
    port->masked = 0;
    if (port->pending) deliver(sim, sim->own, port);
  }
  sim_evtchn_unlock_two(sim->own, NULL);
  return 0;
}

/* ---- ports of unmap-notifies ---- */

int sim_port_get(struct domain *domain, uint32_t number, uint32_t slot) {
  struct port *port = port_at(domain, number);
  if (!port) return -EINVAL;
  sim_evtchn_lock_two(domain, NULL);
  int error = port->state != PORT_FREE && !port->zombie && port->slot == slot ? 0 : -EINVAL;
  if (!error) port->references++;
  sim_evtchn_unlock_two(domain, NULL);
  return error;
}

void sim_port_put(struct sim *sim, struct domain *domain, uint32_t number) {
  struct port *port = port_at(domain, number);
  if (!port) return;
  sim_evtchn_lock_two(domain, NULL);
  if (port->references > 0) port->references--;
  int last = port->references == 0 && port->zombie;
  sim_evtchn_unlock_two(domain, NULL);
  if (last) sim_port_close(sim, domain, number);
}
