/* libxengnttab on a simulated host. An area is identified by its address, which is how unmapping finds it. */
#define _GNU_SOURCE
#include "attachment.h"
#include "names.h"

#include <errno.h>
#include <pthread.h>
#include <stdlib.h>
#include <sys/mman.h>

enum { PAGE = 4096 };

/* ---- areas: mapped or shared pages ---- */

struct area {
  void *address, *handle;
  uint32_t count;
  struct area *next;
};

static pthread_mutex_t areas_lock = PTHREAD_MUTEX_INITIALIZER;
static struct area *areas;

/* Records the area that `result` stands for. Returns its address, or NULL with errno and nothing left behind. */
static void *note_area(double result, double address, uint32_t count, int32_t (*undo)(void *)) {
  void *handle = programs_handle(result);
  struct area *area = handle ? malloc(sizeof *area) : NULL;
  if (!area) {
    if (handle) undo(handle);
    return NULL;
  }
  *area = (struct area){(void *)(uintptr_t)address, handle, count, NULL};
  pthread_mutex_lock(&areas_lock);
  area->next = areas;
  areas = area;
  pthread_mutex_unlock(&areas_lock);
  return area->address;
}

/* Removes the area that begins at `address` from the list and undoes it. The count must match as well. */
static int end_area(const void *address, uint32_t count, int32_t (*undo)(void *)) {
  pthread_mutex_lock(&areas_lock);
  struct area **link = &areas;
  while (*link && ((*link)->address != address || (*link)->count != count)) link = &(*link)->next;
  struct area *area = *link;
  if (area) *link = area->next;
  pthread_mutex_unlock(&areas_lock);
  if (!area) return programs_result(-EINVAL);
  int result = programs_result(undo(area->handle));
  free(area);
  return result;
}

static int64_t notify_byte(uint32_t offset) { return offset < PAGE ? (int64_t)offset : -1; }
static int64_t notify_port(uint32_t port) { return port != UINT32_MAX ? (int64_t)port : -1; }

/* ---- grants of others ---- */

xengnttab_handle *xengnttab_open(struct xentoollog_logger *logger, unsigned open_flags) {
  (void)logger, (void)open_flags;
  void *platform = programs_platform();
  return platform ? programs_handle(xt_gnttab_open(platform)) : NULL;
}

int xengnttab_close(xengnttab_handle *xgt) { return xgt ? programs_result(xt_gnttab_close(xgt)) : 0; }

/* There is no device behind the handle. */
int xengnttab_fd(xengnttab_handle *xgt) {
  (void)xgt;
  return programs_result(-EOPNOTSUPP);
}

int xengnttab_set_max_grants(xengnttab_handle *xgt, uint32_t nr_grants) {
  (void)xgt, (void)nr_grants;
  return 0;
}

void *xengnttab_map_grant_refs(xengnttab_handle *xgt, uint32_t count, uint32_t *domids, uint32_t *refs, int prot) {
  double address = 0, mapping = xt_gnttab_map(xgt, domids, refs, count, prot & PROT_WRITE, -1, -1, &address);
  return note_area(mapping, address, count, xt_gnttab_unmap);
}

void *xengnttab_map_domain_grant_refs(xengnttab_handle *xgt, uint32_t count, uint32_t domid, uint32_t *refs,
                                      int prot) {
  uint32_t *domids = calloc(count ? count : 1, sizeof *domids);
  if (!domids) return NULL;
  for (uint32_t i = 0; i < count; i++) domids[i] = domid;
  void *address = xengnttab_map_grant_refs(xgt, count, domids, refs, prot);
  int error = errno;
  free(domids);
  errno = error;
  return address;
}

void *xengnttab_map_grant_ref(xengnttab_handle *xgt, uint32_t domid, uint32_t ref, int prot) {
  return xengnttab_map_grant_refs(xgt, 1, &domid, &ref, prot);
}

void *xengnttab_map_grant_ref_notify(xengnttab_handle *xgt, uint32_t domid, uint32_t ref, int prot,
                                     uint32_t notify_offset, uint32_t port) {
  double address = 0, mapping = xt_gnttab_map(xgt, &domid, &ref, 1, prot & PROT_WRITE, notify_byte(notify_offset),
                                              notify_port(port), &address);
  return note_area(mapping, address, 1, xt_gnttab_unmap);
}

int xengnttab_unmap(xengnttab_handle *xgt, void *start_address, uint32_t count) {
  (void)xgt;
  return end_area(start_address, count, xt_gnttab_unmap);
}

int xengnttab_grant_copy(xengnttab_handle *xgt, uint32_t count, struct xengnttab_grant_copy_segment *segs) {
  return programs_result(xt_gnttab_copy(xgt, (struct xt_copy_segment *)segs, count));
}

/* ---- grants of our own ---- */

xengntshr_handle *xengntshr_open(struct xentoollog_logger *logger, unsigned open_flags) {
  (void)logger, (void)open_flags;
  void *platform = programs_platform();
  return platform ? programs_handle(xt_gntshr_open(platform)) : NULL;
}

int xengntshr_close(xengntshr_handle *xgs) { return xgs ? programs_result(xt_gntshr_close(xgs)) : 0; }

int xengntshr_fd(xengntshr_handle *xgs) {
  (void)xgs;
  return programs_result(-EOPNOTSUPP);
}

void *xengntshr_share_pages(xengntshr_handle *xgs, uint32_t domid, int count, uint32_t *refs, int writable) {
  double address = 0, share = count < 0 ? -EINVAL
                                        : xt_gntshr_share(xgs, domid, (uint32_t)count, writable, -1, -1, refs, &address);
  return note_area(share, address, (uint32_t)count, xt_gntshr_unshare);
}

void *xengntshr_share_page_notify(xengntshr_handle *xgs, uint32_t domid, uint32_t *ref, int writable,
                                  uint32_t notify_offset, uint32_t port) {
  double address = 0, share = xt_gntshr_share(xgs, domid, 1, writable, notify_byte(notify_offset), notify_port(port),
                                              ref, &address);
  return note_area(share, address, 1, xt_gntshr_unshare);
}

int xengntshr_unshare(xengntshr_handle *xgs, void *start_address, uint32_t count) {
  (void)xgs;
  return end_area(start_address, count, xt_gntshr_unshare);
}
