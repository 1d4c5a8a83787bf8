// The C shim's interface, from csrc/xentool.h and csrc/xen/xen.h.
// Written by `npm run abi`; a test says when it is stale.

export const XT_ABI_VERSION = 12;
export const XT_POLL_IN = 1;
export const XT_POLL_OUT = 4;
export const XT_POLL_ERROR = 8;
export const XT_POLL_HANGUP = 16;
export const XT_IO_READ = 0;
export const XT_IO_WRITE = 1;
export const XT_IO_FLUSH = 2;
export const XT_IO_DISCARD = 3;
export const XT_IO_SECURE_DISCARD = 4;
export const XT_IO_READV = 5;
export const XT_IO_WRITEV = 6;
export const XT_ENGINE_URING = 0;
export const XT_ENGINE_POLL = 1;
export const XT_REACTOR_DEPTH_MAX = 4096;
export const XT_REACTOR_WATCHES_MAX = 2048;
export const XT_REACTOR_FILES_MAX = 8;
export const XT_VCHAN_WRITTEN = 1;
export const XT_VCHAN_READ = 2;
export const XT_VCHAN_BAD_PROD = 1;
export const XT_VCHAN_BAD_CONS = 2;
export const XT_STREAM_LOCAL = -1;
export const XT_DESCRIPTORS_MAX = 8;
export const XT_JAIL_PRIVILEGES = 1;
export const XT_JAIL_NETWORK = 2;
export const XT_JAIL_FILES = 4;
export const XT_JAIL_CALLS = 8;
export const XT_JAIL_USER = 16;
export const XT_JAIL_CONTROL = 1;
export const XT_JAIL_PLANE = 2;
export const XT_JAIL_SIM = 1;
export const XT_JAIL_XEN = 2;
export const XT_JAIL_NBD = 4;
export const XT_JAIL_DIAL = 8;
export const XT_JAIL_SERVICE = 16;
export const XT_JAIL_CHILD = 32;
export const XT_JAIL_SHARE = 64;
export const XT_JAIL_ACCEPT = 128;
export const XT_JAIL_LOCAL = 256;
export const XT_JAIL_READ = 1;
export const XT_JAIL_WRITE = 2;
export const XT_JAIL_MAKE = 4;
export const XT_JAIL_REMOVE = 8;
export const XT_EVTCHN_NONBLOCK = 1;
export const XT_EVTCHN_KEEP = 2;
export const XT_COPY_SOURCE_GREF = 1;
export const XT_COPY_DEST_GREF = 2;
export const XT_SIM_DOMAINS_MAX = 250;
export const XT_SIM_STORE_GREF = 1;
export const XT_SIM_RESERVED_GREFS = 8;
export const XT_SIM_SLOT = 0;
export const XT_SIM_GRANT = 1;
export const XT_SIM_ORPHAN = 2;
export const XT_SIM_MAP = 3;
export const XT_SIM_PORT = 4;
export const XT_SIM_HANDLE = 5;

// Structures: their size in bytes, and where each field begins.
export const XT_IO = {
  bytes: 40,
  offset: 0,
  length: 8,
  address: 16,
  op: 24,
  tag: 28,
  file: 32,
  unused: 36,
} as const;
export const XT_IO_DONE = {
  bytes: 8,
  tag: 0,
  result: 4,
} as const;
export const XT_VCHAN = {
  bytes: 72,
  header: 0,
  read_data: 8,
  write_data: 16,
  read_size: 24,
  write_size: 28,
  is_server: 32,
  end_offset: 36,
  read_cons: 40,
  write_prod: 44,
  read_prod: 48,
  write_cons: 52,
  peer_live: 56,
  peer_end: 60,
  bad_counter: 64,
} as const;
export const XT_COPY_FOREIGN = {
  bytes: 8,
  ref: 0,
  offset: 4,
  domid: 6,
} as const;
export const XT_COPY_SIDE = {
  bytes: 8,
  address: 0,
  foreign: 0,
} as const;
export const XT_COPY_SEGMENT = {
  bytes: 24,
  source: 0,
  dest: 8,
  length: 16,
  flags: 18,
  status: 20,
  pad: 22,
} as const;
export const XT_SIM_LIMITS = {
  bytes: 24,
  grant_entries: 0,
  share_pages: 4,
  maptrack: 8,
  ports: 12,
  handles: 16,
  slots: 20,
} as const;
export const XT_SIM_ITEM = {
  bytes: 28,
  kind: 0,
  domid: 4,
  id: 8,
  peer: 12,
  count: 16,
  slot: 20,
  pid: 24,
} as const;

/** Every function, as bun:ffi wants it. */
export const symbols = {
  xt_abi_version: { args: [], returns: "u32" },
  xt_now_us: { args: [], returns: "f64" },
  xt_yield: { args: [], returns: "i32" },
  xt_memory_alloc: { args: ["u64"], returns: "f64" },
  xt_memory_alloc_large: { args: ["u64"], returns: "f64" },
  xt_memory_free: { args: ["ptr", "u64"], returns: "i32" },
  xt_memory_map: { args: ["i32", "u64", "u64", "i32"], returns: "f64" },
  xt_memory_copy: { args: ["ptr", "ptr", "u64"], returns: "i32" },
  xt_eventfd: { args: [], returns: "i32" },
  xt_eventfd_signal: { args: ["i32"], returns: "i32" },
  xt_eventfd_drain: { args: ["i32"], returns: "i32" },
  xt_load8: { args: ["ptr"], returns: "u32" },
  xt_store8: { args: ["ptr", "u32"], returns: "void" },
  xt_fetch_or8: { args: ["ptr", "u32"], returns: "u32" },
  xt_changes_within: { args: ["ptr", "u32", "u32"], returns: "u32" },
  xt_ring_init: { args: ["ptr"], returns: "void" },
  xt_ring_copy_requests: { args: ["ptr", "ptr", "u32", "u32", "u32", "u32", "u32"], returns: "void" },
  xt_ring_push_responses: { args: ["ptr", "ptr", "u32", "u32", "u32", "u32", "u32"], returns: "i32" },
  xt_ring_final_check_requests: { args: ["ptr", "u32"], returns: "u32" },
  xt_ring_push_requests: { args: ["ptr", "ptr", "u32", "u32", "u32", "u32", "u32"], returns: "i32" },
  xt_ring_copy_responses: { args: ["ptr", "ptr", "u32", "u32", "u32", "u32", "u32"], returns: "void" },
  xt_ring_final_check_responses: { args: ["ptr", "u32"], returns: "u32" },
  xt_file_perform: { args: ["i32", "i32", "ptr"], returns: "i32" },
  xt_file_lock: { args: ["i32", "i32"], returns: "i32" },
  xt_file_lock_range: { args: ["i32", "u32", "u32"], returns: "i32" },
  xt_file_size: { args: ["i32"], returns: "f64" },
  xt_file_range_locked: { args: ["i32", "u32", "u32"], returns: "i32" },
  xt_directory_names: { args: ["ptr", "ptr", "u32"], returns: "i32" },
  xt_process_end_with_parent: { args: [], returns: "i32" },
  xt_reactor_open: { args: ["u32", "u32", "u32"], returns: "f64" },
  xt_reactor_add_file: { args: ["ptr", "i32", "i32"], returns: "i32" },
  xt_reactor_watch: { args: ["ptr", "i32", "u32", "u32"], returns: "i32" },
  xt_reactor_rewatch: { args: ["ptr", "u32", "u32"], returns: "i32" },
  xt_reactor_unwatch: { args: ["ptr", "u32"], returns: "i32" },
  xt_reactor_wait: { args: ["ptr", "ptr", "u32", "u32", "i32", "u32", "ptr", "u32"], returns: "i32" },
  xt_reactor_close: { args: ["ptr"], returns: "i32" },
  xt_vchan_sample: { args: ["ptr"], returns: "i32" },
  xt_vchan_read: { args: ["ptr", "ptr", "u32"], returns: "i32" },
  xt_vchan_write: { args: ["ptr", "ptr", "u32"], returns: "i32" },
  xt_vchan_fill: { args: ["ptr", "i32", "i32", "u32"], returns: "i32" },
  xt_vchan_drain: { args: ["ptr", "i32", "i32", "u32"], returns: "i32" },
  xt_vchan_take_request: { args: ["ptr", "u32"], returns: "i32" },
  xt_vchan_look: { args: ["ptr", "u32", "u32"], returns: "i32" },
  xt_vchan_arm: { args: ["ptr", "u32"], returns: "i32" },
  xt_stream_connect: { args: ["ptr", "i32"], returns: "i32" },
  xt_stream_listen: { args: ["ptr", "i32"], returns: "i32" },
  xt_stream_skip: { args: ["i32", "i32"], returns: "i32" },
  xt_stream_accept: { args: ["i32"], returns: "i32" },
  xt_stream_await_reader: { args: ["i32"], returns: "void" },
  xt_stream_is_sending: { args: ["i32"], returns: "i32" },
  xt_stream_end: { args: ["i32"], returns: "i32" },
  xt_stream_pipe: { args: ["ptr"], returns: "i32" },
  xt_stream_reopen: { args: ["i32", "i32"], returns: "i32" },
  xt_stream_discard: { args: ["i32"], returns: "i32" },
  xt_socket_receive: { args: ["i32", "ptr", "u32"], returns: "i32" },
  xt_socket_send: { args: ["i32", "ptr", "u32", "ptr", "u32"], returns: "i32" },
  xt_socket_send_parts: { args: ["i32", "ptr", "u32"], returns: "i32" },
  xt_datagram_send: { args: ["ptr", "u32", "ptr", "u32"], returns: "i32" },
  xt_descriptors_pair: { args: ["ptr", "i32"], returns: "i32" },
  xt_descriptors_adopt: { args: ["i32"], returns: "i32" },
  xt_descriptors_send: { args: ["i32", "u32", "ptr", "u32"], returns: "i32" },
  xt_descriptors_receive: { args: ["i32", "ptr", "ptr"], returns: "i32" },
  xt_jail_support: { args: [], returns: "u32" },
  xt_jail_enter: { args: ["u32", "u32", "i32", "u32", "u32", "ptr", "ptr"], returns: "u32" },
  xt_jail_enter_plane: { args: ["u32", "u32", "ptr"], returns: "i32" },
  xt_linux_open: { args: ["i32", "i32"], returns: "f64" },
  xt_platform_close: { args: ["ptr"], returns: "i32" },
  xt_evtchn_open: { args: ["ptr", "u32"], returns: "f64" },
  xt_evtchn_close: { args: ["ptr"], returns: "i32" },
  xt_evtchn_fd: { args: ["ptr"], returns: "i32" },
  xt_evtchn_bind_interdomain: { args: ["ptr", "u32", "u32"], returns: "i32" },
  xt_evtchn_bind_unbound: { args: ["ptr", "u32"], returns: "i32" },
  xt_evtchn_unbind: { args: ["ptr", "u32"], returns: "i32" },
  xt_evtchn_notify: { args: ["ptr", "u32"], returns: "i32" },
  xt_evtchn_unmask: { args: ["ptr", "u32"], returns: "i32" },
  xt_evtchn_restrict: { args: ["ptr", "u32"], returns: "i32" },
  xt_evtchn_pending: { args: ["ptr", "ptr", "u32"], returns: "i32" },
  xt_gnttab_open: { args: ["ptr"], returns: "f64" },
  xt_gnttab_close: { args: ["ptr"], returns: "i32" },
  xt_gnttab_map: { args: ["ptr", "ptr", "ptr", "u32", "i32", "i64", "i64", "ptr"], returns: "f64" },
  xt_gnttab_unmap: { args: ["ptr"], returns: "i32" },
  xt_gnttab_copy: { args: ["ptr", "ptr", "u32"], returns: "i32" },
  xt_gntshr_open: { args: ["ptr"], returns: "f64" },
  xt_gntshr_close: { args: ["ptr"], returns: "i32" },
  xt_gntshr_share: { args: ["ptr", "u32", "u32", "i32", "i64", "i64", "ptr", "ptr"], returns: "f64" },
  xt_gntshr_unshare: { args: ["ptr"], returns: "i32" },
  xt_sim_host_create: { args: ["ptr", "ptr"], returns: "i32" },
  xt_sim_domain_create: { args: ["ptr", "u32"], returns: "i32" },
  xt_sim_domain_destroy: { args: ["ptr", "u32"], returns: "i32" },
  xt_sim_open: { args: ["ptr", "u32", "i32"], returns: "f64" },
  xt_sim_crash: { args: ["ptr"], returns: "i32" },
  xt_sim_reap: { args: ["ptr", "u32", "u32"], returns: "i32" },
  xt_sim_sweep: { args: ["ptr"], returns: "i32" },
  xt_sim_deliver: { args: ["ptr"], returns: "i32" },
  xt_sim_list: { args: ["ptr", "ptr", "u32"], returns: "i32" },
  xt_sim_adopt_store_port: { args: ["ptr"], returns: "i32" },
  xt_sim_own_page: { args: ["ptr", "u32"], returns: "f64" },
} as const;
