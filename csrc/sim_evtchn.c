/*
 * Event channels of the simulated platform. A handle is a FIFO that its owner opens and notifiers write
 * to; it yields u32 ports like /dev/xen/evtchn. A port that was delivered is masked until unmasked, so it
 * is in the FIFO at most once. A port is written before it is marked: a notifier that dies in between
 * causes one event too many and never one too few. An event that cannot be written (no descriptor is left to open
 * the FIFO with, or the FIFO is full) stays pending on its unmasked port, where the host finds it and tries again.
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

static void fifo_name(char *name, size_t size, uint32_t domid, uint32_t handle) {
  snprintf(name, size, "dom%u/evtchn-%u", domid, handle);
}

/* Handle numbers are never used again, so a cached descriptor is never someone else's. Opened for reading,
   too: a writer alone would get SIGPIPE when the owner is gone. Our own handles have theirs open already. */
static int fifo_fd(struct sim *sim, uint32_t domid, uint32_t handle) {
  for (const struct own_handle *own = sim->handles; own && domid == sim->domid; own = own->next)
    if (own->id == handle) return own->fd;
  struct fifo *fifo = &sim->fifos[(handle + domid * 7) % FIFO_CACHE];
  if (fifo->fd >= 0 && fifo->domid == domid && fifo->handle == handle) return fifo->fd;
  char name[64];
  if (fifo->fd >= 0) close(fifo->fd);
  fifo_name(name, sizeof name, domid, handle);
  fifo->fd = openat(sim->dir_fd, name, O_RDWR | O_NONBLOCK | O_CLOEXEC | O_NOFOLLOW);
  fifo->domid = domid;
  fifo->handle = handle;
  return fifo->fd;
}

/* 0, or -errno when the event is not in the FIFO. */
static int send_port(struct sim *sim, struct domain *domain, struct port *port) {
  uint32_t number = (uint32_t)(port - domain->ports);
  int fd = fifo_fd(sim, domain->domid, port->handle);
  if (fd < 0 || write(fd, &number, sizeof number) != (ssize_t)sizeof number) return -errno;
  port->masked = 1;
  port->pending = 0;
  return 0;
}

/* 0 when the event is in the FIFO, waits to be unmasked, or the host will send it. */
static int deliver(struct sim *sim, struct domain *domain, struct port *port) {
  int is_open = !port->masked && port->handle != 0;
  int error = is_open ? send_port(sim, domain, port) : 0;
  if (is_open && error == 0) return 0;
  port->pending = 1;
  return error && sim_ask_to_deliver(sim) ? error : 0;
}

static struct port *port_at(struct domain *domain, uint32_t number) {
  return number > 0 && number < domain->header->limits.ports ? &domain->ports[number] : NULL;
}

/* The port if it is open and belongs to this handle of this process. */
static struct port *own_port(struct sim *sim, uint32_t handle, uint32_t number) {
  struct port *port = port_at(sim->own, number);
  if (!port || port->state == PORT_FREE || port->zombie) return NULL;
  return port->handle == handle && port->slot == sim->slot ? port : NULL;
}

static struct port *free_port(struct domain *domain) {
  for (uint32_t i = 1; i < domain->header->limits.ports; i++)
    if (domain->ports[i].state == PORT_FREE) return &domain->ports[i];
  return NULL;
}

/* The other end, if it is one: locks are not held between reading a peer's number and locking the peer. */
static struct port *remote_end(struct domain *remote, const struct domain *domain, const struct port *port) {
  struct port *end = port_at(remote, port->remote_port);
  if (!end || end->state != PORT_INTERDOMAIN) return NULL;
  return end->remote_domid == domain->domid && end->remote_port == (uint32_t)(port - domain->ports) ? end : NULL;
}

/* A port counts from the moment its state is set; everything else in it is there by then. */
static void open_port(struct port *port, struct port value) {
  uint32_t state = value.state;
  value.state = PORT_FREE;
  *port = value;
  __atomic_store_n(&port->state, state, __ATOMIC_RELEASE);
}

/* ---- handles ---- */

static struct handle *handle_record(struct sim *sim, uint32_t id) {
  struct handle *handles = sim->own->handles;
  for (uint32_t i = 0; id != 0 && i < sim->own->header->limits.handles; i++)
    if (handles[i].id == id && handles[i].slot == sim->slot) return &handles[i];
  return NULL;
}

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

int32_t xt_sim_evtchn_open(void *opaque, uint32_t *id) {
  struct sim *sim = opaque;
  char name[64];
  if (sim_usable(sim)) return -ENODEV;
  struct own_handle *own = calloc(1, sizeof *own);
  if (!own) return -ENOMEM;
  struct handle *handle = take_handle(sim);
  if (!handle) {
    free(own);
    return -EMFILE;
  }
  *id = handle->id;
  fifo_name(name, sizeof name, sim->domid, handle->id);
  int fd = mkfifoat(sim->dir_fd, name, 0600) ? -1 : openat(sim->dir_fd, name, O_RDWR | O_NONBLOCK | O_CLOEXEC);
  if (fd >= 0) {
    *own = (struct own_handle){*id, fd, sim->handles};
    sim->handles = own;
    sim->live++;
    return fd;
  }
  int error = -errno;
  free(own);
  sim_handle_close(sim, sim->own, *id);
  return error;
}

/* Closes every port of a handle, then the handle. */
void sim_handle_close(struct sim *sim, struct domain *domain, uint32_t id) {
  char name[64];
  for (uint32_t i = 1; i < domain->header->limits.ports; i++)
    if (domain->ports[i].state != PORT_FREE && domain->ports[i].handle == id) sim_port_close(sim, domain, i);
  fifo_name(name, sizeof name, domain->domid, id);
  unlinkat(sim->dir_fd, name, 0);
  sim_evtchn_lock_two(domain, NULL);
  for (uint32_t i = 0; i < domain->header->limits.handles; i++)
    if (domain->handles[i].id == id) domain->handles[i] = (struct handle){0};
  sim_evtchn_unlock_two(domain, NULL);
}

static void forget_handle(struct sim *sim, uint32_t id) {
  for (struct own_handle **link = &sim->handles; *link; link = &(*link)->next) {
    struct own_handle *own = *link;
    if (own->id != id) continue;
    *link = own->next;
    free(own);
    return;
  }
}

int32_t xt_sim_evtchn_close(void *opaque, uint32_t id, int32_t fd) {
  struct sim *sim = opaque;
  forget_handle(sim, id);
  if (sim_usable(sim) == 0 && handle_record(sim, id)) sim_handle_close(sim, sim->own, id);
  int error = close(fd) ? -errno : 0;
  sim_forget_one(sim);
  return error;
}

/* ---- ports ---- */

int32_t xt_sim_evtchn_bind_unbound(void *opaque, uint32_t handle, uint32_t domid) {
  struct sim *sim = opaque;
  if (sim_usable(sim)) return -ENODEV;
  if (!sim_domain(sim, domid)) return -errno;
  if (!handle_record(sim, handle)) return -EBADF;
  sim_evtchn_lock_two(sim->own, NULL);
  struct port *port = free_port(sim->own);
  if (port)
    open_port(port, (struct port){
                        .state = PORT_UNBOUND, .handle = handle, .slot = sim->slot, .remote_domid = domid});
  sim_evtchn_unlock_two(sim->own, NULL);
  return port ? (int32_t)(port - sim->own->ports) : -ENOSPC;
}

/* Our end is made first: a death before the peer's end points back leaves an end that closes harmlessly. */
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
  deliver(sim, sim->own, near); /* as Xen: whatever was sent before we listened is not lost */
  return number;
}

int32_t xt_sim_evtchn_bind_interdomain(void *opaque, uint32_t handle, uint32_t domid, uint32_t port) {
  struct sim *sim = opaque;
  if (sim_usable(sim)) return -ENODEV;
  struct domain *remote = sim_domain(sim, domid);
  if (!remote) return -errno;
  if (!handle_record(sim, handle)) return -EBADF;
  sim_evtchn_lock_two(sim->own, remote);
  int32_t result = remote->header->dead ? -ESRCH : bind_ends(sim, handle, remote, port);
  sim_evtchn_unlock_two(sim->own, remote);
  return result;
}

int32_t xt_sim_evtchn_adopt_store(void *opaque, uint32_t handle) {
  struct sim *sim = opaque;
  if (sim_usable(sim)) return -ENODEV;
  if (!handle_record(sim, handle)) return -EBADF;
  struct port *port = port_at(sim->own, sim->own->header->store_port);
  if (!port) return -ENODEV;
  if (!sim_domain(sim, port->remote_domid)) return -errno; /* a notify must not need to open anything */
  int32_t result = -EBUSY;
  sim_evtchn_lock_two(sim->own, NULL);
  if (port->kernel && port->handle == 0) {
    port->handle = handle;
    port->slot = sim->slot;
    port->masked = 0;
    if (port->pending) deliver(sim, sim->own, port);
    result = (int32_t)sim->own->header->store_port;
  }
  sim_evtchn_unlock_two(sim->own, NULL);
  return result;
}

/* Both ends' domains are locked. The peer's end goes first and waits for our domain to bind again. */
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
  /* Also of an unbound port: its peer may be binding just now. */
  struct domain *remote = port->remote_domid == domain->domid ? domain : sim_domain(sim, port->remote_domid);
  sim_evtchn_lock_two(domain, remote);
  close_locked(domain, port, remote);
  sim_evtchn_unlock_two(domain, remote);
}

int32_t xt_sim_evtchn_unbind(void *opaque, uint32_t handle, uint32_t number) {
  struct sim *sim = opaque;
  if (sim_usable(sim)) return -ENODEV;
  if (!own_port(sim, handle, number)) return -ENOTCONN;
  sim_port_close(sim, sim->own, number);
  return 0;
}

/* Sends an event over `domain`'s port `number`. */
int sim_port_notify(struct sim *sim, struct domain *domain, uint32_t number) {
  sim_evtchn_lock_two(domain, NULL);
  struct port copy = domain->ports[number];
  sim_evtchn_unlock_two(domain, NULL);
  if (copy.state != PORT_INTERDOMAIN) return 0;
  struct domain *remote = copy.remote_domid == domain->domid ? domain : sim_domain(sim, copy.remote_domid);
  if (!remote) return errno == ESRCH ? 0 : -errno;
  sim_evtchn_lock_two(remote, NULL);
  struct port *end = remote_end(remote, domain, &domain->ports[number]);
  int error = end ? deliver(sim, remote, end) : 0;
  sim_evtchn_unlock_two(remote, NULL);
  return error;
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

int32_t xt_sim_evtchn_notify(void *opaque, uint32_t handle, uint32_t number) {
  struct sim *sim = opaque;
  if (sim_usable(sim)) return -ENODEV;
  if (!own_port(sim, handle, number)) return -ENOTCONN;
  return sim_port_notify(sim, sim->own, number);
}

/* As the device: a port that is not ours is ignored. */
int32_t xt_sim_evtchn_unmask(void *opaque, uint32_t handle, uint32_t number) {
  struct sim *sim = opaque;
  if (sim_usable(sim)) return -ENODEV;
  sim_evtchn_lock_two(sim->own, NULL);
  struct port *port = own_port(sim, handle, number);
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
