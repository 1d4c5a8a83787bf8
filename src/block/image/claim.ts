// Our claim to an image. Two writers, or a reader beside a writer, ruin a file system, so whoever comes first keeps
// others out, by every kind of lock that they may know. Ours is flock, which udev also respects. QEMU's are read
// locks on single bytes of the file (block/file-posix.c: RAW_LOCK_PERM_BASE and RAW_LOCK_SHARED_BASE, with the
// permissions of include/block/block-common.h): whoever does N holds byte 100+N, and whoever lets nobody else do N
// holds byte 200+N. All of these locks end with the open file, so kill -9 leaves none.
import { readFileSync } from "node:fs";
import { XentoolError } from "../../core/errors.ts";
import { moduleLogger } from "../../core/log.ts";
import { errnoName, errnoText, shim } from "../../native/shim.ts";
import { attempt } from "./attempt.ts";

const logger = moduleLogger("block");

/** `shared`: writes, and allows other writers. */
export type Claim = "read" | "write" | "shared";

/** What a disk has to claim that is served so. */
export function claimFor(readOnly: boolean, shared: boolean): Claim {
  if (shared) return "shared";
  return readOnly ? "read" : "write";
}

/** Who takes the locks that QEMU knows: we, or a program that opens the image for us, and then we only look. */
export type QemuLocks = "ours" | "lent";

/** The shim's lock functions. */
export interface LockCalls {
  xt_file_lock(fd: number, exclusive: number): number;
  xt_file_lock_range(fd: number, first: number, count: number): number;
  xt_file_range_locked(fd: number, first: number, count: number): number;
}

const DOES = 100;
const REFUSES = 200;
/** From here on each disk has a byte of its own. */
const DISKS = 2 ** 30;
const READ = 0;
const WRITE = 1;
const WRITE_UNCHANGED = 2;
const RESIZE = 3;

interface Conduct {
  readonly does: readonly number[];
  readonly refuses: readonly number[];
}

/** A disk that a guest writes to cannot be read consistently, so not even readers are let in. */
const CONDUCT: Readonly<Record<Claim, Conduct>> = {
  read: { does: [READ], refuses: [WRITE, RESIZE] },
  write: { does: [READ, WRITE], refuses: [READ, WRITE, WRITE_UNCHANGED, RESIZE] },
  shared: { does: [READ, WRITE], refuses: [] },
};

/**
 * Takes the locks for `claim`. Returns false if somebody else's are in the way; the caller must then close `fd`. On a
 * file system without locks a writer is refused, because nobody else could know of it; `insist` is the option that
 * serves it anyway.
 */
export function takeLocks(
  fd: number,
  path: string,
  claim: Claim,
  insist: string | undefined,
  calls: LockCalls = shim,
  qemuLocks: QemuLocks = "ours",
): boolean {
  if (claim !== "shared") {
    const error = calls.xt_file_lock(fd, claim === "write" ? 1 : 0);
    if (isTaken(error)) return false;
    if (error < 0) {
      withoutLocks(path, claim, error, insist);
      return true;
    }
  }
  const conduct = CONDUCT[claim];
  return (qemuLocks === "lent" || takeRanges(fd, conduct, calls)) && !areTheirs(fd, conduct, calls);
}

/**
 * Takes our locks before it checks others': of two that arrive together both may be refused, but both never succeed.
 */
function takeRanges(fd: number, { does, refuses }: Conduct, calls: LockCalls): boolean {
  const ours = [...does.map((what) => DOES + what), ...refuses.map((what) => REFUSES + what)];
  return !ours.some((byte) => isTaken(calls.xt_file_lock_range(fd, byte, 1)));
}

function areTheirs(fd: number, { does, refuses }: Conduct, calls: LockCalls): boolean {
  if (refuses.length === 0) return false;
  const theirs = [...does.map((what) => REFUSES + what), ...refuses.map((what) => DOES + what)];
  return theirs.some((byte) => calls.xt_file_range_locked(fd, byte, 1) === 1);
}

/**
 * Takes the lock of one disk, `user`, on its image, which is in the way of nobody but the disk's next server. A killed
 * server may be gone while the kernel carries out what it has begun (io_uring with direct I/O), and that must not come
 * after what the next one writes. It has the file open until then, so where an image is shared this lock tells. Returns
 * false if the former server's is still there. On a file system without locks nothing can tell.
 */
export function takeDisksLock(fd: number, user: string): boolean {
  // Other hosts, whose locks a cluster's file system may show, have the same names for other disks.
  const host = attempt(() => readFileSync("/proc/sys/kernel/random/boot_id", "utf8"));
  const digest = new Bun.CryptoHasher("sha256").update(`${host} ${user}`).digest();
  const byte = DISKS + (digest.readUInt32LE() % DISKS);
  shim.xt_file_lock_range(fd, byte, 1);
  return shim.xt_file_range_locked(fd, byte, 1) !== 1;
}

function isTaken(error: number): boolean {
  return error < 0 && ["EAGAIN", "EACCES"].includes(errnoName(error));
}

function withoutLocks(path: string, claim: Claim, error: number, insist: string | undefined): void {
  const why = `${path}: its file system has no locks (${errnoText(error)}), so nobody can tell who else uses it`;
  if (claim === "write")
    throw new XentoolError(
      "environment",
      `${why}${insist === undefined ? "" : `; ${insist} serves it anyway`}`,
    );
  logger.warn(why);
}
