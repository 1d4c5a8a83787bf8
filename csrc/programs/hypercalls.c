/*
 * libxencall, libxenforeignmemory and libxendevicemodel on a simulated host, which has no hypercalls. They can be
 * opened, so that the real libxenctrl opens, but most other calls fail: with ENOSYS as a hypercall that Xen does not
 * know, or with the error that the real library makes of a device that does not know an ioctl.
 */
#define _GNU_SOURCE
#include "attachment.h"
#include "names.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

enum { PAGE = 4096 };

/* The one handle that all of them share: it has no state. */
static char nothing;

static void *open_nothing(void) { return programs_platform() ? &nothing : NULL; }

XEN_API int xentool_no_hypercall(void);
int xentool_no_hypercall(void) { return programs_result(-ENOSYS); }
XEN_API int xentool_no_ioctl(void);
int xentool_no_ioctl(void) { return programs_result(-ENOTTY); }

/* Functions that a simulated host cannot provide: they fail the same way whatever their arguments. */
#define NO_HYPERCALL(name) XEN_API int name(void) __attribute__((alias("xentool_no_hypercall")))
#define NO_IOCTL(name) XEN_API int name(void) __attribute__((alias("xentool_no_ioctl")))

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
  return xentool_no_hypercall();
}

NO_HYPERCALL(xencall0);
NO_HYPERCALL(xencall1);
NO_HYPERCALL(xencall2);
NO_HYPERCALL(xencall3);
NO_HYPERCALL(xencall4);
NO_HYPERCALL(xencall5);
NO_HYPERCALL(xencall_fd);

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
  return programs_handle(-ENOSYS);
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
  (void)fmem, (void)domid, (void)type, (void)id, (void)frame, (void)nr_frames, (void)paddr, (void)prot;
  return programs_handle(flags & ~(MAP_SHARED | MAP_PRIVATE) ? -EINVAL : -EOPNOTSUPP);
}

int xenforeignmemory_resource_size(xenforeignmemory_handle *fmem, uint16_t domid, unsigned int type, unsigned int id,
                                   size_t *size) {
  (void)fmem, (void)domid, (void)type, (void)id, (void)size;
  return programs_result(-EOPNOTSUPP);
}

/* As in the real library: it knows nothing of what was mapped. */
int xenforeignmemory_unmap(xenforeignmemory_handle *fmem, void *addr, size_t pages) {
  (void)fmem;
  return munmap(addr, pages * PAGE);
}

/* The only resource there can be is none, which the real library unmaps, too. */
int xenforeignmemory_unmap_resource(xenforeignmemory_handle *fmem, xenforeignmemory_resource_handle *fres) {
  (void)fmem;
  return fres ? programs_result(-EINVAL) : 0;
}

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

NO_HYPERCALL(xendevicemodel_create_ioreq_server);
NO_HYPERCALL(xendevicemodel_get_ioreq_server_info);
NO_HYPERCALL(xendevicemodel_map_io_range_to_ioreq_server);
NO_HYPERCALL(xendevicemodel_unmap_io_range_from_ioreq_server);
NO_HYPERCALL(xendevicemodel_map_mem_type_to_ioreq_server);
NO_HYPERCALL(xendevicemodel_map_pcidev_to_ioreq_server);
NO_HYPERCALL(xendevicemodel_unmap_pcidev_from_ioreq_server);
NO_HYPERCALL(xendevicemodel_destroy_ioreq_server);
NO_HYPERCALL(xendevicemodel_set_ioreq_server_state);
NO_HYPERCALL(xendevicemodel_set_pci_intx_level);
NO_HYPERCALL(xendevicemodel_set_isa_irq_level);
NO_HYPERCALL(xendevicemodel_set_irq_level);
NO_HYPERCALL(xendevicemodel_set_pci_link_route);
NO_HYPERCALL(xendevicemodel_inject_msi);
NO_HYPERCALL(xendevicemodel_track_dirty_vram);
NO_HYPERCALL(xendevicemodel_modified_memory);
NO_HYPERCALL(xendevicemodel_modified_memory_bulk);
NO_HYPERCALL(xendevicemodel_set_mem_type);
NO_HYPERCALL(xendevicemodel_inject_event);
NO_HYPERCALL(xendevicemodel_shutdown);
NO_HYPERCALL(xendevicemodel_relocate_memory);
NO_HYPERCALL(xendevicemodel_pin_memory_cacheattr);
NO_HYPERCALL(xendevicemodel_nr_vcpus);
/* These belong to libxengnttab. They fail as on a Linux without CONFIG_XEN_GNTDEV_DMABUF. */
NO_IOCTL(xengnttab_dmabuf_exp_from_refs);
NO_IOCTL(xengnttab_dmabuf_exp_wait_released);
NO_IOCTL(xengnttab_dmabuf_imp_to_refs);
NO_IOCTL(xengnttab_dmabuf_imp_release);
