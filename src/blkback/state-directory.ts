// Where the files of a device are that its server leaves to the next one: statistics, journals, log of writes. Those of
// a process of `watch` are in a directory of its guest's own, so that it reaches those of no other guest; all others
// are in the state directory itself. Whoever has the device's lock moves them to where its server looks for them, and
// makes them that server's.
//
// What is in a guest's directory may be the work of a process that its guest has taken over, and may change while we
// look. So nothing in it is followed, waited for or believed to be small.
import {
  closeSync,
  constants,
  existsSync,
  fchmodSync,
  fchownSync,
  fstatSync,
  lstatSync,
  mkdirSync,
  openSync,
  readdirSync,
  readSync,
  renameSync,
  rmdirSync,
  rmSync,
  statSync,
} from "node:fs";
import { join } from "node:path";
import { codeOf, XentoolError } from "../core/errors.ts";
import { parseDecimal, type Domid } from "../core/types.ts";
import type { JailUser } from "../native/jail.ts";
import { shim } from "../native/shim.ts";
import type { DeviceAddress } from "./address.ts";
import { guestNamed } from "./device-directories.ts";

export interface HeldDir {
  release(): void;
}

export type Disk = Pick<DeviceAddress, "frontend" | "devid">;

/** Whoever removes the directory has it for a moment only. */
const HOLD_TRIES = 1000;

/** Neither a link nor the other end of a pipe, on which opening would wait. */
const ONLY_ITSELF = constants.O_RDONLY | constants.O_NOFOLLOW | constants.O_NONBLOCK;

/** How opening fails what cannot be a file of ours: a link, a socket, or nothing. */
const NOT_OURS: ReadonlySet<string> = new Set(["ELOOP", "ENXIO", "ENOENT", "ENOTDIR"]);

/** Statistics are for everybody; journals and logs are not, by their own modes. */
const DIRECTORY_MODE = 0o755;

const ONLY_DIRECTORY = constants.O_RDONLY | constants.O_DIRECTORY | constants.O_NOFOLLOW;

/** The directory of the files of a guest whose disks a process of its own serves. */
export function guestDir(stateDir: string, frontend: Domid): string {
  return join(stateDir, String(frontend));
}

/**
 * Makes it, should it not be there, and keeps it from being removed until the result is released. A process in a
 * jail would not find another one of that name.
 */
export function holdGuestDir(stateDir: string, frontend: Domid): HeldDir {
  const path = guestDir(stateDir, frontend);
  mkdirSync(stateDir, { recursive: true, mode: 0o755 });
  for (let tries = 0; tries < HOLD_TRIES; tries++) {
    mkdirSync(path, { recursive: true, mode: DIRECTORY_MODE });
    const fd = tryLockDir(path, false);
    if (fd !== undefined) return { release: () => closeSync(fd) };
  }
  throw new XentoolError("environment", `somebody else has ${path}`, { path });
}

/** Removes it, should nobody hold it and nothing be in it. */
export function removeGuestDir(stateDir: string, frontend: Domid): void {
  removeUnheld(guestDir(stateDir, frontend), (path) => rmdirSync(path));
}

/** The same with whatever a process left in it. For guests that are gone. */
export function removeGuest(stateDir: string, frontend: Domid): void {
  removeUnheld(guestDir(stateDir, frontend), (path) => rmSync(path, { recursive: true }));
}

function removeUnheld(path: string, remove: (path: string) => void): void {
  const fd = tryLockDir(path, true);
  if (fd === undefined) return;
  try {
    remove(path);
  } catch {
    // There are files of a disk.
  } finally {
    closeSync(fd);
  }
}

/** The directory's descriptor, which has the lock; undefined where there is none to be had. */
function tryLockDir(path: string, exclusive: boolean): number | undefined {
  let fd: number;
  try {
    fd = openSync(path, ONLY_DIRECTORY);
  } catch {
    return undefined;
  }
  const isLocked = shim.xt_file_lock(fd, exclusive ? 1 : 0) === 0;
  if (isLocked && statSync(path, { throwIfNoEntry: false })?.ino === fstatSync(fd).ino) return fd;
  closeSync(fd);
  return undefined;
}

/** Moves a disk's files to where the process of its guest has them, which is `user`. For the holder of its lock. */
export function giveToGuest(stateDir: string, disk: Disk, user = ourselves()): void {
  const to = guestDir(stateDir, disk.frontend);
  own(to, ONLY_DIRECTORY, user, DIRECTORY_MODE);
  for (const name of filesOf(to, disk)) if (!settle(join(to, name), user)) removeOne(join(to, name));
  for (const name of filesOf(stateDir, disk))
    if (settle(join(stateDir, name), user)) renameSync(join(stateDir, name), join(to, name));
}

/** Moves them back into the state directory, as far as they are what they should be. */
export function takeFromGuest(stateDir: string, disk: Disk): void {
  const from = guestDir(stateDir, disk.frontend);
  for (const name of filesOf(from, disk)) {
    if (!isFile(join(from, name))) continue;
    const path = join(stateDir, name);
    renameSync(join(from, name), path);
    // Looked at where nobody can put another one in its place.
    if (!settle(path, ourselves())) removeOne(path);
  }
  // Also what somebody had moved who was killed before it was ours.
  for (const name of filesOf(stateDir, disk))
    if (!settle(join(stateDir, name), ourselves())) removeOne(join(stateDir, name));
  removeGuestDir(stateDir, disk.frontend);
}

/** Removes them, wherever they are. For the holder of the disk's lock. */
export function removeFiles(stateDir: string, disk: Disk): void {
  for (const dir of [stateDir, guestDir(stateDir, disk.frontend)])
    for (const name of filesOf(dir, disk)) removeOne(join(dir, name));
  removeGuestDir(stateDir, disk.frontend);
}

/** Whether there are such files. */
export function hasFiles(stateDir: string, disk: Disk): boolean {
  return [stateDir, guestDir(stateDir, disk.frontend)].some((dir) => filesOf(dir, disk).length > 0);
}

/** Guests that have a directory. */
export function guestsIn(stateDir: string): Domid[] {
  return namesIn(stateDir).flatMap((name) => guestNamed(name) ?? []);
}

/** Disks of which there is any file, also a lock or a socket. */
export function disksIn(stateDir: string): Disk[] {
  const disks = new Map<string, Disk>();
  const add = (names: readonly string[], only?: Domid): void => {
    for (const name of names) {
      const disk = diskOf(name);
      if (disk !== undefined && (only ?? disk.frontend) === disk.frontend)
        disks.set(`${disk.frontend}-${disk.devid}`, disk);
    }
  };
  add(namesIn(stateDir));
  for (const guest of guestsIn(stateDir)) add(namesForUs(guestDir(stateDir, guest)), guest);
  return [...disks.values()];
}

/** Reads a file of at most `bytesMax` bytes that may be anybody's. Throws if it is anything else, or not there. */
export function readStateFile(path: string, bytesMax: number): Buffer {
  const fd = openSync(path, ONLY_ITSELF);
  try {
    const stat = fstatSync(fd);
    if (!stat.isFile() || stat.size > bytesMax) throw new RangeError(`${path} is not what it should be`);
    const bytes = Buffer.alloc(stat.size);
    return bytes.subarray(0, readSync(fd, bytes, 0, stat.size, 0));
  } finally {
    closeSync(fd);
  }
}

function isFile(path: string): boolean {
  return lstatSync(path, { throwIfNoEntry: false })?.isFile() === true;
}

function ourselves(): JailUser {
  return { uid: process.geteuid?.() ?? 0, gid: process.getegid?.() ?? 0 };
}

/** Makes a file that has this name alone `user`'s, with the mode that files of its kind have. False: it is none. */
function settle(path: string, user: JailUser): boolean {
  return own(path, ONLY_ITSELF, user, path.endsWith(".stats") ? 0o644 : 0o600);
}

function own(path: string, how: number, { uid, gid }: JailUser, mode: number): boolean {
  let fd: number;
  try {
    fd = openSync(path, how);
  } catch (error) {
    // Whatever else it is, as the lack of a descriptor, says nothing about the file, which may be a guest's journal.
    if (NOT_OURS.has(codeOf(error))) return false;
    throw error;
  }
  try {
    const stat = fstatSync(fd);
    if (how === ONLY_ITSELF && (!stat.isFile() || stat.nlink !== 1)) return false;
    if (stat.uid !== uid) fchownSync(fd, uid, gid);
    fchmodSync(fd, mode);
    return true;
  } finally {
    closeSync(fd);
  }
}

/** What cannot be a file of ours, as a directory with something in it, stays: then that disk alone is not served. */
function removeOne(path: string): void {
  try {
    if (lstatSync(path).isDirectory()) rmdirSync(path);
    else rmSync(path, { force: true });
  } catch {
    // As above.
  }
}

function filesOf(dir: string, { frontend, devid }: Disk): string[] {
  const isOne = new RegExp(`^${frontend}-${devid}\\.(?:stats|writes|journal(?:\\.\\d+)?(?:\\.new)?)$`);
  return namesIn(dir).filter((name) => isOne.test(name));
}

function namesIn(dir: string): string[] {
  return existsSync(dir) ? readdirSync(dir) : [];
}

/** None where we may not look. */
function namesForUs(dir: string): string[] {
  try {
    return namesIn(dir);
  } catch {
    return [];
  }
}

function diskOf(name: string): Disk | undefined {
  const [, frontend = "", device = ""] = /^(\d+)-(\d+)\./.exec(name) ?? [];
  const domid = guestNamed(frontend);
  const devid = parseDecimal(device, 2 ** 29);
  return domid === undefined || devid === undefined ? undefined : { frontend: domid, devid };
}
