/* The platform's functions for tests that use each handle once. */
#ifndef SIM_CALLS_H
#define SIM_CALLS_H

#include "check.h"
#include "xen/sim.h"

static inline void *open_evtchn(struct sim *sim) { return ADDRESS(xt_evtchn_open(sim, XT_EVTCHN_NONBLOCK)); }

static inline double map_refs(struct sim *sim, const uint32_t *domids, const uint32_t *refs, uint32_t count,
                              int writable, uint8_t **memory) {
  double address = 0;
  void *gnttab = ADDRESS(xt_gnttab_open(sim));
  double mapping = xt_gnttab_map(gnttab, domids, refs, count, writable, -1, -1, &address);
  *memory = (uint8_t *)(uintptr_t)address;
  CHECK_EQUAL(xt_gnttab_close(gnttab), 0);
  return mapping;
}

static inline double map_one(struct sim *sim, uint32_t domid, uint32_t ref, int writable, uint8_t **memory) {
  return map_refs(sim, &domid, &ref, 1, writable, memory);
}

static inline int32_t copy_segments(struct sim *sim, struct xt_copy_segment *segments, uint32_t count) {
  void *gnttab = ADDRESS(xt_gnttab_open(sim));
  int32_t result = xt_gnttab_copy(gnttab, segments, count);
  CHECK_EQUAL(xt_gnttab_close(gnttab), 0);
  return result;
}

static inline double share_pages(struct sim *sim, uint32_t domid, uint32_t count, uint32_t *refs, uint8_t **memory) {
  double address = 0;
  void *gntshr = ADDRESS(xt_gntshr_open(sim));
  double share = xt_gntshr_share(gntshr, domid, count, 1, -1, -1, refs, &address);
  *memory = (uint8_t *)(uintptr_t)address;
  CHECK_EQUAL(xt_gntshr_close(gntshr), 0);
  return share;
}

#endif
