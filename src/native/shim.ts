// The C shim, csrc/xentool.h, as functions: the only file that imports bun:ffi. The library's bytes are
// embedded in the executable; they are copied to a sealed memory file and loaded from there, so no
// temporary directory is needed and nothing on disk can be swapped underneath us.
import { dlopen, toArrayBuffer, type FFIFunction, type Pointer } from "bun:ffi";
import { closeSync, readFileSync, writeSync } from "node:fs";
import { getSystemErrorMap } from "node:util";
import { isMainThread } from "node:worker_threads";
import library from "../../build/shim/libxentool.so" with { type: "file" };
import { XentoolError } from "../core/errors.ts";
import { symbols, XT_ABI_VERSION } from "./abi.ts";

export { toArrayBuffer, type Pointer };

const libc = {
  memfd_create: { args: ["ptr", "u32"], returns: "i32" },
  fcntl: { args: ["i32", "i32", "i32"], returns: "i32" },
} as const satisfies Record<string, FFIFunction>;

const MFD_CLOEXEC = 1;
const MFD_ALLOW_SEALING = 2;
const F_ADD_SEALS = 1033;
const ALL_SEALS = 0xf;

type Shim = ReturnType<typeof dlopen<typeof symbols>>["symbols"];

/** The library's own name, by which the dynamic linker knows it once it is loaded. */
const SONAME = "libxentool.so";

/**
 * The main thread loads the library, and workers find it loaded: in a jail nothing can be loaded any more. Throws
 * `environment`: the library's bytes are embedded at build time, so a failure is due to the host.
 */
function loadLibrary(): Shim {
  try {
    if (!isMainThread) return dlopen(SONAME, symbols).symbols;
    const { memfd_create, fcntl } = dlopen("libc.so.6", libc).symbols;
    const name = new Uint8Array(Buffer.from("libxentool.so\0"));
    const fd = memfd_create(name, MFD_CLOEXEC | MFD_ALLOW_SEALING);
    if (fd < 0) throw new Error("memfd_create failed");
    try {
      const bytes = readFileSync(library);
      for (let at = 0; at < bytes.length;) at += writeSync(fd, bytes, at);
      fcntl(fd, F_ADD_SEALS, ALL_SEALS);
      return dlopen(`/proc/self/fd/${fd}`, symbols).symbols;
    } finally {
      closeSync(fd);
    }
  } catch (error) {
    throw new XentoolError("environment", "cannot load the C shim from a memory file", {}, error);
  }
}

function checkVersion(loaded: Shim): Shim {
  const version = loaded.xt_abi_version();
  if (version === XT_ABI_VERSION) return loaded;
  throw new XentoolError("bug", `the C shim has ABI ${version}, not ${XT_ABI_VERSION}: run npm run build`);
}

/** Every function of csrc/xentool.h, loaded once per thread. */
export const shim = checkVersion(loadLibrary());

/** `text` as a NUL-terminated C string. */
export function cString(text: string): Uint8Array {
  return new TextEncoder().encode(`${text}\0`);
}

/** Errors that Node has no text for, but an image's file system or device may well return. */
const MORE_ERRNOS: ReadonlyMap<number, readonly [string, string]> = new Map([
  [35, ["EDEADLK", "resource deadlock avoided"]],
  [37, ["ENOLCK", "no locks available"]],
  [61, ["ENODATA", "no data available"]],
  [62, ["ETIME", "timer expired"]],
  [74, ["EBADMSG", "bad message"]],
  [84, ["EILSEQ", "invalid or incomplete multibyte or wide character"]],
  [116, ["ESTALE", "stale file handle"]],
  [117, ["EUCLEAN", "structure needs cleaning"]],
  [121, ["EREMOTEIO", "remote I/O error"]],
  [122, ["EDQUOT", "disk quota exceeded"]],
  [123, ["ENOMEDIUM", "no medium found"]],
  [124, ["EMEDIUMTYPE", "wrong medium type"]],
]);

function errnoWords(errno: number): readonly [string, string] | undefined {
  return getSystemErrorMap().get(-Math.abs(errno)) ?? MORE_ERRNOS.get(Math.abs(errno));
}

/** "ENOENT: no such file or directory" for -2 (or 2). */
export function errnoText(errno: number): string {
  return errnoWords(errno)?.join(": ") ?? `errno ${Math.abs(errno)}`;
}

/** Only the name, e.g. "ENOENT". */
export function errnoName(errno: number): string {
  return errnoWords(errno)?.[0] ?? `errno ${Math.abs(errno)}`;
}

/**
 * Returns `result` of a shim function unless it is an error; otherwise throws `io` (or `kind`): "cannot WHAT: ENOENT:
 * …".
 */
export function check(result: number, what: string, kind: "io" | "environment" | "usage" = "io"): number {
  if (result >= 0) return result;
  throw new XentoolError(kind, `cannot ${what}: ${errnoText(result)}`, { errno: errnoName(result) });
}

/** `check` for a function that returns an address or a handle. */
export function checkAddress(result: number, what: string): Pointer {
  return check(result, what) as Pointer;
}
