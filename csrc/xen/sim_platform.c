/* A simulated host as a platform: implements the functions of xen.h and those that only a simulated host has. */
#define _GNU_SOURCE
#include "sim.h"

#include <errno.h>
#include <stdlib.h>
#include <sys/mman.h>

static int32_t sim_close(struct platform *platform) {
  sim_put((struct sim *)platform);
  return 0;
}

static int32_t sim_gnttab_open(struct platform *platform, struct gnttab **gnttab) {
  struct sim_gnttab *opened = malloc(sizeof *opened);
  if (!opened) return -ENOMEM;
  *opened = (struct sim_gnttab){{platform->ops}, (struct sim *)platform};
  sim_hold(opened->sim);
  *gnttab = &opened->base;
  return 0;
}

static int32_t sim_gnttab_close(struct gnttab *gnttab) {
  struct sim_gnttab *opened = (struct sim_gnttab *)gnttab;
  sim_put(opened->sim);
  free(opened);
  return 0;
}

static int32_t sim_gntshr_open(struct platform *platform, struct gntshr **gntshr) {
  struct sim_gntshr *opened = malloc(sizeof *opened);
  if (!opened) return -ENOMEM;
  *opened = (struct sim_gntshr){{platform->ops}, (struct sim *)platform};
  sim_hold(opened->sim);
  *gntshr = &opened->base;
  return 0;
}

static int32_t sim_gntshr_close(struct gntshr *gntshr) {
  struct sim_gntshr *opened = (struct sim_gntshr *)gntshr;
  sim_put(opened->sim);
  free(opened);
  return 0;
}

static const struct platform_ops sim_ops = {
    .close = sim_close,
    .evtchn_open = sim_evtchn_open,
    .evtchn_close = sim_evtchn_close,
    .evtchn_bind_interdomain = sim_evtchn_bind_interdomain,
    .evtchn_bind_unbound = sim_evtchn_bind_unbound,
    .evtchn_unbind = sim_evtchn_unbind,
    .evtchn_notify = sim_evtchn_notify,
    .evtchn_unmask = sim_evtchn_unmask,
    .evtchn_restrict = sim_evtchn_restrict,
    .gnttab_open = sim_gnttab_open,
    .gnttab_close = sim_gnttab_close,
    .gnttab_map = sim_gnttab_map,
    .gnttab_unmap = sim_gnttab_unmap,
    .gnttab_copy = sim_gnttab_copy,
    .gntshr_open = sim_gntshr_open,
    .gntshr_close = sim_gntshr_close,
    .gntshr_share = sim_gntshr_share,
    .gntshr_unshare = sim_gntshr_unshare,
};

double xt_sim_open(const char *dir, uint32_t domid, int32_t is_host) {
  struct sim *sim = NULL;
  int error = sim_attach(&sim, &sim_ops, dir, domid, is_host);
  return error ? (double)error : (double)(uintptr_t)sim;
}

int32_t xt_sim_adopt_store_port(void *evtchn) { return sim_evtchn_adopt_store(evtchn); }

double xt_sim_own_page(void *opaque, uint32_t ref) {
  struct sim *sim = opaque;
  if (sim_usable(sim)) return -ENODEV;
  void *address = sim_map_own(sim, ref);
  return address == MAP_FAILED ? (double)-errno : (double)(uintptr_t)address;
}
