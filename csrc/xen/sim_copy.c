/*
 * Grant copies of the simulated platform: between our memory and granted pages, or from one granted page to another.
 * Pages are reached through the granter's file, which is mapped whole, so copying makes no system call.
 */
#define _GNU_SOURCE
#include "sim.h"

#include <errno.h>
#include <string.h>

static int crosses_page(const struct xt_copy_segment *segment) {
  if ((segment->flags & XT_COPY_SOURCE_GREF) && segment->source.foreign.offset + segment->length > PAGE) return 1;
  return (segment->flags & XT_COPY_DEST_GREF) && segment->dest.foreign.offset + segment->length > PAGE;
}

/* The address of one side, or NULL with *status. */
static uint8_t *side_memory(const struct sim *sim, const union xt_copy_side *side, struct domain *domain, int write,
                            int16_t *status) {
  uint32_t access, frame;
  if (!domain) return (uint8_t *)(uintptr_t)side->address;
  *status = domain->header->dead ? GNTST_BAD_DOMAIN
                                 : sim_check_entry(domain, side->foreign.ref, sim->domid, write, &access, &frame);
  if (*status != GNTST_OKAY) return NULL;
  return domain->frames + (uint64_t)frame * PAGE + side->foreign.offset;
}

/* The granters whose locks are held. The references keep one that dies meanwhile in memory. */
struct held {
  struct domain *source, *dest;
};

/* Takes over the caller's references. */
static void hold(struct held *held, struct domain *source, struct domain *dest) {
  sim_grant_unlock_two(held->source, held->dest);
  sim_domain_put(held->source);
  sim_domain_put(held->dest);
  *held = (struct held){source, dest};
  sim_grant_lock_two(source, dest);
}

static int is_held(const struct domain *held, const union xt_copy_side *side, int is_foreign) {
  if (!is_foreign) return held == NULL;
  return held && held->domid == side->foreign.domid && !sim_domain_is_dead(held);
}

/* Makes `held` hold the granters of this segment. */
static int16_t hold_granters(struct sim *sim, const struct xt_copy_segment *segment, struct held *held) {
  int from_grant = segment->flags & XT_COPY_SOURCE_GREF, to_grant = segment->flags & XT_COPY_DEST_GREF;
  if (is_held(held->source, &segment->source, from_grant) && is_held(held->dest, &segment->dest, to_grant))
    return GNTST_OKAY;
  struct domain *source = from_grant ? sim_domain_get(sim, segment->source.foreign.domid) : NULL;
  struct domain *dest = to_grant ? sim_domain_get(sim, segment->dest.foreign.domid) : NULL;
  if ((!from_grant || source) && (!to_grant || dest)) {
    hold(held, source, dest);
    return GNTST_OKAY;
  }
  sim_domain_put(source);
  sim_domain_put(dest);
  return GNTST_BAD_DOMAIN;
}

static void copy_segment(struct sim *sim, struct xt_copy_segment *segment, struct held *held) {
  int16_t status = hold_granters(sim, segment, held);
  if (status == GNTST_OKAY) {
    const uint8_t *from = side_memory(sim, &segment->source, held->source, 0, &status);
    uint8_t *to = from ? side_memory(sim, &segment->dest, held->dest, 1, &status) : NULL;
    if (to) memmove(to, from, segment->length);
  }
  segment->status = status;
}

/*
 * A granter stays locked across consecutive segments that use it. A batch from one guest therefore locks only once, and
 * a page cannot be revoked and reused while it is being copied.
 */
int32_t sim_gnttab_copy(struct gnttab *gnttab, struct xt_copy_segment *segments, uint32_t count) {
  struct sim *sim = ((struct sim_gnttab *)gnttab)->sim;
  struct held held = {NULL, NULL};
  if (sim_usable(sim)) return -ENODEV;
  for (uint32_t i = 0; i < count; i++)
    if (!(segments[i].flags & (XT_COPY_SOURCE_GREF | XT_COPY_DEST_GREF)) || crosses_page(&segments[i])) return -EINVAL;
  for (uint32_t i = 0; i < count; i++) copy_segment(sim, &segments[i], &held);
  hold(&held, NULL, NULL);
  return 0;
}
