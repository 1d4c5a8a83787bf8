// The C shim, csrc/xentool.h, as functions: the only file that imports bun:ffi. The library's bytes are
// embedded in the executable; they are copied to a sealed memory file and loaded from there, so no
// temporary directory is needed and nothing on disk can be swapped underneath us.
import { dlopen, toArrayBuffer, type FFIFunction, type Pointer } from "bun:ffi";
import { closeSync, readFileSync, writeSync } from "node:fs";
import { getSystemErrorMap } from "node:util";
import library from "../../build/shim/libxentool.so" with { type: "file" };
import { XentoolError } from "../core/errors.ts";
import { simSymbols } from "./sim-symbols.ts";
import { socketSymbols } from "./socket-symbols.ts";
import { vchanSymbols } from "./vchan-symbols.ts";

export { toArrayBuffer, type Pointer };

const ABI_VERSION = 3;

const i32 = "i32" as const;
const u32 = "u32" as const;
const u64 = "u64" as const;
const i64 = "i64" as const;
const f64 = "f64" as const;
const ptr = "ptr" as const;
const none = "void" as const;

const symbols = {
  xt_abi_version: { args: [], returns: u32 },

  xt_memory_alloc: { args: [u64], returns: f64 },
  xt_memory_free: { args: [ptr, u64], returns: i32 },
  xt_memory_map: { args: [i32, u64, u64, i32], returns: f64 },
  xt_memory_copy: { args: [ptr, ptr, u64], returns: i32 },
  xt_eventfd: { args: [], returns: i32 },
  xt_eventfd_signal: { args: [i32], returns: i32 },
  xt_eventfd_drain: { args: [i32], returns: i32 },
  xt_wait: { args: [ptr, u32, i32], returns: i32 },

  xt_load32: { args: [ptr], returns: u32 },
  xt_store32: { args: [ptr, u32], returns: none },
  xt_load8: { args: [ptr], returns: u32 },
  xt_store8: { args: [ptr, u32], returns: none },
  xt_fetch_or8: { args: [ptr, u32], returns: u32 },
  xt_fetch_and8: { args: [ptr, u32], returns: u32 },
  xt_fence: { args: [], returns: none },
  xt_changes_within: { args: [ptr, u32, u32], returns: u32 },

  xt_ring_init: { args: [ptr], returns: none },
  xt_ring_copy_requests: { args: [ptr, ptr, u32, u32, u32, u32, u32], returns: none },
  xt_ring_push_responses: { args: [ptr, ptr, u32, u32, u32, u32, u32], returns: i32 },
  xt_ring_final_check_requests: { args: [ptr, u32], returns: u32 },
  xt_ring_push_requests: { args: [ptr, ptr, u32, u32, u32, u32, u32], returns: i32 },
  xt_ring_copy_responses: { args: [ptr, ptr, u32, u32, u32, u32, u32], returns: none },
  xt_ring_final_check_responses: { args: [ptr, u32], returns: u32 },

  xt_reactor_open: { args: [u32, u32, u32], returns: f64 },
  xt_reactor_add_file: { args: [ptr, i32, i32], returns: i32 },
  xt_reactor_watch: { args: [ptr, i32, u32, u32], returns: i32 },
  xt_reactor_rewatch: { args: [ptr, u32, u32], returns: i32 },
  xt_reactor_unwatch: { args: [ptr, u32], returns: i32 },
  xt_reactor_wait: { args: [ptr, ptr, u32, u32, i32, ptr, u32], returns: i32 },
  xt_reactor_close: { args: [ptr], returns: i32 },
  xt_file_perform: { args: [i32, i32, ptr], returns: i32 },
  xt_file_lock: { args: [i32, i32], returns: i32 },

  xt_xen_evtchn_bind_interdomain: { args: [i32, u32, u32], returns: i32 },
  xt_xen_evtchn_bind_unbound: { args: [i32, u32], returns: i32 },
  xt_xen_evtchn_unbind: { args: [i32, u32], returns: i32 },
  xt_xen_evtchn_notify: { args: [i32, u32], returns: i32 },
  xt_xen_evtchn_unmask: { args: [i32, u32], returns: i32 },
  xt_xen_evtchn_restrict: { args: [i32, u32], returns: i32 },
  xt_evtchn_pending: { args: [i32, ptr, u32], returns: i32 },

  xt_xen_grant_map: { args: [i32, u32, ptr, u32, i32, ptr], returns: f64 },
  xt_xen_grant_unmap: { args: [i32, ptr, u64, u32], returns: i32 },
  xt_xen_grant_unmap_notify: { args: [i32, u64, i64, i64], returns: i32 },
  xt_xen_grant_copy: { args: [i32, ptr, u32], returns: i32 },
  xt_xen_share: { args: [i32, u32, u32, i32, ptr, ptr], returns: f64 },
  xt_xen_share_notify: { args: [i32, u64, i64, i64], returns: i32 },
  xt_xen_unshare: { args: [i32, ptr, u64, u32], returns: i32 },

  ...simSymbols,
  ...vchanSymbols,
  ...socketSymbols,
} satisfies Record<string, FFIFunction>;

const libc = {
  memfd_create: { args: [ptr, u32], returns: i32 },
  fcntl: { args: [i32, i32, i32], returns: i32 },
} satisfies Record<string, FFIFunction>;

const MFD_CLOEXEC = 1;
const MFD_ALLOW_SEALING = 2;
const F_ADD_SEALS = 1033;
const ALL_SEALS = 0xf;

function loadLibrary(): ReturnType<typeof dlopen<typeof symbols>>["symbols"] {
  const { memfd_create, fcntl } = dlopen("libc.so.6", libc).symbols;
  const name = new Uint8Array(Buffer.from("libxentool.so\0"));
  const fd = memfd_create(name, MFD_CLOEXEC | MFD_ALLOW_SEALING);
  if (fd < 0)
    throw new XentoolError("environment", "cannot make a memory file for the C shim (memfd_create)");
  try {
    const bytes = readFileSync(library);
    for (let at = 0; at < bytes.length;) at += writeSync(fd, bytes, at);
    fcntl(fd, F_ADD_SEALS, ALL_SEALS);
    const loaded = dlopen(`/proc/self/fd/${fd}`, symbols).symbols;
    const version = loaded.xt_abi_version();
    if (version !== ABI_VERSION)
      throw new XentoolError("bug", `the C shim has ABI ${version}, not ${ABI_VERSION}: run npm run build`);
    return loaded;
  } finally {
    closeSync(fd);
  }
}

/** Every function of csrc/xentool.h, loaded once per thread. */
export const shim = loadLibrary();

/** "ENOENT: no such file or directory" for -2 (or 2). */
export function errnoText(errno: number): string {
  const entry = getSystemErrorMap().get(-Math.abs(errno));
  return entry === undefined ? `errno ${Math.abs(errno)}` : `${entry[0]}: ${entry[1]}`;
}

/** The name alone: "ENOENT". */
export function errnoName(errno: number): string {
  return getSystemErrorMap().get(-Math.abs(errno))?.[0] ?? `errno ${Math.abs(errno)}`;
}

/** `result` of a shim function when it is no error; otherwise throws `io` (or `kind`): "cannot WHAT: ENOENT: …". */
export function check(result: number, what: string, kind: "io" | "environment" | "usage" = "io"): number {
  if (result >= 0) return result;
  throw new XentoolError(kind, `cannot ${what}: ${errnoText(result)}`, { errno: errnoName(result) });
}

/** `check` for a function that makes an address or a handle. */
export function checkAddress(result: number, what: string): Pointer {
  return check(result, what) as Pointer;
}
