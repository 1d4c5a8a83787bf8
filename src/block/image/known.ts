// What this process knows of the images that it has or had open: which of its disks has which descriptor, and what it
// served as a raw disk before. Descriptors are the process's, and so is this.
import { fstatSync } from "node:fs";

const users = new Map<number, string>();
/** By identity: when the file was last changed as we closed it. */
const servedRaw = new Map<string, number>();

export function noteOpened(fd: number, user: string): void {
  users.set(fd, user);
}

/** What came into the image until now came from its guest. */
export function noteClosing(fd: number): void {
  users.delete(fd);
  const { identity, changedMs } = identify(fd);
  servedRaw.set(identity, changedMs);
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
  const { identity, changedMs } = identify(fd);
  return servedRaw.get(identity) === changedMs;
}

function identify(fd: number): { identity: string; changedMs: number } {
  const stat = fstatSync(fd);
  return stat.isBlockDevice()
    ? { identity: `device ${stat.rdev}`, changedMs: 0 }
    : { identity: `file ${stat.dev} ${stat.ino}`, changedMs: stat.mtimeMs };
}
