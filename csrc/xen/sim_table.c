/*
 * A domain's grant table and the locks of its tables. The rules are those of Xen's grant table v1: a mapping pins its
 * entry and sets GTF_reading/writing; a pinned entry cannot end. Frame N always belongs to reference N, so a page is
 * reusable exactly when its reference is.
 */
#define _GNU_SOURCE
#include "../reserve.h"
#include "sim.h"

#include <errno.h>
#include <fcntl.h>
#include <sys/mman.h>

/* ---- entries ---- */

/* The entry is in the granter's memory, so each word is read only once. */
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

/* Updates the entry's flags from the pins; frees an orphan that has none left. */
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

/* Ends access if nobody has the page pinned. Otherwise the entry remains as an orphan until the last unpin. */
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

/* ---- taking tracks and references ---- */

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

/* in_use is set last, so that a record is complete before it counts. */
int sim_track_take(struct domain *domain, uint32_t ref, uint32_t by, uint32_t slot, int write, uint32_t *number,
                   uint32_t *frame) {
  struct track *track = take_track(domain);
  if (!track) return -ENOSPC;
  *number = (uint32_t)(track - domain->tracks);
  if (pin(domain, ref, by, write, frame) != GNTST_OKAY) {
    domain->header->track_low = *number;
    return -EINVAL;
  }
  *track = (struct track){.slot = slot,
                          .ref = ref,
                          .frame = *frame,
                          .domid = (uint16_t)by,
                          .writable = (uint16_t)write,
                          .clear_byte = -1};
  __atomic_store_n(&track->in_use, 1, __ATOMIC_RELEASE);
  return 0;
}

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

uint32_t sim_grant_take(struct domain *domain, int *error) {
  uint32_t ref = take_gref(domain);
  *error = ref ? xt_reserve(domain->fd, domain->frames_offset + (uint64_t)ref * PAGE, PAGE) : -ENOSPC;
  if (*error == 0) return ref;
  if (ref) domain->header->gref_low = ref;
  return 0;
}

/* ---- locks ---- */

/*
 * Repairs the table after a process died in the middle of a change. The tracks say who maps what; everything else is
 * recounted from them.
 */
static void recount(struct domain *domain) {
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

void sim_grant_lock(struct domain *domain) {
  if (sim_mutex_lock(&domain->header->grant_lock)) recount(domain);
}

void sim_grant_unlock(struct domain *domain) { pthread_mutex_unlock(&domain->header->grant_lock); }

/* Nothing to recover here: every step of a change to the ports leaves tables from which later steps can continue. */
static void evtchn_lock(struct domain *domain) { sim_mutex_lock(&domain->header->evtchn_lock); }
static void evtchn_unlock(struct domain *domain) { pthread_mutex_unlock(&domain->header->evtchn_lock); }

static void lock_two(struct domain *a, struct domain *b, void (*lock)(struct domain *)) {
  if (a && b && b->domid < a->domid) {
    struct domain *first = b;
    b = a;
    a = first;
  }
  if (a) lock(a);
  if (b && b != a) lock(b);
}

static void unlock_two(struct domain *a, struct domain *b, void (*unlock)(struct domain *)) {
  if (a) unlock(a);
  if (b && b != a) unlock(b);
}

void sim_grant_lock_two(struct domain *a, struct domain *b) { lock_two(a, b, sim_grant_lock); }
void sim_grant_unlock_two(struct domain *a, struct domain *b) { unlock_two(a, b, sim_grant_unlock); }
void sim_evtchn_lock_two(struct domain *a, struct domain *b) { lock_two(a, b, evtchn_lock); }
void sim_evtchn_unlock_two(struct domain *a, struct domain *b) { unlock_two(a, b, evtchn_unlock); }
