/*
 * The other ends of our ports, kept open: a process that may open nothing any more still sends its events. A port's
 * peer is found when the port is bound, and forgotten when it is closed. Who binds last also knows the peer's FIFO by
 * then; who offers a port opens it with the first event.
 */
#define _GNU_SOURCE
#include "sim.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

void sim_fifo_name(char *name, size_t size, uint32_t domid, uint32_t handle) {
  snprintf(name, size, "dom%u/evtchn-%u", domid, handle);
}

/* Open for reading, too: a mere writer would get SIGPIPE once the owner is gone. */
static int open_fifo_of(const struct sim *sim, uint32_t domid, uint32_t handle) {
  char name[64];
  sim_fifo_name(name, sizeof name, domid, handle);
  return openat(sim->dir_fd, name, O_RDWR | O_NONBLOCK | O_CLOEXEC | O_NOFOLLOW);
}

/* ---- peers. The attachment's lock is held ---- */

static struct peer **place_of(struct sim *sim, uint32_t port) {
  struct peer **place = &sim->ends;
  while (*place && (*place)->port != port) place = &(*place)->next;
  return place;
}

static void close_fifo(struct peer *peer) {
  if (peer->fd >= 0) close(peer->fd);
  peer->fd = -1;
}

/* Handle numbers are never reused within a domain, so an open descriptor never belongs to another handle. */
static int fifo_of(const struct sim *sim, struct peer *peer, uint32_t handle) {
  if (peer->fd >= 0 && peer->handle == handle) return peer->fd;
  close_fifo(peer);
  peer->handle = handle;
  peer->fd = open_fifo_of(sim, peer->domain->domid, handle);
  return peer->fd;
}

static void free_peer(struct peer *peer) {
  close_fifo(peer);
  sim_domain_put(peer->domain);
  free(peer);
}

/* ---- what others call ---- */

struct peer *sim_peer_new(struct domain *domain) {
  struct peer *peer = malloc(sizeof *peer);
  if (!peer) return NULL;
  sim_domain_hold(domain);
  *peer = (struct peer){.domain = domain, .fd = -1};
  return peer;
}

void sim_peer_keep(struct sim *sim, struct peer *peer, int32_t port, uint32_t handle) {
  if (port < 0) {
    free_peer(peer);
    return;
  }
  pthread_mutex_lock(&sim->lock);
  peer->port = (uint32_t)port;
  if (handle) fifo_of(sim, peer, handle); /* if that fails, each event tries again */
  peer->next = sim->ends;
  sim->ends = peer;
  pthread_mutex_unlock(&sim->lock);
}

void sim_peer_forget(struct sim *sim, uint32_t port) {
  pthread_mutex_lock(&sim->lock);
  struct peer **place = place_of(sim, port), *peer = *place;
  if (peer) *place = peer->next;
  pthread_mutex_unlock(&sim->lock);
  if (peer) free_peer(peer);
}

/* A dead domain may have been followed by another one of the same number, which may have bound to the same port. */
struct domain *sim_peer_domain(struct sim *sim, struct domain *domain, uint32_t port, uint32_t domid) {
  if (domid == domain->domid) {
    sim_domain_hold(domain);
    return domain;
  }
  pthread_mutex_lock(&sim->lock);
  const struct peer *peer = domain == sim->own ? *place_of(sim, port) : NULL;
  struct domain *kept = peer ? peer->domain : NULL;
  if (kept) sim_domain_hold(kept);
  pthread_mutex_unlock(&sim->lock);
  if (kept && !sim_domain_is_dead(kept)) return kept;
  struct domain *fresh = sim_domain_get(sim, domid);
  if (!fresh) return kept;
  sim_domain_put(kept);
  return fresh;
}

/* Our own handle, whose FIFO is already open; NULL for any other. */
static const struct sim_evtchn *own_handle(const struct sim *sim, uint32_t domid, uint32_t handle) {
  const struct sim_evtchn *own = domid == sim->domid ? sim->handles : NULL;
  while (own && own->id != handle) own = own->next;
  return own;
}

/* Writing to a blocking descriptor would wait for room, so check for room first. */
static int write_port(int fd, int blocks, uint32_t number) {
  struct pollfd room = {.fd = fd, .events = POLLOUT};
  if (fd < 0) return -errno;
  if (blocks && poll(&room, 1, 0) == 0) return -EAGAIN;
  return write(fd, &number, sizeof number) == (ssize_t)sizeof number ? 0 : -errno;
}

int sim_fifo_write(struct sim *sim, uint32_t from, const struct domain *domain, uint32_t handle, uint32_t number) {
  pthread_mutex_lock(&sim->lock);
  const struct sim_evtchn *own = own_handle(sim, domain->domid, handle);
  struct peer *peer = own || !from ? NULL : *place_of(sim, from);
  int error;
  if (own) {
    error = write_port(own->base.fd, own->blocks, number);
  } else if (peer && peer->domain == domain) {
    error = write_port(fifo_of(sim, peer, handle), 0, number);
  } else {
    int fd = open_fifo_of(sim, domain->domid, handle);
    error = write_port(fd, 0, number);
    if (fd >= 0) close(fd);
  }
  pthread_mutex_unlock(&sim->lock);
  return error;
}
