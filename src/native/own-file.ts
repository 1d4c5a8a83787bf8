// Files where a process that is not to be trusted, as that of a guest in its directory, may have put anything. So
// nothing is followed, waited for or believed to be small, and a file with a second name elsewhere is not touched.
import { closeSync, constants, fstatSync, openSync, readSync } from "node:fs";
import { codeOf } from "../core/errors.ts";
import { check, cString, errnoName, shim } from "./shim.ts";

/** Neither a link nor the other end of a pipe, on which opening would wait. */
const ONLY_ITSELF = constants.O_NOFOLLOW | constants.O_NONBLOCK;
const ACCESS = {
  read: constants.O_RDONLY,
  change: constants.O_RDWR,
  make: constants.O_RDWR | constants.O_CREAT,
} as const;

/** How opening fails what cannot be a file of ours: a link, a socket, a directory, or nothing. */
const NO_FILE: ReadonlySet<string> = new Set(["ELOOP", "ENXIO", "ENOENT", "ENOTDIR", "EISDIR"]);

/** Bytes of names that are read at a time: those of a guest with a hundred disks of many queues. */
const NAMES_BYTES = 64 * 1024;

/**
 * Opens a file that has no other name. Returns undefined if there is none, or something else. Throws when it cannot
 * find out now, for instance without a free descriptor.
 */
export function openOwnFile(path: string, access: keyof typeof ACCESS, mode = 0o600): number | undefined {
  let fd: number;
  try {
    fd = openSync(path, ACCESS[access] | ONLY_ITSELF, mode);
  } catch (error) {
    if (NO_FILE.has(codeOf(error))) return undefined;
    throw error;
  }
  const stat = fstatSync(fd);
  // It has none at all if it has been replaced by now.
  if (stat.isFile() && stat.nlink <= 1) return fd;
  closeSync(fd);
  return undefined;
}

/** The same for a file that has to be there; one is made if nothing is. */
export function makeOwnFile(path: string, mode = 0o600): number {
  const fd = openOwnFile(path, "make", mode);
  if (fd === undefined) throw new Error(`${path} is something else, or has another name`);
  return fd;
}

/** What is in such a file of at most `bytesMax` bytes; undefined where there is none. Throws as `openOwnFile` does. */
export function readOwnFile(path: string, bytesMax: number): Buffer | undefined {
  const fd = openOwnFile(path, "read");
  if (fd === undefined) return undefined;
  try {
    const { size } = fstatSync(fd);
    if (size > bytesMax) return undefined;
    const bytes = Buffer.alloc(size);
    return bytes.subarray(0, readSync(fd, bytes, 0, size, 0));
  } finally {
    closeSync(fd);
  }
}

/**
 * Names in a directory, however many there are: some of them, with a character for each byte. None where there is no
 * directory.
 */
export function someNamesIn(path: string): string[] {
  const names = Buffer.alloc(NAMES_BYTES);
  const used = shim.xt_directory_names(cString(path), names, names.length);
  if (used < 0 && NO_FILE.has(errnoName(used))) return [];
  return names
    .toString("latin1", 0, check(used, `look into ${path}`, "environment"))
    .split("\0")
    .slice(0, -1);
}
