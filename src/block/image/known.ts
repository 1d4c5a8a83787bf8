// What is known about images that are or were open: which disk of this process has which descriptor, and what was
// served before as a raw disk. The latter is for this process, unless `rememberIn` names a directory for several.
import { fstatSync, mkdirSync, readFileSync, writeFileSync, type Stats } from "node:fs";
import { join } from "node:path";
import { attempt } from "./attempt.ts";
import { deviceNumber, THIS_HOST, type HostFiles } from "./host-uses.ts";
import { removeOldest } from "./notes.ts";
import { readDeviceNumber } from "./abilities.ts";

const users = new Map<number, string>();
/** Indexed by identity: the file's modification time when we closed it. */
const servedRaw = new Map<string, number>();
let shared: string | undefined;

/** From now on, what images were served raw is known to all processes that name this directory. */
export function rememberIn(directory: string): void {
  shared = directory;
}

export function noteOpened(fd: number, user: string): void {
  users.set(fd, user);
}

/** Everything written to the image until now came from its guest. */
export function noteClosing(fd: number): void {
  users.delete(fd);
  const stat = fstatSync(fd);
  const { text, isSure } = identify(stat);
  if (!isSure) return;
  servedRaw.set(text, changedMs(stat));
  // If it cannot be written, a disk that looks like a container has to be served with `raw:`.
  attempt(() => share(text, changedMs(stat)));
}

function share(identity: string, changed: number): void {
  if (shared === undefined) return;
  mkdirSync(shared, { recursive: true, mode: 0o700 });
  writeFileSync(noteOf(shared, identity), String(changed), { mode: 0o600 });
  removeOldest(shared);
}

function noteOf(directory: string, identity: string): string {
  return join(directory, identity.replaceAll(/[^a-z0-9]+/g, "-"));
}

/** The image was not served as a raw disk. */
export function noteUnused(fd: number): void {
  users.delete(fd);
}

/** The disk of this process that has the descriptor open. */
export function userOf(fd: number): string | undefined {
  return users.get(fd);
}

/**
 * Whether the image is unchanged since a guest of ours had it. A guest may write anything to the beginning of its
 * disk, e.g. a LUKS header. That does not make the disk a container, and must not cost the guest its disk when it
 * reboots.
 */
export function isAsServed(fd: number): boolean {
  const stat = fstatSync(fd);
  const { text } = identify(stat);
  return [servedRaw.get(text), sharedNote(text)].includes(changedMs(stat));
}

function sharedNote(identity: string): number | undefined {
  if (shared === undefined) return undefined;
  const path = noteOf(shared, identity);
  return attempt(() => Number(readFileSync(path, "utf8")));
}

/** A block device has no modification time of its contents. */
function changedMs(stat: Stats): number {
  return stat.isBlockDevice() ? 0 : stat.mtimeMs;
}

export interface ImageIdentity {
  readonly text: string;
  /** False: another image may later have the same identity. */
  readonly isSure: boolean;
}

/**
 * Distinguishes an image from all others that have its path, earlier or later. The kernel reuses the number of a loop
 * or device-mapper device for the next one, but counts disks in `diskseq` (Linux 5.15).
 */
export function identify(stat: Stats, host: HostFiles = THIS_HOST): ImageIdentity {
  if (!stat.isBlockDevice()) return { text: `file ${stat.dev} ${stat.ino}`, isSure: true };
  const sequence = readDeviceNumber(stat, "diskseq", 0, host);
  const device = `device ${deviceNumber(stat.rdev)}`;
  return sequence === 0
    ? { text: device, isSure: false }
    : { text: `${device}, diskseq ${sequence}`, isSure: true };
}
