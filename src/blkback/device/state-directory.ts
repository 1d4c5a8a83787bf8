// The files that the server of a device leaves to the next one: statistics, journals, log of writes. A process of
// `watch` has them in a directory for its guest alone, so that it reaches those of no other guest. All other servers
// have them in the state directory itself. Whoever holds the device's lock moves them to where its server looks for
// them, and makes that server their owner.
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
  renameSync,
  rmdirSync,
  rmSync,
} from "node:fs";
import { rm } from "node:fs/promises";
import { join } from "node:path";
import { XentoolError } from "../../core/errors.ts";
import { parseDecimal, type Domid } from "../../core/types.ts";
import type { JailUser } from "../../native/jail.ts";
import { isStill } from "../../native/lock-file.ts";
import { openOwnFile, someNamesIn } from "../../native/own-file.ts";
import { shim } from "../../native/shim.ts";
import type { DeviceAddress } from "../address.ts";
import { MAX_QUEUES, STATE_BYTES_MAX } from "../bounds.ts";
import { guestNamed } from "./device-directories.ts";

export interface HeldDir {
  release(): void;
}

export type Disk = Pick<DeviceAddress, "frontend" | "devid">;

/** Nobody who removes the directory holds it for more than a moment. */
const HOLD_TRIES = 1000;

/**
 * What follows "DOMID-DEVID." in the names of a disk's files. A new journal is about to take the other one's place.
 */
const KINDS: readonly string[] = [
  "stats",
  "writes",
  ...Array.from({ length: MAX_QUEUES }, (_, queue) => (queue === 0 ? "journal" : `journal.${queue}`)).flatMap(
    (journal) => [journal, `${journal}.new`],
  ),
];

/** Statistics are for everybody; journals and logs are not, by their own modes. */
const DIRECTORY_MODE = 0o755;

const ONLY_DIRECTORY = constants.O_RDONLY | constants.O_DIRECTORY | constants.O_NOFOLLOW;

/** The directory of the files of a guest whose disks a process of its own serves. */
export function guestDir(stateDir: string, frontend: Domid): string {
  return join(stateDir, String(frontend));
}

/**
 * Makes the directory if it is not there, and keeps it from being removed until the result is released: a process in a
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

/** Removes the directory if nobody holds it and nothing is in it. */
export function removeGuestDir(stateDir: string, frontend: Domid): void {
  const path = guestDir(stateDir, frontend);
  const fd = tryLockDir(path, true);
  if (fd === undefined) return;
  try {
    rmdirSync(path);
  } catch {
    // There are files of a disk.
  } finally {
    closeSync(fd);
  }
}

/** Like `removeGuestDir`, with whatever a process left in it, which may take a while. For guests that are gone. */
export function removeGuest(stateDir: string, frontend: Domid): Promise<void> {
  return whileUnheld(guestDir(stateDir, frontend), (path) => rm(path, { recursive: true }));
}

/**
 * First removes from the directory all that cannot be a file of a disk, then the directory as `removeGuestDir` does.
 * Does nothing while anybody holds it, who might put links in our way.
 */
export function tidyGuestDir(stateDir: string, frontend: Domid): Promise<void> {
  return whileUnheld(guestDir(stateDir, frontend), async (path) => {
    await removeStrange(path, frontend);
    rmdirSync(path);
  });
}

/** Never fails: what it leaves are files of a disk, or the next sweep finds it. */
async function whileUnheld(path: string, remove: (path: string) => Promise<void>): Promise<void> {
  const fd = tryLockDir(path, true);
  if (fd === undefined) return;
  try {
    await remove(path);
  } catch {
    // As above.
  } finally {
    closeSync(fd);
  }
}

async function removeStrange(dir: string, frontend: Domid): Promise<void> {
  for (;;) {
    const isStrange = (name: string): boolean =>
      diskOf(name, KINDS)?.frontend !== frontend || !isFile(join(dir, name));
    const strange = someNamesIn(dir).filter(isStrange);
    if (strange.length === 0) return;
    for (const name of strange) await rm(Buffer.from(join(dir, name), "latin1"), { recursive: true });
  }
}

/** The directory's descriptor, which has the lock; undefined if the lock cannot be had. */
function tryLockDir(path: string, exclusive: boolean): number | undefined {
  let fd: number;
  try {
    fd = openSync(path, ONLY_DIRECTORY);
  } catch {
    return undefined;
  }
  if (shim.xt_file_lock(fd, exclusive ? 1 : 0) === 0 && isStill(fd, path)) return fd;
  closeSync(fd);
  return undefined;
}

/** Moves a disk's files to where the process of its guest has them, which is `user`. For the holder of its lock. */
export function giveToGuest(stateDir: string, disk: Disk, user = ourselves()): void {
  const to = guestDir(stateDir, disk.frontend);
  ownDirectory(to, user);
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
    // It is checked here, where nobody can put another one in its place.
    if (!settle(path, ourselves())) removeOne(path);
  }
  // Another one may have been killed when it had moved a file, but not taken it over.
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
  const add = (disk: Disk | undefined): void => {
    if (disk !== undefined) disks.set(`${disk.frontend}-${disk.devid}`, disk);
  };
  for (const name of namesIn(stateDir)) add(diskOf(name));
  for (const guest of guestsIn(stateDir)) for (const disk of disksOfGuest(stateDir, guest)) add(disk);
  return [...disks.values()];
}

/** The disks that have a file in the guest's directory; only some of them if there are very many names. */
export function disksOfGuest(stateDir: string, guest: Domid): Disk[] {
  const disks = namesForUs(guestDir(stateDir, guest)).map((name) => diskOf(name, KINDS));
  return disks.filter((disk) => disk !== undefined && disk.frontend === guest) as Disk[];
}

function isFile(path: string): boolean {
  return lstatSync(path, { throwIfNoEntry: false })?.isFile() === true;
}

function ourselves(): JailUser {
  return { uid: process.geteuid?.() ?? 0, gid: process.getegid?.() ?? 0 };
}

/**
 * Makes `user` the owner of a file that has no other name, and sets the mode of its kind. False: it is not such a
 * file.
 */
function settle(path: string, user: JailUser): boolean {
  const fd = openOwnFile(path, "read");
  if (fd === undefined) return false;
  try {
    const isStats = path.endsWith(".stats");
    const { size, blocks } = fstatSync(fd);
    const most = isStats
      ? STATE_BYTES_MAX.stats
      : STATE_BYTES_MAX[path.endsWith(".writes") ? "writes" : "journal"];
    if (Math.max(size, blocks * 512) > most) return false;
    give(fd, user, isStats ? 0o644 : 0o600);
    return true;
  } finally {
    closeSync(fd);
  }
}

function ownDirectory(path: string, user: JailUser): void {
  const fd = openSync(path, ONLY_DIRECTORY);
  try {
    give(fd, user, DIRECTORY_MODE);
  } finally {
    closeSync(fd);
  }
}

function give(fd: number, { uid, gid }: JailUser, mode: number): void {
  if (fstatSync(fd).uid !== uid) fchownSync(fd, uid, gid);
  fchmodSync(fd, mode);
}

/** A directory with something in it cannot be a file of ours, and stays; then that disk alone is not served. */
function removeOne(path: string): void {
  try {
    if (lstatSync(path).isDirectory()) rmdirSync(path);
    else rmSync(path, { force: true });
  } catch {
    // As above.
  }
}

/** Asks for each name by itself, because there may be any number of other ones. */
function filesOf(dir: string, { frontend, devid }: Disk): string[] {
  const names = KINDS.map((kind) => `${frontend}-${devid}.${kind}`);
  return names.filter((name) => lstatSync(join(dir, name), { throwIfNoEntry: false }) !== undefined);
}

function namesIn(dir: string): string[] {
  return existsSync(dir) ? readdirSync(dir) : [];
}

/** None if we may not look. */
function namesForUs(dir: string): string[] {
  try {
    return someNamesIn(dir);
  } catch {
    return [];
  }
}

/** The disk that a file with this name is of; `kinds`, if it may only be of these. */
function diskOf(name: string, kinds?: readonly string[]): Disk | undefined {
  const [, frontend = "", device = "", kind = ""] = /^(\d+)-(\d+)\.(.*)$/s.exec(name) ?? [];
  if (kinds?.includes(kind) === false) return undefined;
  const domid = guestNamed(frontend);
  const devid = parseDecimal(device, 2 ** 29);
  return domid === undefined || devid === undefined ? undefined : { frontend: domid, devid };
}
