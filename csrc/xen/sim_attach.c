/*
 * Attaches a process to a simulated host. The process takes a slot in the host's table and keeps a connection open;
 * when that connection ends, the host knows that the process died. Nothing waits for a reply, so host and attached
 * process may be the same process.
 */
#define _GNU_SOURCE
#include "sim.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

int32_t xt_sim_crash(void *handle) {
  struct sim *sim = handle;
  __atomic_store_n(&sim->crashed, 1, __ATOMIC_RELEASE);
  if (sim->connection >= 0) close(sim->connection);
  sim->connection = -1;
  return 0;
}

/* ---- forks ---- */

/*
 * An attachment belongs to one process. A child of a fork would keep its connection open and so hide the parent's death
 * from the host. Therefore the child drops the connection at once and is not attached.
 */
static pthread_mutex_t attachments_lock = PTHREAD_MUTEX_INITIALIZER;
static struct sim *attachments;

static void before_fork(void) { pthread_mutex_lock(&attachments_lock); }
static void after_fork_in_parent(void) { pthread_mutex_unlock(&attachments_lock); }
static void after_fork_in_child(void) {
  for (struct sim *sim = attachments; sim; sim = sim->next) {
    xt_sim_crash(sim);
    pthread_mutex_init(&sim->lock, NULL); /* its holder does not exist in the child */
  }
  pthread_mutex_unlock(&attachments_lock);
}

static void add_attachment(struct sim *sim) {
  static int watching;
  pthread_mutex_lock(&attachments_lock);
  if (!watching) watching = pthread_atfork(before_fork, after_fork_in_parent, after_fork_in_child) == 0;
  sim->next = attachments;
  attachments = sim;
  pthread_mutex_unlock(&attachments_lock);
}

static void remove_attachment(const struct sim *sim) {
  pthread_mutex_lock(&attachments_lock);
  for (struct sim **link = &attachments; *link; link = &(*link)->next) {
    if (*link != sim) continue;
    *link = sim->next;
    break;
  }
  pthread_mutex_unlock(&attachments_lock);
}

/* ---- attaching ---- */

int sim_usable(const struct sim *sim) {
  const struct slot *slot = &sim->host->slots[sim->slot];
  if (__atomic_load_n(&sim->crashed, __ATOMIC_ACQUIRE) || sim_domain_is_dead(sim->own)) return -ENODEV;
  return slot->in_use && slot->generation == sim->generation ? 0 : -ENODEV;
}

static int take_slot(struct sim *sim, int is_host) {
  struct host_file *host = sim->host;
  int result = -EAGAIN;
  sim_mutex_lock(&host->lock);
  for (uint32_t i = KERNEL_SLOT + 1; i < host->limits.slots; i++) {
    struct slot *slot = &host->slots[i];
    if (slot->in_use) continue;
    sim->slot = i;
    sim->generation = ++slot->generation;
    slot->pid = (uint32_t)getpid();
    slot->domid = sim->domid;
    slot->is_host = (uint32_t)is_host;
    slot->in_use = 1;
    result = 0;
    break;
  }
  pthread_mutex_unlock(&host->lock);
  return result;
}

static void give_back_slot(const struct sim *sim) {
  struct slot *slot = &sim->host->slots[sim->slot];
  sim_mutex_lock(&sim->host->lock);
  if (slot->generation == sim->generation) slot->in_use = 0;
  pthread_mutex_unlock(&sim->host->lock);
}

static int connect_to_host(const char *dir) {
  struct sockaddr_un address = {.sun_family = AF_UNIX};
  int length = snprintf(address.sun_path, sizeof address.sun_path, "%s/host.sock", dir);
  if (length < 0 || (size_t)length >= sizeof address.sun_path) return -ENAMETOOLONG;
  int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
  if (fd < 0) return -errno;
  if (connect(fd, (struct sockaddr *)&address, sizeof address) == 0) return fd;
  int error = -errno;
  close(fd);
  return error;
}

/* Tells the host which slot belongs to this connection. When the connection closes, the host reaps the slot. */
static int tell_host(const struct sim *sim) {
  char line[96];
  int length = snprintf(line, sizeof line, "{\"op\":\"attach\",\"slot\":%u,\"generation\":%u}\n", sim->slot,
                        sim->generation);
  return send(sim->connection, line, (size_t)length, MSG_NOSIGNAL) == length ? 0 : -EPIPE;
}

int sim_ask_to_deliver(const struct sim *sim) {
  static const char line[] = "{\"op\":\"deliver\"}\n";
  if (sim->connection < 0) return -ENOTCONN;
  if (send(sim->connection, line, sizeof line - 1, MSG_NOSIGNAL | MSG_DONTWAIT) == (ssize_t)sizeof line - 1) return 0;
  return errno == EAGAIN ? 0 : -errno; /* its queue is full of these requests already */
}

static void free_sim(struct sim *sim) {
  remove_attachment(sim);
  for (uint32_t i = 0; i < sim->peer_count; i++) sim_domain_put(sim->peers[i]);
  sim_domain_put(sim->own);
  if (sim->host != MAP_FAILED) munmap(sim->host, sim->host_size);
  if (sim->connection >= 0) close(sim->connection);
  if (sim->dir_fd >= 0) close(sim->dir_fd);
  pthread_mutex_destroy(&sim->lock);
  free(sim);
}

static int attach(struct sim *sim, const char *dir, int is_host) {
  sim->dir_fd = sim_open_dir(dir);
  if (sim->dir_fd < 0) return -errno;
  sim->host = sim_map_host(sim->dir_fd, &sim->host_size);
  if (sim->host == MAP_FAILED) return -errno;
  sim->own = sim_domain_get(sim, sim->domid);
  if (!sim->own) return -errno;
  if (!is_host && (sim->connection = connect_to_host(dir)) < 0) return sim->connection;
  int error = take_slot(sim, is_host);
  if (error || is_host) return error;
  error = tell_host(sim);
  if (error) give_back_slot(sim);
  return error;
}

int sim_attach(struct sim **attached, const struct platform_ops *ops, const char *dir, uint32_t domid, int is_host) {
  struct sim *sim = calloc(1, sizeof *sim);
  if (!sim) return -ENOMEM;
  sim->base.ops = ops;
  sim->domid = domid;
  sim->dir_fd = sim->connection = -1;
  sim->host = MAP_FAILED;
  sim->users = 1;
  pthread_mutex_init(&sim->lock, NULL);
  add_attachment(sim);
  int error = attach(sim, dir, is_host);
  if (error) free_sim(sim);
  else *attached = sim;
  return error;
}

void sim_hold(struct sim *sim) { __atomic_add_fetch(&sim->users, 1, __ATOMIC_RELAXED); }

void sim_put(struct sim *sim) {
  if (__atomic_sub_fetch(&sim->users, 1, __ATOMIC_ACQ_REL) > 0) return;
  if (!sim->crashed) give_back_slot(sim);
  free_sim(sim);
}

/* ---- domains ---- */

/* The lock must be held. Forgets the domain if it has died. */
static struct domain *cached(struct sim *sim, uint32_t domid) {
  for (uint32_t i = 0; i < sim->peer_count; i++) {
    struct domain *domain = sim->peers[i];
    if (domain->domid != domid) continue;
    if (!sim_domain_is_dead(domain)) return domain;
    sim_domain_put(domain);
    sim->peers[i] = sim->peers[--sim->peer_count];
    break;
  }
  return NULL;
}

struct domain *sim_domain_get(struct sim *sim, uint32_t domid) {
  pthread_mutex_lock(&sim->lock);
  struct domain *domain = cached(sim, domid);
  if (!domain && sim->peer_count == XT_SIM_DOMAINS_MAX) errno = ENOSPC;
  else if (!domain && (domain = sim_domain_open(sim->dir_fd, domid))) sim->peers[sim->peer_count++] = domain;
  int error = errno;
  if (domain) sim_domain_hold(domain);
  pthread_mutex_unlock(&sim->lock);
  errno = error;
  return domain;
}
