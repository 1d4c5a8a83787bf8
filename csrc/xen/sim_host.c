/*
 * The host's part of the simulated platform. It does what a kernel and Xen do for a process or a domain that died, and
 * lists what is in use.
 */
#define _GNU_SOURCE
#include "sim.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

/* Stores the numbers of all existing domains; returns how many, or -errno. */
static int32_t list_domains(const struct sim *sim, uint32_t *domids) {
  uint32_t domid;
  int32_t count = 0;
  int fd = openat(sim->dir_fd, ".", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
  DIR *dir = fd < 0 ? NULL : fdopendir(fd);
  if (!dir) {
    int error = -errno;
    if (fd >= 0) close(fd);
    return error;
  }
  for (struct dirent *entry; count < (int32_t)XT_SIM_DOMAINS_MAX && (entry = readdir(dir));)
    if (sscanf(entry->d_name, "dom%u", &domid) == 1) domids[count++] = domid;
  closedir(dir);
  return count;
}

/* All domains, mapped and referenced in advance, so that the work on them cannot run out of resources half-way. */
struct domains {
  struct domain *all[XT_SIM_DOMAINS_MAX];
  uint32_t count;
};

/* Returns 0 or -errno. Call put_domains in either case. */
static int32_t get_domains(struct sim *sim, struct domains *domains) {
  uint32_t domids[XT_SIM_DOMAINS_MAX];
  int32_t count = list_domains(sim, domids);
  domains->count = 0;
  for (int32_t i = 0; i < count; i++) {
    struct domain *domain = sim_domain_get(sim, domids[i]);
    if (domain) domains->all[domains->count++] = domain;
    else if (errno != ESRCH) return -errno;
  }
  return count < 0 ? count : 0;
}

static void put_domains(const struct domains *domains) {
  for (uint32_t i = 0; i < domains->count; i++) sim_domain_put(domains->all[i]);
}

/* ---- reaping ---- */

static void notify_once(struct sim *sim, struct domain *owner, uint32_t *port) {
  if (*port == 0 || !owner) return;
  sim_port_notify(sim, owner, *port);
  sim_port_put(sim, owner, *port);
  *port = 0;
}

/* Runs the unmap-notifies of everything that the slot, a process of `owner`, maps and shares in `domain`. */
static void run_notifies(struct sim *sim, struct domain *domain, struct domain *owner, uint32_t slot) {
  sim_grant_lock(domain);
  for (uint32_t i = 0; i < domain->header->track_high; i++) {
    struct track *track = &domain->tracks[i];
    if (!track->in_use || track->slot != slot) continue;
    sim_track_clear_byte(domain, track);
    notify_once(sim, owner, &track->port);
  }
  for (uint32_t ref = XT_SIM_RESERVED_GREFS; ref < domain->header->gref_high; ref++) {
    struct grant_record *record = &domain->records[ref];
    if (record->state != GRANT_SHARED || record->slot != slot) continue;
    sim_grant_clear_byte(domain, ref);
    notify_once(sim, owner, &record->port);
  }
  sim_grant_unlock(domain);
}

static void drop_grants(struct domain *domain, uint32_t slot) {
  sim_grant_lock(domain);
  for (uint32_t i = 0; i < domain->header->track_high; i++)
    if (domain->tracks[i].in_use && domain->tracks[i].slot == slot) sim_track_drop(domain, &domain->tracks[i]);
  for (uint32_t ref = XT_SIM_RESERVED_GREFS; ref < domain->header->gref_high; ref++)
    if (domain->records[ref].state == GRANT_SHARED && domain->records[ref].slot == slot) sim_grant_end(domain, ref);
  sim_grant_unlock(domain);
}

static void close_handles(struct sim *sim, struct domain *domain, uint32_t slot) {
  for (uint32_t i = 0; i < domain->header->limits.handles; i++)
    if (domain->handles[i].id && domain->handles[i].slot == slot) sim_handle_close(sim, domain, domain->handles[i].id);
}

/* Ports without a handle that were kept only for an unmap-notify that will never come. */
static void close_leftover_ports(struct sim *sim, struct domain *domain, uint32_t slot) {
  for (uint32_t i = 1; i < domain->header->limits.ports; i++) {
    if (domain->ports[i].state == PORT_FREE || domain->ports[i].slot != slot) continue;
    domain->ports[i].references = 0;
    sim_port_close(sim, domain, i);
  }
}

static void free_slot(struct sim *sim, uint32_t slot, uint32_t generation) {
  sim_mutex_lock(&sim->host->lock);
  if (sim->host->slots[slot].generation == generation) sim->host->slots[slot].in_use = 0;
  pthread_mutex_unlock(&sim->host->lock);
}

static void bury_in(struct sim *sim, const struct domains *domains, uint32_t slot, int with_notifies) {
  uint32_t generation = sim->host->slots[slot].generation;
  struct domain *owner = NULL;
  for (uint32_t i = 0; i < domains->count; i++)
    if (domains->all[i]->domid == sim->host->slots[slot].domid) owner = domains->all[i];
  for (uint32_t i = 0; with_notifies && i < domains->count; i++) run_notifies(sim, domains->all[i], owner, slot);
  if (owner) {
    close_handles(sim, owner, slot);
    close_leftover_ports(sim, owner, slot);
  }
  for (uint32_t i = 0; i < domains->count; i++) {
    drop_grants(domains->all[i], slot);
    sim_abandon_sending(domains->all[i], slot);
  }
  free_slot(sim, slot, generation);
}

static int32_t bury(struct sim *sim, uint32_t slot, int with_notifies) {
  struct domains domains;
  int32_t error = get_domains(sim, &domains);
  if (error == 0) bury_in(sim, &domains, slot, with_notifies);
  put_domains(&domains);
  return error;
}

int32_t xt_sim_reap(void *opaque, uint32_t slot, uint32_t generation) {
  struct sim *sim = opaque;
  if (slot == KERNEL_SLOT || slot >= sim->host->limits.slots) return 0; /* not a process's slot */
  const struct slot *record = &sim->host->slots[slot];
  return record->in_use && record->generation == generation ? bury(sim, slot, 1) : 0;
}

int32_t xt_sim_deliver(void *opaque) {
  struct sim *sim = opaque;
  struct domains domains;
  int32_t error = get_domains(sim, &domains), left = 0;
  for (uint32_t i = 0; error == 0 && i < domains.count; i++) left += sim_deliver_pending(sim, domains.all[i]);
  put_domains(&domains);
  return error ? error : left;
}

int32_t xt_sim_sweep(void *opaque) {
  struct sim *sim = opaque;
  for (uint32_t i = KERNEL_SLOT + 1; i < sim->host->limits.slots; i++) {
    const struct slot *slot = &sim->host->slots[i];
    if (!slot->in_use || kill((pid_t)slot->pid, 0) == 0 || errno != ESRCH) continue;
    int32_t error = bury(sim, i, 1);
    if (error) return error;
  }
  return 0;
}

/* ---- the death of a domain ---- */

static void mark_dead(struct domain *domain) {
  sim_grant_lock(domain);
  sim_evtchn_lock_two(domain, NULL);
  __atomic_store_n(&domain->header->dead, 1, __ATOMIC_SEQ_CST);
  sim_evtchn_unlock_two(domain, NULL);
  sim_grant_unlock(domain);
}

static void remove_files(const struct sim *sim, uint32_t domid) {
  char name[64];
  snprintf(name, sizeof name, "dom%u/memory", domid);
  unlinkat(sim->dir_fd, name, 0);
  snprintf(name, sizeof name, "dom%u", domid);
  unlinkat(sim->dir_fd, name, AT_REMOVEDIR);
}

int32_t xt_sim_domain_destroy(void *opaque, uint32_t domid) {
  struct sim *sim = opaque;
  struct domain *domain = sim_domain_get(sim, domid);
  if (!domain) return -errno;
  int32_t error = 0;
  for (uint32_t i = KERNEL_SLOT + 1; error == 0 && i < sim->host->limits.slots; i++)
    if (sim->host->slots[i].in_use && sim->host->slots[i].domid == domid) error = bury(sim, i, 0);
  if (error) {
    sim_domain_put(domain);
    return error;
  }
  mark_dead(domain);
  for (uint32_t i = 1; i < domain->header->limits.ports; i++) {
    struct port *port = &domain->ports[i];
    if (port->state == PORT_FREE) continue;
    port->kernel = 0;
    port->references = 0;
    sim_port_close(sim, domain, i);
  }
  remove_files(sim, domid);
  sim_domain_put(domain);
  return 0;
}

/* ---- usage ---- */

struct list {
  const struct sim *sim;
  struct xt_sim_item *items;
  uint32_t count, max;
};

static void add(struct list *list, uint32_t slot, struct xt_sim_item item) {
  item.slot = slot;
  item.pid = slot == KERNEL_SLOT ? 0 : list->sim->host->slots[slot].pid;
  if (list->count < list->max) list->items[list->count] = item;
  list->count++;
}

static void list_grants(struct list *list, struct domain *domain) {
  sim_grant_lock(domain);
  for (uint32_t ref = 0; ref < domain->header->gref_high; ref++) {
    const struct grant_record *record = &domain->records[ref];
    if (record->state == GRANT_FREE) continue;
    add(list, record->slot,
        (struct xt_sim_item){.kind = record->state == GRANT_ORPHAN ? XT_SIM_ORPHAN : XT_SIM_GRANT,
                             .domid = domain->domid,
                             .id = ref,
                             .peer = domain->entries[ref].access >> 16,
                             .count = record->readers + record->writers});
  }
  for (uint32_t i = 0; i < domain->header->track_high; i++) {
    const struct track *track = &domain->tracks[i];
    if (!track->in_use) continue;
    add(list, track->slot,
        (struct xt_sim_item){.kind = XT_SIM_MAP,
                             .domid = domain->domid,
                             .id = track->ref,
                             .peer = track->domid,
                             .count = track->writable});
  }
  sim_grant_unlock(domain);
}

static void list_evtchns(struct list *list, struct domain *domain) {
  sim_evtchn_lock_two(domain, NULL);
  for (uint32_t i = 1; i < domain->header->limits.ports; i++) {
    const struct port *port = &domain->ports[i];
    if (port->state == PORT_FREE) continue;
    add(list, port->slot,
        (struct xt_sim_item){.kind = XT_SIM_PORT,
                             .domid = domain->domid,
                             .id = i,
                             .peer = port->remote_domid,
                             .count = port->state == PORT_INTERDOMAIN ? port->remote_port : 0});
  }
  for (uint32_t i = 0; i < domain->header->limits.handles; i++) {
    const struct handle *handle = &domain->handles[i];
    if (handle->id)
      add(list, handle->slot,
          (struct xt_sim_item){.kind = XT_SIM_HANDLE, .domid = domain->domid, .id = handle->id});
  }
  sim_evtchn_unlock_two(domain, NULL);
}

int32_t xt_sim_list(void *opaque, struct xt_sim_item *items, uint32_t max) {
  struct sim *sim = opaque;
  struct list list = {sim, items, 0, max};
  struct domains domains;
  int32_t error = get_domains(sim, &domains);
  for (uint32_t i = KERNEL_SLOT + 1; i < sim->host->limits.slots; i++) {
    const struct slot *slot = &sim->host->slots[i];
    if (slot->in_use)
      add(&list, i,
          (struct xt_sim_item){
              .kind = XT_SIM_SLOT, .domid = slot->domid, .id = i, .peer = slot->is_host, .count = slot->generation});
  }
  for (uint32_t i = 0; i < domains.count; i++) {
    list_grants(&list, domains.all[i]);
    list_evtchns(&list, domains.all[i]);
  }
  put_domains(&domains);
  return error ? error : (int32_t)list.count;
}
