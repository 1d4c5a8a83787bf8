/*
 * With xen/xen.h the whole ABI between xentool's TypeScript and its C shim. `npm run abi` writes src/native/abi.ts from
 * the two: functions, enums and structures stand here in that script's words, one declaration at a time.
 *
 * Conventions: a function returns 0 or a count, and -errno when it failed. A function that makes an
 * address or an opaque handle returns it as a double (exact below 2^53), negative: -errno. No function
 * keeps a pointer of the caller's past its return unless it says so. No state lives outside handles, but
 * for what the clock measured once and the list of attachments that a fork ends: the library may be loaded several
 * times in one process. Any thread may call; one handle, one thread at a time, unless said otherwise.
 */
#ifndef XENTOOL_H
#define XENTOOL_H

#include <stdint.h>

#define XT_API __attribute__((visibility("default")))

/* Raised whenever anything below changes: a shim that was built of another header is noticed. */
#define XT_ABI_VERSION 6

XT_API uint32_t xt_abi_version(void);

/* ---- waiting ---- */

/* struct pollfd. A negative fd is left out. */
struct xt_poll {
  int32_t fd;
  uint16_t events, seen;
};
enum { XT_POLL_IN = 1, XT_POLL_OUT = 4, XT_POLL_ERROR = 8, XT_POLL_HANGUP = 16 };

/* ---- memory.c: memory that JavaScript sees through views ---- */

/* Anonymous, zeroed, page-aligned memory. */
XT_API double xt_memory_alloc(uint64_t size);
XT_API int32_t xt_memory_free(void *address, uint64_t size);
/* Maps `size` bytes of `fd` shared, from `offset`; writable or not. A writable file gets its memory first: -ENOSPC
   where the file system is full, and never SIGBUS later. */
XT_API double xt_memory_map(int32_t fd, uint64_t offset, uint64_t size, int32_t writable);
XT_API int32_t xt_memory_copy(void *to, const void *from, uint64_t size);
/* Non-blocking, close-on-exec. */
XT_API int32_t xt_eventfd(void);
XT_API int32_t xt_eventfd_signal(int32_t fd);
XT_API int32_t xt_eventfd_drain(int32_t fd);
/* poll(2) for reading on up to 8 fds: bit i of the answer is set when fds[i] is ready. 0: time is up. */
XT_API int32_t xt_wait(const int32_t *fds, uint32_t count, int32_t timeout_ms);

/* ---- atomic.c: sequentially consistent, on memory another domain may change at any moment ---- */

XT_API uint32_t xt_load8(const void *address);
XT_API void xt_store8(void *address, uint32_t value);
XT_API uint32_t xt_fetch_or8(void *address, uint32_t bits);
/* Looks at a 32-bit word for about `us` (once at least): 1 as soon as it is not `value`. */
XT_API uint32_t xt_changes_within(const void *address, uint32_t value, uint32_t us);

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

/* ---- file_io.c: operations on a disk's file ---- */

enum {
  XT_IO_READ = 0,    /* offset, length, address */
  XT_IO_WRITE = 1,   /* offset, length, address */
  XT_IO_FLUSH = 2,   /* fdatasync */
  XT_IO_DISCARD = 3, /* offset, length: punch a hole (file) or BLKDISCARD (block device) */
  XT_IO_SECURE_DISCARD = 4,
  XT_IO_READV = 5,   /* offset; address of `length` struct iovec, which stay in place until done */
  XT_IO_WRITEV = 6,
};
struct xt_io {
  double offset;  /* bytes */
  double length;  /* bytes, or as said above */
  double address;
  uint32_t op;
  uint32_t tag;   /* comes back in xt_io_done; below 2^31 */
  uint32_t file;  /* as xt_reactor_add_file numbered it */
  uint32_t unused;
};
struct xt_io_done {
  uint32_t tag;
  int32_t result; /* bytes or 0, or -errno; for a watched fd, its poll events */
};

/* Does one operation now: its result or -errno. `tag` and `file` are not looked at. */
XT_API int32_t xt_file_perform(int32_t fd, int32_t is_block_device, const struct xt_io *op);
/* Locks an open file against other processes until it is closed, for writing or for reading; -EAGAIN: taken. */
XT_API int32_t xt_file_lock(int32_t fd, int32_t exclusive);
/* Takes a shared lock on `count` bytes, which ends with the last descriptor of this open file; -EAGAIN: taken. */
XT_API int32_t xt_file_lock_range(int32_t fd, uint32_t first, uint32_t count);
/* 1 when another open file has any lock on one of these bytes. */
XT_API int32_t xt_file_range_locked(int32_t fd, uint32_t first, uint32_t count);

/* ---- reactor.c: the one place where a data plane waits ---- */

enum { XT_ENGINE_URING = 0, XT_ENGINE_POLL = 1 };
enum { XT_REACTOR_DEPTH_MAX = 4096, XT_REACTOR_WATCHES_MAX = 1024, XT_REACTOR_FILES_MAX = 8 };

/* For up to `depth` operations in flight and `max_watches` watched descriptors. POLL performs operations within
   the call; URING answers -EPERM, -ENOSYS or -ENOMEM where io_uring is not allowed. */
XT_API double xt_reactor_open(uint32_t depth, uint32_t max_watches, uint32_t engine);
/* A file that operations may name; up to FILES_MAX. It stays its owner's, and open as long as the reactor. */
XT_API int32_t xt_reactor_add_file(void *reactor, int32_t fd, int32_t is_block_device);
/* Reports `tag`, with what happened, whenever one of the poll `events` of `fd` is there: level-triggered, at most
   once a wait. Returns the watch's place. */
XT_API int32_t xt_reactor_watch(void *reactor, int32_t fd, uint32_t events, uint32_t tag);
/* Waits for other events from now on; for none when 0. */
XT_API int32_t xt_reactor_rewatch(void *reactor, uint32_t place, uint32_t events);
/* Forgets the watch; its descriptor may be closed at once. */
XT_API int32_t xt_reactor_unwatch(void *reactor, uint32_t place);
/* Starts `count` operations, waits until `wait` completions are there or `timeout_us` passed (-1: for ever; a
   signal ends the wait too), and stores up to `max` completions in `done`. Returns how many. */
XT_API int32_t xt_reactor_wait(void *reactor, const struct xt_io *ops, uint32_t count, uint32_t wait,
                               int32_t timeout_us, struct xt_io_done *done, uint32_t max);
/* Waits for every operation in flight, then frees. */
XT_API int32_t xt_reactor_close(void *reactor);

/* ---- vchan.c: one end of a vchan ---- */

/* Private to this end. The caller fills it in up to write_cons and zeroes the rest, sets peer_live to what is known at
   the beginning, and look_us before each wait. */
struct xt_vchan {
  double header, read_data, write_data; /* addresses: the shared page, the ring we read, the ring we write */
  uint32_t read_size, write_size;       /* bytes, powers of two */
  uint32_t is_server;
  uint32_t end_offset;                  /* in the page: the server's end word, then the client's */
  uint32_t read_cons, write_prod;       /* our counters, the truth; the page holds copies */
  uint32_t read_prod, write_cons;       /* the peer's, as last sampled and found sane */
  uint32_t peer_live, peer_end;         /* the peer's live byte and end word, as last sampled */
  uint32_t bad_counter;                 /* what XT_VCHAN_BAD_* is about */
  uint32_t look_us;                     /* how long waiting looks before it sleeps */
  uint32_t looked_us, slept_us;         /* how long the last wait did each; 0: not at all */
  uint32_t check_us;                    /* how long looking is left alone between two system calls */
};
enum { XT_VCHAN_WRITTEN = 1, XT_VCHAN_READ = 2 };   /* VCHAN_NOTIFY_WRITE and _READ */
enum { XT_VCHAN_BAD_PROD = 1, XT_VCHAN_BAD_CONS = 2 };
enum { XT_VCHAN_NEWS = 1 << 16 };

/* Samples live byte and end word, then the peer's counters. 0, or XT_VCHAN_BAD_*. A peer that was found gone is not
   looked at again: what it had written is known, and whatever it does to the page then is nothing to us. */
XT_API int32_t xt_vchan_sample(struct xt_vchan *vchan);
/* Move up to `size` bytes of what the last sample found there; return how many. */
XT_API int32_t xt_vchan_read(struct xt_vchan *vchan, void *to, uint32_t size);
XT_API int32_t xt_vchan_write(struct xt_vchan *vchan, const void *from, uint32_t size);
/* fd to ring and ring to fd, one system call, up to `max` bytes. fill: 0 is the end of the stream, -ENOBUFS
   a full ring. Sockets are never waited for; other descriptors as their flags say. */
XT_API int32_t xt_vchan_fill(struct xt_vchan *vchan, int32_t fd, int32_t is_socket, uint32_t max);
XT_API int32_t xt_vchan_drain(struct xt_vchan *vchan, int32_t fd, int32_t is_socket, uint32_t max);
/* 1 when the peer asked to be told of what `bits` says we did; its request is then answered. */
XT_API int32_t xt_vchan_take_request(struct xt_vchan *vchan, uint32_t bits);
/* Waits until the peer did one of `wants` since the last sample (XT_VCHAN_NEWS), or closed, or a descriptor
   is ready (bit i for fds[i]; fds[0] is the event channel's; up to 8), or `timeout_ms` passed or a signal
   came (0). It looks for `look_us` first, and asks the peer for an event only when it is about to sleep. */
XT_API int32_t xt_vchan_wait(struct xt_vchan *vchan, const struct xt_poll *fds, uint32_t count, uint32_t wants,
                             int32_t timeout_ms);

/* ---- stream.c: sockets, pipes and standard streams at the local end of a relay ---- */

enum { XT_STREAM_LOCAL = -1 };
/* `port` XT_STREAM_LOCAL: AF_UNIX and `address` a path; else a numeric address. Non-blocking and close-on-exec; a
   connection may still be on its way: writable when it is made or has failed, and the first write tells. */
XT_API int32_t xt_stream_connect(const char *address, int32_t port);
/* A path is there from when it listens on; it must leave room for "~PID" (about 100 bytes in all). */
XT_API int32_t xt_stream_listen(const char *address, int32_t port);
/* Reads some bytes and drops them: how many, 0 at the end, or -errno. A socket is never waited for. */
XT_API int32_t xt_stream_skip(int32_t fd, int32_t is_socket);
XT_API int32_t xt_stream_accept(int32_t listener);
/* No more will be sent; receiving goes on. */
XT_API int32_t xt_stream_end(int32_t fd);
/* fds[0] to read, fds[1] to write; close-on-exec. */
XT_API int32_t xt_stream_pipe(int32_t *fds);
/* The pipe or terminal `fd` opened once more, non-blocking, without touching those who share `fd`. */
XT_API int32_t xt_stream_reopen(int32_t fd, int32_t writable);
/* Puts /dev/null in the place of `fd`. */
XT_API int32_t xt_stream_discard(int32_t fd);

/* ---- socket.c: many sockets served by one thread ---- */

/* Bytes received, 0: the end of the stream, -EAGAIN: nothing there. `size` below 2^31. */
XT_API int32_t xt_socket_receive(int32_t fd, void *to, uint32_t size);
/* Sends `header`, then `data`, as far as the socket takes them now; bytes sent or -errno. */
XT_API int32_t xt_socket_send(int32_t fd, const void *header, uint32_t header_size, const void *data,
                              uint32_t data_size);
/* poll(2). How many are ready; 0: time is up or a signal came. */
XT_API int32_t xt_poll(struct xt_poll *fds, uint32_t count, int32_t timeout_ms);

#endif
