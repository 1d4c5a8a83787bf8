/*
 * Together with xen/xen.h this is the whole ABI between xentool's TypeScript and its C shim. `npm run abi` generates
 * src/native/abi.ts from the two, so functions, enums and structures are written in the subset of C that its script
 * understands, one declaration at a time.
 *
 * Conventions: a function returns 0 or a count, and -errno on failure. A function that makes an address or an opaque
 * handle returns it as a double (exact below 2^53); negative values are -errno. No function keeps a caller's pointer
 * after it returns unless it says so. No state lives outside handles, except the clock's one calibration, the list of
 * attachments that a fork ends, and the jail, which is the process's: the library may be loaded several times in one
 * process. Any thread may call; a handle belongs to one thread at a time unless stated otherwise.
 */
#ifndef XENTOOL_H
#define XENTOOL_H

#include <stdint.h>

#define XT_API __attribute__((visibility("default")))

/* Raised whenever anything below changes, so that a shim built from another header is detected. */
#define XT_ABI_VERSION 12

XT_API uint32_t xt_abi_version(void);

/* ---- waiting ---- */

/* Events of poll(2). */
enum { XT_POLL_IN = 1, XT_POLL_OUT = 4, XT_POLL_ERROR = 8, XT_POLL_HANGUP = 16 };
/*
 * Microseconds since an arbitrary moment, without a system call and accurate to within a few percent. May jump when the
 * thread moves to another processor.
 */
XT_API double xt_now_us(void);
/* Lets other threads run that are ready to. */
XT_API int32_t xt_yield(void);

/* ---- memory.c: memory that JavaScript sees through views ---- */

/* Anonymous, zeroed, page-aligned memory. */
XT_API double xt_memory_alloc(uint64_t size);
/*
 * The same for much data, whole pages of it: in large pages where the kernel has them, so that what is transferred is
 * adjacent for the device, too, and one piece instead of many.
 */
XT_API double xt_memory_alloc_large(uint64_t size);
XT_API int32_t xt_memory_free(void *address, uint64_t size);
/*
 * Maps `size` bytes of `fd` shared, from `offset`, writable or not. For a writable mapping the file's memory is
 * reserved first: -ENOSPC if the file system is full, instead of SIGBUS later. And all of it is mapped at once, because
 * otherwise each page faults when a data plane first stores to it, which a hypervisor may make slow.
 */
XT_API double xt_memory_map(int32_t fd, uint64_t offset, uint64_t size, int32_t writable);
XT_API int32_t xt_memory_copy(void *to, const void *from, uint64_t size);
/* Non-blocking, close-on-exec. */
XT_API int32_t xt_eventfd(void);
XT_API int32_t xt_eventfd_signal(int32_t fd);
XT_API int32_t xt_eventfd_drain(int32_t fd);

/* ---- atomic.c: access to memory that another domain may change at any moment ---- */

XT_API uint32_t xt_load8(const void *address);
XT_API void xt_store8(void *address, uint32_t value);
XT_API uint32_t xt_fetch_or8(void *address, uint32_t bits);
/* Looks at a 32-bit word for about `us` microseconds, at least once. Returns 1 as soon as it differs from `value`. */
XT_API uint32_t xt_changes_within(const void *address, uint32_t value, uint32_t us);

/* ---- ring.c: the shared ring of public/io/ring.h; `ring` points to its first page ---- */

XT_API void xt_ring_init(void *ring);
/*
 * Backend. Copies slots [cons, cons+count) of a ring with `slots` slots of `stride` bytes to `to`, reading each byte
 * once and inserting `gap` zero bytes after the first word of each (0; 4 turns x86_32 into the x86_64 layout). The
 * caller has bounded `count`.
 */
XT_API void xt_ring_copy_requests(void *to, const void *ring, uint32_t cons, uint32_t count,
                                  uint32_t slots, uint32_t stride, uint32_t gap);
/*
 * Backend. Copies `count` responses of `size` bytes from `from` to slots [prod, prod+count), then publishes rsp_prod =
 * prod+count. Returns 1 if the frontend asked to be notified.
 */
XT_API int32_t xt_ring_push_responses(void *ring, const void *from, uint32_t prod, uint32_t count,
                                      uint32_t slots, uint32_t stride, uint32_t size);
/* Backend. Arms req_event = cons+1, executes a full fence and returns req_prod. Sleep only if that equals cons. */
XT_API uint32_t xt_ring_final_check_requests(void *ring, uint32_t cons);
/* Frontend: the same three with the roles swapped. */
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
  XT_IO_READV = 5,   /* offset; address of `length` struct iovec, which must stay in place until done */
  XT_IO_WRITEV = 6,
};
struct xt_io {
  double offset;  /* bytes */
  double length;  /* bytes, or as noted above */
  double address;
  uint32_t op;
  uint32_t tag;   /* returned in xt_io_done; below 2^31 */
  uint32_t file;  /* the number xt_reactor_add_file returned */
  uint32_t unused;
};
struct xt_io_done {
  uint32_t tag;
  int32_t result; /* bytes or 0, or -errno; for a watched fd, its poll events */
};

/* Performs one operation immediately and returns its result or -errno. Ignores `tag` and `file`. */
XT_API int32_t xt_file_perform(int32_t fd, int32_t is_block_device, const struct xt_io *op);
/*
 * Locks an open file against other processes until it is closed, for writing (exclusive) or for reading. -EAGAIN:
 * taken.
 */
XT_API int32_t xt_file_lock(int32_t fd, int32_t exclusive);
/* Takes a shared lock on `count` bytes, held until the last descriptor of this open file is closed. -EAGAIN: taken. */
XT_API int32_t xt_file_lock_range(int32_t fd, uint32_t first, uint32_t count);
/* The size in bytes of an open file or block device. */
XT_API double xt_file_size(int32_t fd);
/* 1 if another open file holds any lock on one of these bytes. */
XT_API int32_t xt_file_range_locked(int32_t fd, uint32_t first, uint32_t count);
/*
 * Names in a directory, each with a NUL, in no order: as many as fit into `size` bytes. Returns how many bytes they
 * take. The last part of `path` may be no link.
 */
XT_API int32_t xt_directory_names(const char *path, char *names, uint32_t size);

/* ---- process.c: what a process has the kernel do about itself ---- */

/* The kernel kills this process when the thread that started it ends. */
XT_API int32_t xt_process_end_with_parent(void);

/* ---- reactor.c: the one place where a data plane waits ---- */

enum { XT_ENGINE_URING = 0, XT_ENGINE_POLL = 1 };
enum { XT_REACTOR_DEPTH_MAX = 4096, XT_REACTOR_WATCHES_MAX = 2048, XT_REACTOR_FILES_MAX = 8 };

/*
 * For up to `depth` operations in flight and `max_watches` watched descriptors. POLL performs operations within the
 * call; URING returns -EPERM, -ENOSYS or -ENOMEM where io_uring is not allowed.
 */
XT_API double xt_reactor_open(uint32_t depth, uint32_t max_watches, uint32_t engine);
/*
 * Adds a file that operations may name; at most FILES_MAX. The caller still owns it and must keep it open as long as
 * the reactor.
 */
XT_API int32_t xt_reactor_add_file(void *reactor, int32_t fd, int32_t is_block_device);
/*
 * Reports `tag`, with the events seen, whenever one of the poll `events` of `fd` is present: level-triggered, at most
 * once per wait. Returns the watch's place.
 */
XT_API int32_t xt_reactor_watch(void *reactor, int32_t fd, uint32_t events, uint32_t tag);
/* From now on waits for these events instead; 0 for none. */
XT_API int32_t xt_reactor_rewatch(void *reactor, uint32_t place, uint32_t events);
/* Removes the watch. Its descriptor may be closed immediately. */
XT_API int32_t xt_reactor_unwatch(void *reactor, uint32_t place);
/*
 * Starts `count` operations, waits until `wait` completions, or all that are in flight, are available or `timeout_us`
 * has passed (-1: for ever; a signal also ends the wait), and stores up to `max` completions in `done`. Returns how
 * many. With `is_patient`, a lone transfer may be waited for as long as it takes, as far as the files' storage is not
 * slow.
 */
XT_API int32_t xt_reactor_wait(void *reactor, const struct xt_io *ops, uint32_t count, uint32_t wait,
                               int32_t timeout_us, uint32_t is_patient, struct xt_io_done *done, uint32_t max);
/* Waits for every operation in flight, then frees the reactor. */
XT_API int32_t xt_reactor_close(void *reactor);

/* ---- vchan.c: one end of a vchan ---- */

/*
 * Private to this end. The caller fills in the fields up to write_cons, zeroes the rest, and sets peer_live to its
 * known initial value.
 */
struct xt_vchan {
  double header, read_data, write_data; /* addresses: the shared page, the ring we read, the ring we write */
  uint32_t read_size, write_size;       /* bytes, powers of two */
  uint32_t is_server;
  uint32_t end_offset;                  /* in the page: the server's end word, then the client's */
  uint32_t read_cons, write_prod;       /* our own, authoritative counters; the page holds copies */
  uint32_t read_prod, write_cons;       /* the peer's, as last sampled and found sane */
  uint32_t peer_live, peer_end;         /* the peer's live byte and end word, as last sampled */
  uint32_t bad_counter;                 /* the counter that XT_VCHAN_BAD_* refers to */
};
enum { XT_VCHAN_WRITTEN = 1, XT_VCHAN_READ = 2 };   /* VCHAN_NOTIFY_WRITE and _READ */
enum { XT_VCHAN_BAD_PROD = 1, XT_VCHAN_BAD_CONS = 2 };

/*
 * Samples the live byte and the end word, then the peer's counters. Returns 0 or XT_VCHAN_BAD_*. A peer found gone is
 * not sampled again: what it had written is known, and later changes to the page do not matter to us.
 */
XT_API int32_t xt_vchan_sample(struct xt_vchan *vchan);
/* Move up to `size` bytes of what the last sample found, and return how many. */
XT_API int32_t xt_vchan_read(struct xt_vchan *vchan, void *to, uint32_t size);
XT_API int32_t xt_vchan_write(struct xt_vchan *vchan, const void *from, uint32_t size);
/*
 * From fd to ring and from ring to fd, with one system call, up to `max` bytes. fill returns 0 at the end of the stream
 * and -ENOBUFS if the ring is full. Sockets never block; other descriptors behave as their flags say.
 */
XT_API int32_t xt_vchan_fill(struct xt_vchan *vchan, int32_t fd, int32_t is_socket, uint32_t max);
XT_API int32_t xt_vchan_drain(struct xt_vchan *vchan, int32_t fd, int32_t is_socket, uint32_t max);
/* Returns 1, and clears the request, if the peer asked to be notified of the actions in `bits`. */
XT_API int32_t xt_vchan_take_request(struct xt_vchan *vchan, uint32_t bits);
/*
 * Looks at the ring for about `us` microseconds, at least once. Returns 1 as soon as the peer has done one of `wants`
 * since the last sample, or has ended its stream or closed.
 */
XT_API int32_t xt_vchan_look(const struct xt_vchan *vchan, uint32_t wants, uint32_t us);
/* Asks the peer for an event when it does one of `wants`, then looks once. Returns 1 if it has done so already. */
XT_API int32_t xt_vchan_arm(const struct xt_vchan *vchan, uint32_t wants);

/* ---- stream.c: sockets, pipes and standard streams at the local end of a relay ---- */

enum { XT_STREAM_LOCAL = -1 };
/*
 * `port` XT_STREAM_LOCAL: AF_UNIX with `address` as path; otherwise a numeric address. Non-blocking and close-on-exec.
 * The connection may still be in progress: the fd becomes writable when it is established or has failed, and the first
 * write tells which. By TCP, the connection fails when the other end has been gone, or has taken nothing, for half a
 * minute.
 */
XT_API int32_t xt_stream_connect(const char *address, int32_t port);
/* A path appears only once it is listening. Its length must leave room for "~PID" (about 100 bytes in all). */
XT_API int32_t xt_stream_listen(const char *address, int32_t port);
/* Reads some bytes and discards them. Returns how many, 0 at the end, or -errno. Never blocks on a socket. */
XT_API int32_t xt_stream_skip(int32_t fd, int32_t is_socket);
XT_API int32_t xt_stream_accept(int32_t listener);
/* The other end of this connection may take nothing for as long as it likes. */
XT_API void xt_stream_await_reader(int32_t fd);
/*
 * Returns 1 while something that was written has not arrived at the other host. Closing would lose it if the other end
 * sends. 0 for everything but TCP.
 */
XT_API int32_t xt_stream_is_sending(int32_t fd);
/* Shuts down sending; receiving continues. */
XT_API int32_t xt_stream_end(int32_t fd);
/* fds[0] is for reading, fds[1] for writing; close-on-exec. */
XT_API int32_t xt_stream_pipe(int32_t *fds);
/* Opens the pipe or terminal `fd` once more, non-blocking, without affecting others that share `fd`. */
XT_API int32_t xt_stream_reopen(int32_t fd, int32_t writable);
/* Replaces `fd` with /dev/null. */
XT_API int32_t xt_stream_discard(int32_t fd);

/* ---- socket.c: serves many sockets from one thread ---- */

/*
 * Returns the bytes received, 0 at the end of the stream, or -EAGAIN if there is nothing to read. `size` is below 2^31.
 */
XT_API int32_t xt_socket_receive(int32_t fd, void *to, uint32_t size);
/* Sends `header`, then `data`, as far as the socket takes them now. Returns the bytes sent or -errno. */
XT_API int32_t xt_socket_send(int32_t fd, const void *header, uint32_t header_size, const void *data,
                              uint32_t data_size);
/* The same for the `count` iovecs at `parts`, which hold less than 2^31 bytes. */
XT_API int32_t xt_socket_send_parts(int32_t fd, const void *parts, uint32_t count);

/* ---- datagram.c ---- */

/* Sends one message to the unix datagram socket whose `sun_path` is `address`. Returns its size, or -EAGAIN if full. */
XT_API int32_t xt_datagram_send(const void *address, uint32_t address_size, const void *data, uint32_t data_size);

/* ---- descriptors.c: hands open files to another process ---- */

enum { XT_DESCRIPTORS_MAX = 8 };
/* Two connected sockets, which do not wait, close-on-exec: for bytes, or for the two functions below. */
XT_API int32_t xt_descriptors_pair(int32_t *ends, int32_t is_stream);
/* Makes a descriptor that we were started with close-on-exec. */
XT_API int32_t xt_descriptors_adopt(int32_t fd);
/* Sends `count` descriptors, which stay open here, under a number. -EAGAIN: the other end takes none. */
XT_API int32_t xt_descriptors_send(int32_t socket, uint32_t number, const int32_t *fds, uint32_t count);
/* Takes the next ones, which are close-on-exec; `fds` has room for the most. Returns how many. */
XT_API int32_t xt_descriptors_receive(int32_t socket, uint32_t *number, int32_t *fds);

/* ---- jail/: what a process that has to do with another domain gives up ---- */

/* The parts of a jail: capabilities and new privileges; the network; files; system calls; being root. */
enum { XT_JAIL_PRIVILEGES = 1, XT_JAIL_NETWORK = 2, XT_JAIL_FILES = 4, XT_JAIL_CALLS = 8, XT_JAIL_USER = 16 };
/* Whom a table of calls is for, and what for: see jail/calls.h. */
enum { XT_JAIL_CONTROL = 1, XT_JAIL_PLANE = 2 };
enum {
  XT_JAIL_SIM = 1,
  XT_JAIL_XEN = 2,
  XT_JAIL_NBD = 4,
  XT_JAIL_DIAL = 8,
  XT_JAIL_SERVICE = 16,
  XT_JAIL_CHILD = 32,
  XT_JAIL_SHARE = 64,
  XT_JAIL_ACCEPT = 128,
  XT_JAIL_LOCAL = 256,
};
/*
 * What may be done beneath a path: read and list; write and use devices; create; remove. Paths are passed as strings
 * that begin with a byte of these; an empty one is the end.
 */
enum { XT_JAIL_READ = 1, XT_JAIL_WRITE = 2, XT_JAIL_MAKE = 4, XT_JAIL_REMOVE = 8 };
/* The parts that this kernel has and this process can have. */
XT_API uint32_t xt_jail_support(void);
/*
 * Puts every thread of this process, and all that they will start, into a jail of these parts for good. What is open
 * stays open; what an exec would pass on has nothing behind it any more. `child` is the one process that may be sent
 * signals, or 0. With XT_JAIL_USER it is `uid` and `gid` from then on. Returns the parts that every thread is in;
 * `failure` is 0, or why they are not in more of them (-errno).
 */
XT_API uint32_t xt_jail_enter(uint32_t parts, uint32_t needs, int32_t child, uint32_t uid, uint32_t gid,
                              const char *paths, int32_t *failure);
/* Puts the calling thread, in such a process, into the narrower jail of a plane. It has opened everything by then. */
XT_API int32_t xt_jail_enter_plane(uint32_t parts, uint32_t needs, const char *paths);

#endif
