/* Grants of the simulated platform: mapping others' pages and sharing our own. sim_table.c has the access rules. */
#define _GNU_SOURCE
#include "sim.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

/* A page of `domain`. `item` is its track if the page is mapped, its reference if the page is shared. */
struct page {
  struct domain *domain;
  uint32_t item, frame;
};

/*
 * Pages mapped or shared in one call. Adjacent pages of one domain form a run, which holds one reference to the domain.
 */
struct region {
  struct pages base;
  struct sim *sim;
  uint32_t count;
  struct page pages[];
};

static struct region *new_region(struct sim *sim, uint32_t count) {
  struct region *region = calloc(1, sizeof *region + (size_t)count * sizeof region->pages[0]);
  if (!region) return NULL;
  *region = (struct region){.base = {sim->base.ops, MAP_FAILED}, .sim = sim, .count = count};
  sim_hold(sim);
  return region;
}

/* Returns the end of the run of pages of one domain that begins at `first`. */
static uint32_t run_end(const struct region *region, uint32_t first) {
  uint32_t end = first + 1;
  while (end < region->count && region->pages[end].domain == region->pages[first].domain) end++;
  return end;
}

static void unmap_memory(struct region *region) {
  if (region->base.address != MAP_FAILED) munmap(region->base.address, (size_t)region->count * PAGE);
  region->base.address = MAP_FAILED;
}

static void free_region(struct region *region) {
  struct sim *sim = region->sim;
  unmap_memory(region);
  for (uint32_t i = 0; i < region->count; i = run_end(region, i)) sim_domain_put(region->pages[i].domain);
  free(region);
  sim_put(sim);
}

/* How many frames from pages[first] on lie consecutively in one file. */
static uint32_t contiguous(const struct region *region, uint32_t first) {
  const struct page *page = &region->pages[first];
  uint32_t count = 1;
  while (first + count < region->count && page[count].domain == page->domain &&
         page[count].frame == page->frame + count)
    count++;
  return count;
}

/* Maps all frames into one contiguous address range, with one system call per run of consecutive frames. */
static int map_memory(struct region *region, int protection) {
  size_t size = (size_t)region->count * PAGE;
  uint8_t *base = mmap(NULL, size, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (base == MAP_FAILED) return -errno;
  region->base.address = base;
  for (uint32_t i = 0, count; i < region->count; i += count) {
    const struct page *page = &region->pages[i];
    count = contiguous(region, i);
    void *part = base + (size_t)i * PAGE;
    off_t offset = (off_t)(page->domain->frames_offset + (uint64_t)page->frame * PAGE);
    if (mmap(part, (size_t)count * PAGE, protection, MAP_SHARED | MAP_FIXED, page->domain->fd, offset) == MAP_FAILED)
      return -errno;
    madvise(part, (size_t)count * PAGE, MADV_DONTFORK); /* a child must not see the page's next owner's data */
  }
  return 0;
}

/* ---- unmap-notifies ---- */

/* Checks an unmap-notify and holds its port. */
static int take_notify(struct sim *sim, struct notify notify, uint32_t count, int writable) {
  if (notify.clear_byte >= (int64_t)count * PAGE || (notify.clear_byte >= 0 && !writable)) return -EINVAL;
  if (notify.port < 0) return 0;
  return notify.port > UINT32_MAX ? -EINVAL : sim_port_get(sim->own, (uint32_t)notify.port, sim->slot);
}

static void drop_notify(struct sim *sim, struct notify notify) {
  if (notify.port >= 0) sim_port_put(sim, sim->own, (uint32_t)notify.port);
}

/* Which page carries the notify, and the values for that page's record. */
static uint32_t notify_page(struct notify notify) {
  return notify.clear_byte >= 0 ? (uint32_t)(notify.clear_byte / PAGE) : 0;
}
static int32_t notify_offset(struct notify notify) {
  return notify.clear_byte >= 0 ? (int32_t)(notify.clear_byte % PAGE) : -1;
}
static uint32_t notify_port(struct notify notify) { return notify.port >= 0 ? (uint32_t)notify.port : 0; }

static void send_notify(struct sim *sim, uint32_t port) {
  if (port == 0) return;
  sim_port_notify(sim, sim->own, port);
  sim_port_put(sim, sim->own, port);
}

/* ---- mapping ---- */

/* Unpins pages[first] up to `end` without a notify. They belong to one domain, whose lock is held. */
static void drop(const struct region *region, uint32_t first, uint32_t end) {
  for (uint32_t i = first; i < end; i++) {
    struct domain *domain = region->pages[i].domain;
    sim_track_drop(domain, &domain->tracks[region->pages[i].item]);
  }
}

/* Pins pages[first] up to `end`: all or none. */
static int pin(struct region *region, uint32_t first, uint32_t end, const uint32_t *refs, int writable,
               struct notify notify) {
  struct sim *sim = region->sim;
  struct domain *domain = region->pages[first].domain;
  uint32_t done = first;
  sim_grant_lock(domain);
  int error = domain->header->dead ? -EINVAL : 0;
  while (error == 0 && done < end) {
    struct page *page = &region->pages[done];
    error = sim_track_take(domain, refs[done], sim->domid, sim->slot, writable, &page->item, &page->frame);
    if (error == 0 && done == notify_page(notify)) {
      domain->tracks[page->item].clear_byte = notify_offset(notify);
      domain->tracks[page->item].port = notify_port(notify);
    }
    if (error == 0) done++;
  }
  if (error) drop(region, first, done);
  sim_grant_unlock(domain);
  return error;
}

/* Undoes `pin` for all pages before `end`. */
static void unpin(const struct region *region, uint32_t end) {
  for (uint32_t i = 0, next; i < end; i = next) {
    next = run_end(region, i);
    sim_grant_lock(region->pages[i].domain);
    drop(region, i, next);
    sim_grant_unlock(region->pages[i].domain);
  }
}

/* Looks up the domains; each run holds one reference. As on Linux, a domain that does not exist is EINVAL here. */
static int find_domains(struct region *region, const uint32_t *domids) {
  for (uint32_t i = 0; i < region->count; i++) {
    int is_same = i > 0 && domids[i] == domids[i - 1];
    struct domain *domain = is_same ? region->pages[i - 1].domain : sim_domain_get(region->sim, domids[i]);
    if (!domain) {
      int error = errno;
      region->count = i;
      return error == ESRCH ? -EINVAL : -error;
    }
    region->pages[i].domain = domain;
  }
  return 0;
}

static int establish_map(struct region *region, const uint32_t *domids, const uint32_t *refs, int writable,
                         struct notify notify) {
  uint32_t pinned = 0;
  int error = find_domains(region, domids);
  while (error == 0 && pinned < region->count) {
    uint32_t end = run_end(region, pinned);
    error = pin(region, pinned, end, refs, writable, notify);
    if (error == 0) pinned = end;
  }
  if (error == 0) error = map_memory(region, writable ? PROT_READ | PROT_WRITE : PROT_READ);
  if (error) unpin(region, pinned);
  return error;
}

int32_t sim_gnttab_map(struct gnttab *gnttab, const uint32_t *domids, const uint32_t *refs, uint32_t count,
                       int writable, struct notify notify, struct pages **mapped) {
  struct sim *sim = ((struct sim_gnttab *)gnttab)->sim;
  if (sim_usable(sim)) return -ENODEV;
  int error = take_notify(sim, notify, count, writable);
  if (error) return error;
  struct region *region = new_region(sim, count);
  error = region ? establish_map(region, domids, refs, writable, notify) : -ENOMEM;
  if (error == 0) {
    *mapped = &region->base;
    return 0;
  }
  if (region) free_region(region);
  drop_notify(sim, notify);
  return error;
}

/* The byte is cleared while the page is still pinned; the event is sent once it no longer is. */
int32_t sim_gnttab_unmap(struct pages *base) {
  struct region *region = (struct region *)base;
  if (sim_usable(region->sim) == 0) {
    uint32_t port = 0;
    unmap_memory(region);
    for (uint32_t i = 0; i < region->count; i++) {
      struct track *track = &region->pages[i].domain->tracks[region->pages[i].item];
      if (track->port) port = track->port;
      sim_track_clear_byte(region->pages[i].domain, track);
    }
    unpin(region, region->count);
    send_notify(region->sim, port);
  }
  free_region(region);
  return 0;
}

/* ---- sharing ---- */

/* The grant lock must be held. */
static void end_shares(struct region *region, uint32_t end) {
  while (end > 0) sim_grant_end(region->sim->own, region->pages[--end].item);
}

static int share_all(struct region *region, uint32_t domid, int writable, struct notify notify) {
  struct domain *own = region->sim->own;
  if (own->header->shared_pages + region->count > own->header->limits.share_pages) return -ENOSPC;
  for (uint32_t i = 0; i < region->count; i++) {
    int error, noted = i == notify_page(notify);
    uint32_t ref = sim_grant_take(own, &error);
    if (ref == 0) {
      end_shares(region, i);
      return error;
    }
    region->pages[i].item = region->pages[i].frame = ref;
    own->header->shared_pages++;
    own->records[ref] = (struct grant_record){.slot = region->sim->slot,
                                              .clear_byte = noted ? notify_offset(notify) : -1,
                                              .port = noted ? notify_port(notify) : 0};
    __atomic_store_n(&own->records[ref].state, GRANT_SHARED, __ATOMIC_RELEASE);
    own->entries[ref].frame = ref;
    uint32_t access = GTF_PERMIT_ACCESS | (writable ? 0 : GTF_READONLY) | domid << 16;
    __atomic_store_n(&own->entries[ref].access, access, __ATOMIC_RELEASE);
  }
  return 0;
}

static int establish_share(struct region *region, uint32_t domid, int writable, struct notify notify) {
  struct domain *own = region->sim->own;
  for (uint32_t i = 0; i < region->count; i++) region->pages[i].domain = own;
  sim_domain_hold(own);
  sim_grant_lock(own);
  int error = share_all(region, domid, writable, notify);
  sim_grant_unlock(own);
  if (error) return error;
  error = map_memory(region, PROT_READ | PROT_WRITE);
  if (error) {
    sim_grant_lock(own);
    end_shares(region, region->count);
    sim_grant_unlock(own);
  }
  return error;
}

int32_t sim_gntshr_share(struct gntshr *gntshr, uint32_t domid, uint32_t count, int writable, struct notify notify,
                         uint32_t *refs, struct pages **shared) {
  struct sim *sim = ((struct sim_gntshr *)gntshr)->sim;
  if (sim_usable(sim)) return -ENODEV;
  if (count > sim->own->header->limits.grant_entries) return -ENOSPC;
  int error = take_notify(sim, notify, count, 1);
  if (error) return error;
  struct region *region = new_region(sim, count);
  error = region ? establish_share(region, domid, writable, notify) : -ENOMEM;
  if (error == 0) {
    for (uint32_t i = 0; i < count; i++) refs[i] = region->pages[i].item;
    *shared = &region->base;
    return 0;
  }
  if (region) free_region(region);
  drop_notify(sim, notify);
  return error;
}

int32_t sim_gntshr_unshare(struct pages *base) {
  struct region *region = (struct region *)base;
  struct domain *own = region->sim->own;
  if (sim_usable(region->sim) == 0) {
    uint32_t port = 0;
    unmap_memory(region);
    sim_grant_lock(own);
    for (uint32_t i = 0; i < region->count; i++) {
      uint32_t ref = region->pages[i].item;
      if (own->records[ref].port) port = own->records[ref].port;
      sim_grant_clear_byte(own, ref);
      sim_grant_end(own, ref);
    }
    sim_grant_unlock(own);
    send_notify(region->sim, port);
  }
  free_region(region);
  return 0;
}

void *sim_map_own(struct sim *sim, uint32_t ref) {
  off_t offset = (off_t)(sim->own->frames_offset + (uint64_t)ref * PAGE);
  errno = EINVAL;
  if (ref >= XT_SIM_RESERVED_GREFS || sim->own->records[ref].state != GRANT_SHARED) return MAP_FAILED;
  return mmap(NULL, PAGE, PROT_READ | PROT_WRITE, MAP_SHARED, sim->own->fd, offset);
}
