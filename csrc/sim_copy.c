/*
 * Grant copies of the simulated platform: between our memory and granted pages, or from one granted page to
 * another. Pages are reached through the granter's file, mapped whole; a batch makes no system call.
 */
#define _GNU_SOURCE
#include "sim.h"

#include <errno.h>
#include <string.h>

static int crosses_page(const struct xt_copy_segment *segment) {
  if ((segment->flags & XT_COPY_SOURCE_GREF) && segment->source.foreign.offset + segment->length > PAGE) return 1;
  return (segment->flags & XT_COPY_DEST_GREF) && segment->dest.foreign.offset + segment->length > PAGE;
}

static struct domain *side_domain(struct sim *sim, const union xt_copy_side *side, int is_foreign, int16_t *status) {
  if (!is_foreign) return NULL;
  struct domain *domain = sim_domain(sim, side->foreign.domid);
  if (!domain) *status = GNTST_BAD_DOMAIN;
  return domain;
}

/* The memory of one side, or NULL with *status. */
static uint8_t *side_memory(const struct sim *sim, const union xt_copy_side *side, struct domain *domain, int write,
                            int16_t *status) {
  uint32_t access, frame;
  if (!domain) return (uint8_t *)(uintptr_t)side->address;
  *status = domain->header->dead ? GNTST_BAD_DOMAIN
                                 : sim_check_entry(domain, side->foreign.ref, sim->domid, write, &access, &frame);
  if (*status != GNTST_OKAY) return NULL;
  return domain->frames + (uint64_t)frame * PAGE + side->foreign.offset;
}

/* The granters whose locks are held, referenced: one that died meanwhile stays in memory. */
struct held {
  struct domain *source, *dest;
};

static void hold(struct held *held, struct domain *source, struct domain *dest) {
  sim_grant_unlock_two(held->source, held->dest);
  sim_domain_release(held->source);
  sim_domain_release(held->dest);
  *held = (struct held){source, dest};
  if (source) source->references++;
  if (dest) dest->references++;
  sim_grant_lock_two(source, dest);
}

static void copy_segment(struct sim *sim, struct xt_copy_segment *segment, struct held *held) {
  int16_t status = GNTST_OKAY;
  struct domain *source = side_domain(sim, &segment->source, segment->flags & XT_COPY_SOURCE_GREF, &status);
  struct domain *dest = side_domain(sim, &segment->dest, segment->flags & XT_COPY_DEST_GREF, &status);
  if (status == GNTST_OKAY) {
    if (source != held->source || dest != held->dest) hold(held, source, dest);
    const uint8_t *from = side_memory(sim, &segment->source, source, 0, &status);
    uint8_t *to = from ? side_memory(sim, &segment->dest, dest, 1, &status) : NULL;
    if (to) memmove(to, from, segment->length);
  }
  segment->status = status;
}

/*
 * A granter stays locked as long as consecutive segments are its own: a batch from one guest locks once,
 * and a page cannot be revoked and reused while it is being copied.
 */
int32_t xt_sim_grant_copy(void *opaque, struct xt_copy_segment *segments, uint32_t count) {
  struct sim *sim = opaque;
  struct held held = {NULL, NULL};
  if (sim_usable(sim)) return -ENODEV;
  for (uint32_t i = 0; i < count; i++)
    if (!(segments[i].flags & (XT_COPY_SOURCE_GREF | XT_COPY_DEST_GREF)) || crosses_page(&segments[i])) return -EINVAL;
  for (uint32_t i = 0; i < count; i++) copy_segment(sim, &segments[i], &held);
  hold(&held, NULL, NULL);
  return 0;
}
