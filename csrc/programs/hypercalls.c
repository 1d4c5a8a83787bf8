/*
 * libxencall, libxenforeignmemory and libxendevicemodel on a simulated host, which has no hypercalls. They can be
 * opened, so that the real libxenctrl opens, but most other calls fail with ENOSYS.
 */
#define _GNU_SOURCE
#include "attachment.h"
#include "names.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

enum { PAGE = 4096 };

/* The one handle that all of them share: it has no state. */
static char nothing;

static void *open_nothing(void) { return programs_platform() ? &nothing : NULL; }

static void *refuse_pointer(void) { return programs_handle(-ENOSYS); }
XEN_API int xentool_refuse(void);
int xentool_refuse(void) { return programs_result(-ENOSYS); }

/* A function that a simulated host cannot provide: it fails the same way whatever its arguments. */
#define REFUSED(name) XEN_API int name(void) __attribute__((alias("xentool_refuse")))

/* ---- libxencall ---- */

xencall_handle *xencall_open(struct xentoollog_logger *logger, unsigned open_flags) {
  (void)logger, (void)open_flags;
  return open_nothing();
}

int xencall_close(xencall_handle *xcall) {
  (void)xcall;
  return 0;
}

void *xencall_alloc_buffer_pages(xencall_handle *xcall, size_t nr_pages) {
  void *pages = NULL;
  (void)xcall;
  errno = posix_memalign(&pages, PAGE, nr_pages * PAGE);
  return pages ? memset(pages, 0, nr_pages * PAGE) : NULL;
}

void xencall_free_buffer_pages(xencall_handle *xcall, void *p, size_t nr_pages) {
  (void)xcall, (void)nr_pages;
  free(p);
}

void *xencall_alloc_buffer(xencall_handle *xcall, size_t size) {
  return xencall_alloc_buffer_pages(xcall, (size + PAGE - 1) / PAGE);
}

void xencall_free_buffer(xencall_handle *xcall, void *p) { xencall_free_buffer_pages(xcall, p, 0); }

int xencall_buffers_never_fault(xencall_handle *xcall) {
  (void)xcall;
  return 1;
}

long xencall2L(xencall_handle *xcall, unsigned int op, uint64_t arg1, uint64_t arg2) {
  (void)xcall, (void)op, (void)arg1, (void)arg2;
  return xentool_refuse();
}

REFUSED(xencall0);
REFUSED(xencall1);
REFUSED(xencall2);
REFUSED(xencall3);
REFUSED(xencall4);
REFUSED(xencall5);
REFUSED(xencall_fd);

/* ---- libxenforeignmemory ---- */

xenforeignmemory_handle *xenforeignmemory_open(struct xentoollog_logger *logger, unsigned open_flags) {
  (void)logger, (void)open_flags;
  return open_nothing();
}

int xenforeignmemory_close(xenforeignmemory_handle *fmem) {
  (void)fmem;
  return 0;
}

int xenforeignmemory_restrict(xenforeignmemory_handle *fmem, uint16_t domid) {
  (void)fmem, (void)domid;
  return 0;
}

void *xenforeignmemory_map(xenforeignmemory_handle *fmem, uint32_t dom, int prot, size_t pages,
                           const unsigned long arr[], int err[]) {
  (void)fmem, (void)dom, (void)prot, (void)pages, (void)arr, (void)err;
  return refuse_pointer();
}

void *xenforeignmemory_map2(xenforeignmemory_handle *fmem, uint32_t dom, void *addr, int prot, int flags,
                            size_t pages, const unsigned long arr[], int err[]) {
  (void)addr, (void)flags;
  return xenforeignmemory_map(fmem, dom, prot, pages, arr, err);
}

xenforeignmemory_resource_handle *xenforeignmemory_map_resource(xenforeignmemory_handle *fmem, uint16_t domid,
                                                                unsigned int type, unsigned int id,
                                                                unsigned long frame, unsigned long nr_frames,
                                                                void **paddr, int prot, int flags) {
  (void)fmem, (void)domid, (void)type, (void)id, (void)frame, (void)nr_frames, (void)paddr, (void)prot, (void)flags;
  return refuse_pointer();
}

REFUSED(xenforeignmemory_unmap);
REFUSED(xenforeignmemory_unmap_resource);
REFUSED(xenforeignmemory_resource_size);

/* ---- libxendevicemodel ---- */

xendevicemodel_handle *xendevicemodel_open(struct xentoollog_logger *logger, unsigned int open_flags) {
  (void)logger, (void)open_flags;
  return open_nothing();
}

int xendevicemodel_close(xendevicemodel_handle *dmod) {
  (void)dmod;
  return 0;
}

int xendevicemodel_restrict(xendevicemodel_handle *dmod, uint16_t domid) {
  (void)dmod, (void)domid;
  return 0;
}

REFUSED(xendevicemodel_create_ioreq_server);
REFUSED(xendevicemodel_get_ioreq_server_info);
REFUSED(xendevicemodel_map_io_range_to_ioreq_server);
REFUSED(xendevicemodel_unmap_io_range_from_ioreq_server);
REFUSED(xendevicemodel_map_mem_type_to_ioreq_server);
REFUSED(xendevicemodel_map_pcidev_to_ioreq_server);
REFUSED(xendevicemodel_unmap_pcidev_from_ioreq_server);
REFUSED(xendevicemodel_destroy_ioreq_server);
REFUSED(xendevicemodel_set_ioreq_server_state);
REFUSED(xendevicemodel_set_pci_intx_level);
REFUSED(xendevicemodel_set_isa_irq_level);
REFUSED(xendevicemodel_set_irq_level);
REFUSED(xendevicemodel_set_pci_link_route);
REFUSED(xendevicemodel_inject_msi);
REFUSED(xendevicemodel_track_dirty_vram);
REFUSED(xendevicemodel_modified_memory);
REFUSED(xendevicemodel_modified_memory_bulk);
REFUSED(xendevicemodel_set_mem_type);
REFUSED(xendevicemodel_inject_event);
REFUSED(xendevicemodel_shutdown);
REFUSED(xendevicemodel_relocate_memory);
REFUSED(xendevicemodel_pin_memory_cacheattr);
REFUSED(xendevicemodel_nr_vcpus);
/* These belong to libxengnttab: there is no device to export buffers from. */
REFUSED(xengnttab_dmabuf_exp_from_refs);
REFUSED(xengnttab_dmabuf_exp_wait_released);
REFUSED(xengnttab_dmabuf_imp_to_refs);
REFUSED(xengnttab_dmabuf_imp_release);
