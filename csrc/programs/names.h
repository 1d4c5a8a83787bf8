/*
 * Xen's own names for the functions of csrc/xen/xen.h: the parts of libxenevtchn, libxengnttab, libxencall,
 * libxenforeignmemory and libxendevicemodel that we provide to programs on a simulated host. A test compiles this
 * together with Debian's headers to prove that the declarations agree. As there, an error is -1 or NULL with errno.
 */
#ifndef XENTOOL_PROGRAMS_NAMES_H
#define XENTOOL_PROGRAMS_NAMES_H

#include <stddef.h>
#include <stdint.h>

#define XEN_API __attribute__((visibility("default")))

struct xentoollog_logger;

/* ---- libxenevtchn ---- */

typedef struct xenevtchn_handle xenevtchn_handle;
XEN_API xenevtchn_handle *xenevtchn_open(struct xentoollog_logger *logger, unsigned int flags);
XEN_API xenevtchn_handle *xenevtchn_fdopen(struct xentoollog_logger *logger, int fd, unsigned open_flags);
XEN_API int xenevtchn_close(xenevtchn_handle *xce);
XEN_API int xenevtchn_fd(xenevtchn_handle *xce);
XEN_API int xenevtchn_notify(xenevtchn_handle *xce, uint32_t port);
XEN_API int xenevtchn_bind_unbound_port(xenevtchn_handle *xce, uint32_t domid);
XEN_API int xenevtchn_bind_interdomain(xenevtchn_handle *xce, uint32_t domid, uint32_t remote_port);
XEN_API int xenevtchn_bind_virq(xenevtchn_handle *xce, unsigned int virq);
XEN_API int xenevtchn_unbind(xenevtchn_handle *xce, uint32_t port);
XEN_API int xenevtchn_pending(xenevtchn_handle *xce);
XEN_API int xenevtchn_unmask(xenevtchn_handle *xce, uint32_t port);
XEN_API int xenevtchn_restrict(xenevtchn_handle *xce, uint16_t domid);

/* ---- libxengnttab ---- */

typedef struct xengntdev_handle xengnttab_handle;
XEN_API xengnttab_handle *xengnttab_open(struct xentoollog_logger *logger, unsigned open_flags);
XEN_API int xengnttab_close(xengnttab_handle *xgt);
XEN_API int xengnttab_fd(xengnttab_handle *xgt);
XEN_API int xengnttab_set_max_grants(xengnttab_handle *xgt, uint32_t nr_grants);
XEN_API void *xengnttab_map_grant_ref(xengnttab_handle *xgt, uint32_t domid, uint32_t ref, int prot);
XEN_API void *xengnttab_map_grant_refs(xengnttab_handle *xgt, uint32_t count, uint32_t *domids, uint32_t *refs,
                                       int prot);
XEN_API void *xengnttab_map_domain_grant_refs(xengnttab_handle *xgt, uint32_t count, uint32_t domid, uint32_t *refs,
                                              int prot);
XEN_API void *xengnttab_map_grant_ref_notify(xengnttab_handle *xgt, uint32_t domid, uint32_t ref, int prot,
                                             uint32_t notify_offset, uint32_t notify_port);
XEN_API int xengnttab_unmap(xengnttab_handle *xgt, void *start_address, uint32_t count);
/* Has the layout of struct xt_copy_segment. */
struct xengnttab_grant_copy_segment;
XEN_API int xengnttab_grant_copy(xengnttab_handle *xgt, uint32_t count, struct xengnttab_grant_copy_segment *segs);

typedef struct xengntdev_handle xengntshr_handle;
XEN_API xengntshr_handle *xengntshr_open(struct xentoollog_logger *logger, unsigned open_flags);
XEN_API int xengntshr_close(xengntshr_handle *xgs);
XEN_API int xengntshr_fd(xengntshr_handle *xgs);
XEN_API void *xengntshr_share_pages(xengntshr_handle *xgs, uint32_t domid, int count, uint32_t *refs, int writable);
XEN_API void *xengntshr_share_page_notify(xengntshr_handle *xgs, uint32_t domid, uint32_t *ref, int writable,
                                          uint32_t notify_offset, uint32_t notify_port);
XEN_API int xengntshr_unshare(xengntshr_handle *xgs, void *start_address, uint32_t count);

/* ---- libxencall, libxenforeignmemory, libxendevicemodel: they open, but offer little else ---- */

typedef struct xencall_handle xencall_handle;
XEN_API xencall_handle *xencall_open(struct xentoollog_logger *logger, unsigned open_flags);
XEN_API int xencall_close(xencall_handle *xcall);
XEN_API void *xencall_alloc_buffer_pages(xencall_handle *xcall, size_t nr_pages);
XEN_API void xencall_free_buffer_pages(xencall_handle *xcall, void *p, size_t nr_pages);
XEN_API void *xencall_alloc_buffer(xencall_handle *xcall, size_t size);
XEN_API void xencall_free_buffer(xencall_handle *xcall, void *p);
XEN_API int xencall_buffers_never_fault(xencall_handle *xcall);
XEN_API long xencall2L(xencall_handle *xcall, unsigned int op, uint64_t arg1, uint64_t arg2);

typedef struct xenforeignmemory_handle xenforeignmemory_handle;
typedef struct xenforeignmemory_resource_handle xenforeignmemory_resource_handle;
XEN_API xenforeignmemory_handle *xenforeignmemory_open(struct xentoollog_logger *logger, unsigned open_flags);
XEN_API int xenforeignmemory_close(xenforeignmemory_handle *fmem);
XEN_API int xenforeignmemory_restrict(xenforeignmemory_handle *fmem, uint16_t domid);
XEN_API void *xenforeignmemory_map(xenforeignmemory_handle *fmem, uint32_t dom, int prot, size_t pages,
                                   const unsigned long arr[], int err[]);
XEN_API void *xenforeignmemory_map2(xenforeignmemory_handle *fmem, uint32_t dom, void *addr, int prot, int flags,
                                    size_t pages, const unsigned long arr[], int err[]);
XEN_API xenforeignmemory_resource_handle *xenforeignmemory_map_resource(xenforeignmemory_handle *fmem, uint16_t domid,
                                                                        unsigned int type, unsigned int id,
                                                                        unsigned long frame, unsigned long nr_frames,
                                                                        void **paddr, int prot, int flags);
XEN_API int xenforeignmemory_resource_size(xenforeignmemory_handle *fmem, uint16_t domid, unsigned int type,
                                           unsigned int id, size_t *size);
XEN_API int xenforeignmemory_unmap(xenforeignmemory_handle *fmem, void *addr, size_t pages);
XEN_API int xenforeignmemory_unmap_resource(xenforeignmemory_handle *fmem, xenforeignmemory_resource_handle *fres);

typedef struct xendevicemodel_handle xendevicemodel_handle;
XEN_API xendevicemodel_handle *xendevicemodel_open(struct xentoollog_logger *logger, unsigned int open_flags);
XEN_API int xendevicemodel_close(xendevicemodel_handle *dmod);
XEN_API int xendevicemodel_restrict(xendevicemodel_handle *dmod, uint16_t domid);

#endif
