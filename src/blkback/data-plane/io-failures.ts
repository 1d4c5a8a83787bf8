// Failed I/O on the image is counted, and logged once per errno and minute. A failed flush stays failed. The kernel
// reports lost pages to one fdatasync only and treats them as clean from then on, so the next one would return OK
// although the data is gone. QEMU also keeps such a flush failing (block/file-posix.c, page_cache_inconsistent), but
// not with O_DIRECT. Here direct I/O makes no difference: below it there may be a cache that forgets its failures in
// the same way, such as that of a loop device.
//
// Writes fail together with the flushes, because Linux would not notice otherwise: its blkfront takes ERROR or
// EOPNOTSUPP for an empty flush to mean that flushes are not supported, returns OK to the file system, and sends no
// more of them (blkif_interrupt).
import { moduleLogger } from "../../core/log.ts";
import { errnoName, errnoText } from "../../native/shim.ts";
import { SECTOR_SIZE } from "../../protocol/blkif.ts";
import type { DiskCounters } from "./disk-counters.ts";
import type { Journal } from "./journal.ts";
import { KIND_FLUSH, KIND_READ } from "./requests.ts";
import type { SharedDisk } from "./shared-disk.ts";
import { counted } from "../../core/counted.ts";

const logger = moduleLogger("blkback");

const LOG_EVERY_MS = 60_000;
/** Indexed by kind. */
const NAMES = ["read", "write", "flush", "discard", "secure discard", "barrier"];

const LOST = "what the guest wrote since the flush before may be lost";
const CONSEQUENCE = "its writes and flushes fail until it reconnects";

interface Line {
  loggedAtMs: number;
  /** Failures since then that were not logged. */
  unlogged: number;
}

export class IoFailures {
  readonly #counters: DiskCounters;
  readonly #journals: readonly Journal[];
  readonly #shared: SharedDisk;
  /** What counters and journals have. */
  #notedErrno = 0;
  readonly #lines = new Map<number, Line>();

  /**
   * A former server of the disk may have met a failed flush, in which case the `journals` of its lanes record that.
   * It may have been killed before all of them did.
   */
  constructor(counters: DiskCounters, journals: readonly Journal[], shared: SharedDisk) {
    this.#counters = counters;
    this.#journals = journals;
    this.#shared = shared;
    counters.flushFailure(0);
    const found = journals.find((it) => it.flushErrno !== 0)?.flushErrno ?? 0;
    if (found !== 0 && shared.noteFlushFailure(found))
      logger.error(`a flush failed under the former server (${errnoName(found)}): ${LOST}; ${CONSEQUENCE}`);
    if (found !== 0) this.#note(found);
  }

  /** -errno of the flush that failed while the disk is connected, on this plane or another one, or 0. */
  get flushErrno(): number {
    const errno = this.#shared.flushErrno;
    if (errno !== this.#notedErrno) this.#note(errno);
    return errno;
  }

  /** Whether a request of this kind must fail because it would build on lost data. */
  forbids(kind: number): boolean {
    return this.flushErrno !== 0 && kind !== KIND_READ;
  }

  /** Records that a transfer or discard of `length` bytes at `start` failed with -`errno`. */
  failed(kind: number, start: number, length: number, errno: number, nowMs: number): void {
    this.#counters.ioFailure(kind, errno);
    const line = this.#lines.get(errno) ?? { loggedAtMs: -Infinity, unlogged: 0 };
    this.#lines.set(errno, line);
    if (nowMs - line.loggedAtMs < LOG_EVERY_MS) {
      line.unlogged++;
      return;
    }
    const others =
      line.unlogged === 0 ? "" : `, and ${counted(line.unlogged, "other")} since the last such line`;
    logger.error(
      `${NAMES[kind]} of ${counted(length / SECTOR_SIZE, "sector")} at sector ${start / SECTOR_SIZE} failed${others}: ` +
        errnoText(errno),
    );
    line.loggedAtMs = nowMs;
    line.unlogged = 0;
  }

  /**
   * Records that a flush, or the flush of a barrier, failed with -`errno`. It is in the journal before the guest
   * learns of it.
   */
  flushFailed(errno: number): void {
    this.#noteFlush(errno);
    logger.error(`a flush failed (${errnoText(errno)}): ${LOST}; ${CONSEQUENCE}`);
  }

  /**
   * Records that the flush after the guest let go failed with -`errno`. Only readers of the log can still learn of
   * it.
   */
  lastFlushFailed(errno: number): void {
    this.#noteFlush(errno);
    logger.error(`the flush after the guest had let go failed (${errnoText(errno)}): ${LOST}`);
  }

  #noteFlush(errno: number): void {
    this.#shared.noteFlushFailure(errno);
    this.#note(errno);
    this.#counters.ioFailure(KIND_FLUSH, errno);
  }

  #note(errno: number): void {
    this.#notedErrno = errno;
    for (const journal of this.#journals) journal.noteFlushFailure(errno);
    this.#counters.flushFailure(errno);
  }
}
