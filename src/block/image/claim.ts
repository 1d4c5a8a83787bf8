// Our claim to an image. Two writers, or a reader beside a writer, ruin a file system, so whoever is there first
// keeps others out: each by the locks that it knows of. Ours is flock, which udev heeds, too. QEMU's are read locks
// on single bytes of the file (block/file-posix.c: RAW_LOCK_PERM_BASE and RAW_LOCK_SHARED_BASE, with the
// permissions of include/block/block-common.h): byte 100+N is held by whoever does N, byte 200+N by whoever lets
// nobody else do it. All of them end with the open file, so kill -9 leaves none.
import { XentoolError } from "../../core/errors.ts";
import { moduleLogger } from "../../core/log.ts";
import { errnoName, errnoText, shim } from "../../native/shim.ts";

const logger = moduleLogger("block");

/** `shared`: writes, and does not mind who else does. */
export type Claim = "read" | "write" | "shared";

/** The shim's. */
export interface LockCalls {
  xt_file_lock(fd: number, exclusive: number): number;
  xt_file_lock_range(fd: number, first: number, count: number): number;
  xt_file_range_locked(fd: number, first: number, count: number): number;
}

const DOES = 100;
const REFUSES = 200;
const READ = 0;
const WRITE = 1;
const WRITE_UNCHANGED = 2;
const RESIZE = 3;

interface Conduct {
  readonly does: readonly number[];
  readonly refuses: readonly number[];
}

/** A disk that a guest writes cannot be read consistently: then not even readers are let in. */
const CONDUCT: Readonly<Record<Claim, Conduct>> = {
  read: { does: [READ], refuses: [WRITE, RESIZE] },
  write: { does: [READ, WRITE], refuses: [READ, WRITE, WRITE_UNCHANGED, RESIZE] },
  shared: { does: [READ, WRITE], refuses: [] },
};

/**
 * Takes the locks that go with `claim`. False: somebody else's are in the way; then `fd` has to be closed. On a
 * file system that has none a writer is refused, because nobody would ever know of it; `insist` says how to serve
 * it still.
 */
export function takeLocks(
  fd: number,
  path: string,
  claim: Claim,
  insist: string,
  calls: LockCalls = shim,
): boolean {
  if (claim !== "shared") {
    const error = calls.xt_file_lock(fd, claim === "write" ? 1 : 0);
    if (isTaken(error)) return false;
    if (error < 0) {
      withoutLocks(path, claim, error, insist);
      return true;
    }
  }
  return takeRanges(fd, CONDUCT[claim], calls);
}

/** First ours, then a look at others': if two arrive together, both may be refused, but they never both succeed. */
function takeRanges(fd: number, { does, refuses }: Conduct, calls: LockCalls): boolean {
  const ours = [...does.map((what) => DOES + what), ...refuses.map((what) => REFUSES + what)];
  if (ours.some((byte) => isTaken(calls.xt_file_lock_range(fd, byte, 1)))) return false;
  if (refuses.length === 0) return true;
  const theirs = [...does.map((what) => REFUSES + what), ...refuses.map((what) => DOES + what)];
  return !theirs.some((byte) => calls.xt_file_range_locked(fd, byte, 1) === 1);
}

function isTaken(error: number): boolean {
  return error < 0 && ["EAGAIN", "EACCES"].includes(errnoName(error));
}

function withoutLocks(path: string, claim: Claim, error: number, insist: string): void {
  const why = `${path}: its file system has no locks (${errnoText(error)}), so nobody can tell who else uses it`;
  if (claim === "write") throw new XentoolError("environment", `${why}; ${insist} serves it anyway`);
  logger.warn(why);
}
