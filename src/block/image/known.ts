// What this process knows of the images that it has or had open: which of its disks has which descriptor, and what it
// served as a raw disk before. Descriptors are the process's, and so is this.
import { fstatSync, type Stats } from "node:fs";
import { deviceNumber, THIS_HOST, type HostFiles } from "./host-uses.ts";
import { readDeviceNumber } from "./limits.ts";

const users = new Map<number, string>();
/** By identity: when the file was last changed as we closed it. */
const servedRaw = new Map<string, number>();

export function noteOpened(fd: number, user: string): void {
  users.set(fd, user);
}

/** What came into the image until now came from its guest. */
export function noteClosing(fd: number): void {
  users.delete(fd);
  const stat = fstatSync(fd);
  const { text, isSure } = identify(stat);
  if (isSure) servedRaw.set(text, changedMs(stat));
}

/** The disk of this process that has the descriptor open. */
export function userOf(fd: number): string | undefined {
  return users.get(fd);
}

/**
 * Whether the image is as a guest of ours left it. A guest may write whatever it likes to the beginning of its
 * disk, a LUKS header, say: that makes no container of the disk, and must not cost the guest its disk when it
 * reboots.
 */
export function isAsServed(fd: number): boolean {
  const stat = fstatSync(fd);
  return servedRaw.get(identify(stat).text) === changedMs(stat);
}

/** A block device tells nothing of the kind. */
function changedMs(stat: Stats): number {
  return stat.isBlockDevice() ? 0 : stat.mtimeMs;
}

export interface ImageIdentity {
  readonly text: string;
  /** False: something else may come to have the same identity. */
  readonly isSure: boolean;
}

/**
 * What tells an image from all others that have its path, before and after. The kernel gives the number of a loop or
 * device-mapper device to the next one, and counts what has been a disk in `diskseq` (Linux 5.15).
 */
export function identify(stat: Stats, host: HostFiles = THIS_HOST): ImageIdentity {
  if (!stat.isBlockDevice()) return { text: `file ${stat.dev} ${stat.ino}`, isSure: true };
  const sequence = readDeviceNumber(stat, "diskseq", 0, host);
  const device = `device ${deviceNumber(stat.rdev)}`;
  return sequence === 0
    ? { text: device, isSure: false }
    : { text: `${device}, diskseq ${sequence}`, isSure: true };
}
