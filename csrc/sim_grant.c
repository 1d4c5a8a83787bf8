/*
 * Grants of the simulated platform: sharing and mapping pages. The rules are those of Xen's
 * grant table v1: a mapping pins its entry and sets GTF_reading/writing; a pinned entry cannot end. Frame N
 * belongs to reference N for good, so a page is reusable exactly when its reference is.
 */
#define _GNU_SOURCE
#include "reserve.h"
#include "sim.h"

#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

struct mapping {
  struct sim *sim;
  struct domain *domain; /* whose pages they are */
  void *address;
  uint32_t count;
  uint32_t items[]; /* mapping: tracks; share: references */
};

static struct mapping *new_mapping(struct sim *sim, struct domain *domain, uint32_t count) {
  struct mapping *mapping = calloc(1, sizeof *mapping + (size_t)count * sizeof mapping->items[0]);
  if (!mapping) return NULL;
  *mapping = (struct mapping){.sim = sim, .domain = domain, .address = MAP_FAILED, .count = count};
  domain->references++;
  sim->live++;
  return mapping;
}

static void free_mapping(struct mapping *mapping) {
  struct sim *sim = mapping->sim;
  if (mapping->address != MAP_FAILED) munmap(mapping->address, (size_t)mapping->count * PAGE);
  sim_domain_release(mapping->domain);
  free(mapping);
  sim_forget_one(sim);
}

/* One contiguous range of addresses over frames[0..count): a system call per run of frames. */
static void *map_frames(const struct domain *domain, const uint32_t *frames, uint32_t count, int protection) {
  uint8_t *base = mmap(NULL, (size_t)count * PAGE, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (base == MAP_FAILED) return MAP_FAILED;
  for (uint32_t i = 0, run; i < count; i += run) {
    for (run = 1; i + run < count && frames[i + run] == frames[i] + run; run++) {}
    off_t offset = (off_t)(domain->frames_offset + (uint64_t)frames[i] * PAGE);
    void *part = base + (size_t)i * PAGE;
    if (mmap(part, (size_t)run * PAGE, protection, MAP_SHARED | MAP_FIXED, domain->fd, offset) != MAP_FAILED) {
      madvise(part, (size_t)run * PAGE, MADV_DONTFORK); /* a child would see who has the page next */
      continue;
    }
    int error = errno;
    munmap(base, (size_t)count * PAGE);
    errno = error;
    return MAP_FAILED;
  }
  return base;
}

/* ---- entries; the domain's grant lock is held ---- */

/* The entry is the granter's memory: read once. */
int16_t sim_check_entry(const struct domain *domain, uint32_t ref, uint32_t by, int write, uint32_t *access,
                           uint32_t *frame) {
  if (ref >= domain->header->limits.grant_entries) return GNTST_BAD_GNTREF;
  *access = __atomic_load_n(&domain->entries[ref].access, __ATOMIC_ACQUIRE);
  if ((*access & GTF_TYPE_MASK) != GTF_PERMIT_ACCESS || *access >> 16 != by) return GNTST_GENERAL_ERROR;
  if (write && (*access & GTF_READONLY)) return GNTST_GENERAL_ERROR;
  *frame = __atomic_load_n(&domain->entries[ref].frame, __ATOMIC_RELAXED);
  return *frame < domain->header->limits.grant_entries ? GNTST_OKAY : GNTST_BAD_PAGE;
}

static int16_t pin(struct domain *domain, uint32_t ref, uint32_t by, int write, uint32_t *frame) {
  uint32_t access, pinned;
  do {
    int16_t status = sim_check_entry(domain, ref, by, write, &access, frame);
    if (status != GNTST_OKAY) return status;
    pinned = access | GTF_READING | (write ? GTF_WRITING : 0);
  } while (!__atomic_compare_exchange_n(&domain->entries[ref].access, &access, pinned, 0, __ATOMIC_SEQ_CST,
                                        __ATOMIC_RELAXED));
  if (write) domain->records[ref].writers++;
  else domain->records[ref].readers++;
  return GNTST_OKAY;
}

static void free_grant(struct domain *domain, uint32_t ref) {
  struct domain_header *header = domain->header;
  __atomic_store_n(&domain->entries[ref].access, 0, __ATOMIC_SEQ_CST);
  domain->entries[ref].frame = 0;
  domain->records[ref] = (struct grant_record){0};
  fallocate(domain->fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE,
            (off_t)(domain->frames_offset + (uint64_t)ref * PAGE), PAGE);
  if (ref < header->gref_low && ref >= XT_SIM_RESERVED_GREFS) header->gref_low = ref;
}

/* Shows in the entry what the pins say; frees an orphan without any. */
static void settle_entry(struct domain *domain, uint32_t ref) {
  const struct grant_record *record = &domain->records[ref];
  uint32_t clear = record->writers == 0 ? GTF_WRITING : 0;
  if (record->writers == 0 && record->readers == 0) {
    clear |= GTF_READING;
    if (record->state == GRANT_ORPHAN) {
      free_grant(domain, ref);
      return;
    }
  }
  if (clear) __atomic_fetch_and(&domain->entries[ref].access, ~clear, __ATOMIC_SEQ_CST);
}

/* Ends access when nobody has the page pinned; else it stays as it is, an orphan, until the last unpin. */
void sim_grant_end(struct domain *domain, uint32_t ref) {
  struct grant_record *record = &domain->records[ref];
  if (record->state == GRANT_SHARED) domain->header->shared_pages--;
  record->state = GRANT_ORPHAN;
  record->slot = KERNEL_SLOT;
  record->clear_byte = -1;
  record->port = 0;
  settle_entry(domain, ref);
}

static void clear_byte(struct domain *domain, uint32_t frame, int32_t *offset) {
  if (*offset < 0) return;
  __atomic_store_n(domain->frames + (uint64_t)frame * PAGE + *offset, 0, __ATOMIC_SEQ_CST);
  *offset = -1;
}

void sim_track_clear_byte(struct domain *domain, struct track *track) {
  clear_byte(domain, track->frame, &track->clear_byte);
}

void sim_grant_clear_byte(struct domain *domain, uint32_t ref) {
  clear_byte(domain, ref, &domain->records[ref].clear_byte);
}

void sim_track_drop(struct domain *domain, struct track *track) {
  struct domain_header *header = domain->header;
  uint32_t number = (uint32_t)(track - domain->tracks), ref = track->ref;
  struct grant_record *record = &domain->records[ref];
  uint32_t *pins = track->writable ? &record->writers : &record->readers;
  __atomic_store_n(&track->in_use, 0, __ATOMIC_RELEASE);
  if (number < header->track_low) header->track_low = number;
  if (*pins > 0) --*pins;
  settle_entry(domain, ref);
}

/* After a death within a change: the records of who maps what are the truth, the rest is counted anew. */
void sim_grant_recount(struct domain *domain) {
  struct domain_header *header = domain->header;
  const struct xt_sim_limits *limits = &header->limits;
  header->gref_low = XT_SIM_RESERVED_GREFS;
  header->gref_high = limits->grant_entries;
  header->track_low = 0;
  header->track_high = limits->maptrack;
  header->shared_pages = 0;
  for (uint32_t ref = 0; ref < limits->grant_entries; ref++)
    if (domain->records[ref].readers || domain->records[ref].writers)
      domain->records[ref].readers = domain->records[ref].writers = 0;
  for (uint32_t i = 0; i < limits->maptrack; i++) {
    const struct track *track = &domain->tracks[i];
    if (!track->in_use) continue;
    if (track->writable) domain->records[track->ref].writers++;
    else domain->records[track->ref].readers++;
  }
  for (uint32_t ref = 0; ref < limits->grant_entries; ref++) {
    if (domain->records[ref].state == GRANT_SHARED && ref >= XT_SIM_RESERVED_GREFS) header->shared_pages++;
    if (domain->entries[ref].access || domain->records[ref].state) settle_entry(domain, ref);
  }
}

/* ---- mapping ---- */

static struct track *take_track(struct domain *domain) {
  struct domain_header *header = domain->header;
  for (uint32_t i = header->track_low; i < header->limits.maptrack; i++) {
    if (domain->tracks[i].in_use) continue;
    header->track_low = i + 1;
    if (header->track_high <= i) header->track_high = i + 1;
    return &domain->tracks[i];
  }
  return NULL;
}

static void unpin_all(struct domain *domain, const uint32_t *tracks, uint32_t count) {
  for (uint32_t i = 0; i < count; i++) sim_track_drop(domain, &domain->tracks[tracks[i]]);
}

/* All or none. A record is complete before it counts: in_use is set last. */
static int pin_all(struct mapping *mapping, const uint32_t *refs, int write, uint32_t *frames) {
  struct domain *domain = mapping->domain;
  struct sim *sim = mapping->sim;
  for (uint32_t i = 0; i < mapping->count; i++) {
    struct track *track = take_track(domain);
    int error = track ? 0 : -ENOSPC;
    if (track && pin(domain, refs[i], sim->domid, write, &frames[i]) != GNTST_OKAY) {
      domain->header->track_low = (uint32_t)(track - domain->tracks);
      error = -EINVAL;
    }
    if (error) {
      unpin_all(domain, mapping->items, i);
      return error;
    }
    mapping->items[i] = (uint32_t)(track - domain->tracks);
    *track = (struct track){.slot = sim->slot,
                            .ref = refs[i],
                            .frame = frames[i],
                            .domid = (uint16_t)sim->domid,
                            .writable = (uint16_t)write,
                            .clear_byte = -1};
    __atomic_store_n(&track->in_use, 1, __ATOMIC_RELEASE);
  }
  return 0;
}

struct notify {
  int64_t clear_byte; /* or -1 */
  uint32_t port;      /* or 0 */
};

/* Checks an unmap-notify and holds its port. */
static int take_notify(struct sim *sim, struct notify *notify, int64_t clear_byte, int64_t port, uint32_t count,
                       int writable) {
  if (clear_byte >= (int64_t)count * PAGE || (clear_byte >= 0 && !writable)) return -EINVAL;
  *notify = (struct notify){clear_byte, 0};
  if (port < 0) return 0;
  int error = port > UINT32_MAX ? -EINVAL : sim_port_get(sim->own, (uint32_t)port, sim->slot);
  if (error == 0) notify->port = (uint32_t)port;
  return error;
}

/* Which page of the mapping carries the notify. */
static uint32_t notify_page(const struct notify *notify) {
  return notify->clear_byte >= 0 ? (uint32_t)(notify->clear_byte / PAGE) : 0;
}

static int32_t notify_offset(const struct notify *notify) {
  return notify->clear_byte >= 0 ? (int32_t)(notify->clear_byte % PAGE) : -1;
}

static void send_notify(struct sim *sim, uint32_t port) {
  if (port == 0) return;
  sim_port_notify(sim, sim->own, port);
  sim_port_put(sim, sim->own, port);
}

static int establish_map(struct mapping *mapping, const uint32_t *refs, int writable, const struct notify *notify) {
  struct domain *domain = mapping->domain;
  uint32_t *frames = malloc((size_t)mapping->count * sizeof *frames);
  if (!frames) return -ENOMEM;
  sim_grant_lock(domain);
  int error = domain->header->dead ? -ESRCH : pin_all(mapping, refs, writable, frames);
  if (error == 0) {
    struct track *track = &domain->tracks[mapping->items[notify_page(notify)]];
    track->clear_byte = notify_offset(notify);
    track->port = notify->port;
  }
  sim_grant_unlock(domain);
  if (error == 0) {
    mapping->address = map_frames(domain, frames, mapping->count, writable ? PROT_READ | PROT_WRITE : PROT_READ);
    if (mapping->address == MAP_FAILED) {
      error = -errno;
      sim_grant_lock(domain);
      unpin_all(domain, mapping->items, mapping->count);
      sim_grant_unlock(domain);
    }
  }
  free(frames);
  return error;
}

double xt_sim_grant_map(void *opaque, uint32_t domid, const uint32_t *refs, uint32_t count, int32_t writable,
                        int64_t clear_byte, int64_t port, double *address) {
  struct sim *sim = opaque;
  struct notify notify;
  if (sim_usable(sim)) return -ENODEV;
  if (count == 0) return -EINVAL;
  struct domain *domain = sim_domain(sim, domid);
  if (!domain) return -errno;
  int error = take_notify(sim, &notify, clear_byte, port, count, writable);
  if (error) return error;
  struct mapping *mapping = new_mapping(sim, domain, count);
  error = mapping ? establish_map(mapping, refs, writable != 0, &notify) : -ENOMEM;
  if (error == 0) {
    *address = (double)(uintptr_t)mapping->address;
    return (double)(uintptr_t)mapping;
  }
  if (mapping) free_mapping(mapping);
  if (notify.port) sim_port_put(sim, sim->own, notify.port);
  return error;
}

/* The byte is cleared while the page is still pinned, the event comes when it no longer is. */
int32_t xt_sim_grant_unmap(void *opaque) {
  struct mapping *mapping = opaque;
  struct domain *domain = mapping->domain;
  struct sim *sim = mapping->sim;
  uint32_t port = 0;
  if (sim_usable(sim) == 0) {
    munmap(mapping->address, (size_t)mapping->count * PAGE);
    mapping->address = MAP_FAILED;
    sim_grant_lock(domain);
    for (uint32_t i = 0; i < mapping->count; i++) {
      struct track *track = &domain->tracks[mapping->items[i]];
      if (track->port) port = track->port;
      sim_track_clear_byte(domain, track);
      sim_track_drop(domain, track);
    }
    sim_grant_unlock(domain);
    send_notify(sim, port);
  }
  free_mapping(mapping);
  return 0;
}

/* ---- sharing ---- */

static uint32_t take_gref(struct domain *domain) {
  struct domain_header *header = domain->header;
  for (uint32_t ref = header->gref_low; ref < header->limits.grant_entries; ref++) {
    if (domain->records[ref].state != GRANT_FREE) continue;
    header->gref_low = ref + 1;
    if (header->gref_high <= ref) header->gref_high = ref + 1;
    return ref;
  }
  return 0;
}

static int share_all(struct mapping *share, uint32_t domid, int writable, const struct notify *notify) {
  struct domain *own = share->domain;
  if (own->header->shared_pages + share->count > own->header->limits.share_pages) return -ENOSPC;
  for (uint32_t i = 0; i < share->count; i++) {
    uint32_t ref = take_gref(own);
    int error = ref ? xt_reserve(own->fd, own->frames_offset + (uint64_t)ref * PAGE, PAGE) : -ENOSPC;
    if (error) {
      if (ref) own->header->gref_low = ref;
      while (i > 0) sim_grant_end(own, share->items[--i]);
      return error;
    }
    int noted = i == notify_page(notify);
    share->items[i] = ref;
    own->header->shared_pages++;
    own->records[ref] = (struct grant_record){.slot = share->sim->slot,
                                              .clear_byte = noted ? notify_offset(notify) : -1,
                                              .port = noted ? notify->port : 0};
    __atomic_store_n(&own->records[ref].state, GRANT_SHARED, __ATOMIC_RELEASE);
    own->entries[ref].frame = ref;
    uint32_t access = GTF_PERMIT_ACCESS | (writable ? 0 : GTF_READONLY) | domid << 16;
    __atomic_store_n(&own->entries[ref].access, access, __ATOMIC_RELEASE);
  }
  return 0;
}

static void end_share(struct mapping *share) {
  struct domain *own = share->domain;
  struct sim *sim = share->sim;
  uint32_t port = 0;
  sim_grant_lock(own);
  for (uint32_t i = 0; i < share->count; i++) {
    if (own->records[share->items[i]].port) port = own->records[share->items[i]].port;
    sim_grant_clear_byte(own, share->items[i]);
    sim_grant_end(own, share->items[i]);
  }
  sim_grant_unlock(own);
  send_notify(sim, port);
}

static int establish_share(struct mapping *share, uint32_t domid, int writable, const struct notify *notify) {
  struct domain *own = share->domain;
  sim_grant_lock(own);
  int error = share_all(share, domid, writable, notify);
  sim_grant_unlock(own);
  if (error) return error;
  share->address = map_frames(own, share->items, share->count, PROT_READ | PROT_WRITE);
  if (share->address != MAP_FAILED) return 0;
  error = -errno;
  sim_grant_lock(own);
  for (uint32_t i = 0; i < share->count; i++) sim_grant_end(own, share->items[i]);
  sim_grant_unlock(own);
  return error;
}

double xt_sim_share(void *opaque, uint32_t domid, uint32_t count, int32_t writable, int64_t clear_byte, int64_t port,
                    uint32_t *refs, double *address) {
  struct sim *sim = opaque;
  struct notify notify;
  if (sim_usable(sim)) return -ENODEV;
  if (count == 0 || count > sim->own->header->limits.grant_entries) return count ? -ENOSPC : -EINVAL;
  int error = take_notify(sim, &notify, clear_byte, port, count, 1);
  if (error) return error;
  struct mapping *share = new_mapping(sim, sim->own, count);
  error = share ? establish_share(share, domid, writable, &notify) : -ENOMEM;
  if (error == 0) {
    memcpy(refs, share->items, (size_t)count * sizeof refs[0]);
    *address = (double)(uintptr_t)share->address;
    return (double)(uintptr_t)share;
  }
  if (share) free_mapping(share);
  if (notify.port) sim_port_put(sim, sim->own, notify.port);
  return error;
}

int32_t xt_sim_unshare(void *opaque) {
  struct mapping *share = opaque;
  if (sim_usable(share->sim) == 0) {
    munmap(share->address, (size_t)share->count * PAGE);
    share->address = MAP_FAILED;
    end_share(share);
  }
  free_mapping(share);
  return 0;
}

double xt_sim_own_page(void *opaque, uint32_t ref) {
  struct sim *sim = opaque;
  if (sim_usable(sim)) return -ENODEV;
  if (ref >= XT_SIM_RESERVED_GREFS || sim->own->records[ref].state != GRANT_SHARED) return -EINVAL;
  void *address = map_frames(sim->own, &ref, 1, PROT_READ | PROT_WRITE);
  return address == MAP_FAILED ? (double)-errno : (double)(uintptr_t)address;
}
