/*
 * The whole ABI between xentool's TypeScript and its C shim.
 *
 * Conventions: a function returns 0 or a count, and -errno when it failed. A function that makes an
 * address or an opaque handle returns it as a double (exact below 2^53), negative: -errno. No function
 * keeps a pointer of the caller's past its return unless it says so. No state lives outside handles: the
 * library may be loaded several times in one process. Any thread may call; one handle, one thread at a
 * time, unless said otherwise.
 */
#ifndef XENTOOL_H
#define XENTOOL_H

#include <stdint.h>

#define XT_API __attribute__((visibility("default")))

/* Raised whenever anything below changes; src/native/shim.ts holds the same number. */
#define XT_ABI_VERSION 1

XT_API uint32_t xt_abi_version(void);

/* ---- memory.c: memory that JavaScript sees through views ---- */

/* Anonymous, zeroed, page-aligned memory. */
XT_API double xt_memory_alloc(uint64_t size);
XT_API int32_t xt_memory_free(void *address, uint64_t size);
/* Maps `size` bytes of `fd` shared, from `offset`; writable or not. */
XT_API double xt_memory_map(int32_t fd, uint64_t offset, uint64_t size, int32_t writable);
XT_API int32_t xt_memory_copy(void *to, const void *from, uint64_t size);
/* Non-blocking, close-on-exec. */
XT_API int32_t xt_eventfd(void);
XT_API int32_t xt_eventfd_signal(int32_t fd);
XT_API int32_t xt_eventfd_drain(int32_t fd);
/* poll(2) for reading on up to 8 fds: bit i of the answer is set when fds[i] is ready. 0: time is up. */
XT_API int32_t xt_wait(const int32_t *fds, uint32_t count, int32_t timeout_ms);

/* ---- atomic.c: sequentially consistent, on memory another domain may change at any moment ---- */

XT_API uint32_t xt_load32(const void *address);
XT_API void xt_store32(void *address, uint32_t value);
XT_API uint32_t xt_load8(const void *address);
XT_API void xt_store8(void *address, uint32_t value);
XT_API uint32_t xt_fetch_or8(void *address, uint32_t bits);
XT_API uint32_t xt_fetch_and8(void *address, uint32_t bits);
XT_API void xt_fence(void);

/* ---- ring.c: the shared ring of public/io/ring.h; `ring` points at its first page ---- */

XT_API void xt_ring_init(void *ring);
/* Backend. Copies slots [cons, cons+count) of a ring of `slots` slots of `stride` bytes to `to`, each byte
   read once, `gap` zero bytes put in after the first word of each (0; 4 turns x86_32 into the x86_64 layout).
   The caller has bounded `count`. */
XT_API void xt_ring_copy_requests(void *to, const void *ring, uint32_t cons, uint32_t count,
                                  uint32_t slots, uint32_t stride, uint32_t gap);
/* Backend. Copies `count` responses of `size` bytes from `from` to slots [prod, prod+count), then publishes
   rsp_prod = prod+count. Returns 1 when the frontend asked to be notified. */
XT_API int32_t xt_ring_push_responses(void *ring, const void *from, uint32_t prod, uint32_t count,
                                      uint32_t slots, uint32_t stride, uint32_t size);
/* Backend. Arms req_event = cons+1, full fence, returns req_prod: sleep only when it equals cons. */
XT_API uint32_t xt_ring_final_check_requests(void *ring, uint32_t cons);
/* Frontend, the same three with the roles exchanged. */
XT_API int32_t xt_ring_push_requests(void *ring, const void *from, uint32_t prod, uint32_t count,
                                     uint32_t slots, uint32_t stride, uint32_t gap);
XT_API void xt_ring_copy_responses(void *to, const void *ring, uint32_t cons, uint32_t count,
                                   uint32_t slots, uint32_t stride, uint32_t size);
XT_API uint32_t xt_ring_final_check_responses(void *ring, uint32_t cons);

/* ---- io.c: block I/O on one file, and the one place where a data plane waits ---- */

enum {
  XT_IO_READ = 0,    /* offset, length, address */
  XT_IO_WRITE = 1,   /* offset, length, address */
  XT_IO_FLUSH = 2,   /* fdatasync */
  XT_IO_DISCARD = 3, /* offset, length: punch a hole (file) or BLKDISCARD (block device) */
  XT_IO_SECURE_DISCARD = 4,
  XT_IO_READV = 5,   /* offset; address of `length` struct iovec, which stay in place until done */
  XT_IO_WRITEV = 6,
  XT_IO_DELAY = 7,   /* completes with 0 after `length` milliseconds */
};
struct xt_io {
  double offset;  /* bytes */
  double length;  /* bytes, or as said above */
  double address;
  uint32_t op;
  uint32_t tag;   /* comes back in xt_io_done; below 2^31 */
};
struct xt_io_done {
  uint32_t tag;
  int32_t result; /* bytes or 0, or -errno; for a watched fd, its poll events */
};
enum { XT_IO_ENGINE_URING = 0, XT_IO_ENGINE_SYNC = 1 };

/* An engine for up to `depth` operations in flight on `fd` (-1: it only waits). SYNC uses pread/pwrite and
   completes within the call; URING answers -EPERM, -ENOSYS or -ENOMEM where io_uring is not allowed. */
XT_API double xt_io_open(int32_t fd, uint32_t depth, uint32_t engine, int32_t is_block_device);
/* Registers one region whose addresses then need no page pinning per operation. Optional; -errno is harmless. */
XT_API int32_t xt_io_register(void *io, void *address, uint64_t size);
/* Reports `tag` whenever `fd` becomes readable, until closed. Up to 8. Level-triggered, at most once a run. */
XT_API int32_t xt_io_watch(void *io, int32_t fd, uint32_t tag);
/* Submits `count` operations, waits until `wait` completions are there or `timeout_ms` passed (-1: for
   ever; a signal ends the wait too), and stores up to `max` completions in `done`. Returns how many. */
XT_API int32_t xt_io_run(void *io, const struct xt_io *ops, uint32_t count, uint32_t wait, int32_t timeout_ms,
                         struct xt_io_done *done, uint32_t max);
/* Waits for every operation in flight, then frees. */
XT_API int32_t xt_io_close(void *io);

/* ---- grant copy: one segment, the layout of struct gntdev_grant_copy_segment ---- */

enum { XT_COPY_SOURCE_GREF = 1, XT_COPY_DEST_GREF = 2 };
struct xt_copy_segment {
  union xt_copy_side {
    uint64_t address;
    struct { uint32_t ref; uint16_t offset; uint16_t domid; } foreign;
  } source, dest;
  uint16_t length;
  uint16_t flags;
  int16_t status; /* GNTST_*: 0 okay, negative an error */
  uint16_t pad;
};

/* ---- xen.c: /dev/xen/evtchn, gntdev, gntalloc: one ioctl each; `fd` is the open device ---- */

XT_API int32_t xt_xen_evtchn_bind_interdomain(int32_t fd, uint32_t domid, uint32_t port);
XT_API int32_t xt_xen_evtchn_bind_unbound(int32_t fd, uint32_t domid);
XT_API int32_t xt_xen_evtchn_unbind(int32_t fd, uint32_t port);
XT_API int32_t xt_xen_evtchn_notify(int32_t fd, uint32_t port);
XT_API int32_t xt_xen_evtchn_unmask(int32_t fd, uint32_t port);
XT_API int32_t xt_xen_evtchn_restrict(int32_t fd, uint32_t domid);
/* Both platforms: reads u32 ports from the handle's fd without blocking. Count, 0: none. */
XT_API int32_t xt_evtchn_pending(int32_t fd, uint32_t *ports, uint32_t max);

/* Maps refs[0..count) of `domid`; *index is what xt_xen_grant_unmap and _notify want. Address or -errno. */
XT_API double xt_xen_grant_map(int32_t fd, uint32_t domid, const uint32_t *refs, uint32_t count,
                               int32_t writable, uint64_t *index);
XT_API int32_t xt_xen_grant_unmap(int32_t fd, void *address, uint64_t index, uint32_t count);
/* clear_byte: offset in the mapping or -1; port: or -1. */
XT_API int32_t xt_xen_grant_unmap_notify(int32_t fd, uint64_t index, int64_t clear_byte, int64_t port);
XT_API int32_t xt_xen_grant_copy(int32_t fd, struct xt_copy_segment *segments, uint32_t count);

/* Shares `count` new pages with `domid`: refs[] and *index are filled in. Address or -errno. */
XT_API double xt_xen_share(int32_t fd, uint32_t domid, uint32_t count, int32_t writable, uint32_t *refs,
                           uint64_t *index);
XT_API int32_t xt_xen_share_notify(int32_t fd, uint64_t index, int64_t clear_byte, int64_t port);
XT_API int32_t xt_xen_unshare(int32_t fd, void *address, uint64_t index, uint32_t count);

/* ---- sim.c: the simulated platform ---- */

#endif
