// What becomes known of I/O on the image that failed: it is counted, and logged once per errno and minute. And what
// follows from a flush that failed: it stays failed. The kernel reports lost pages to one fdatasync only and calls
// them clean from then on, so the next one would say OK though the data is gone. QEMU keeps such a flush failing, too
// (block/file-posix.c, page_cache_inconsistent), but not with O_DIRECT. Here direct I/O makes no difference: below it
// may be a cache that forgets its failures likewise, such as that of a loop device.
//
// Writes fail with the flushes, because Linux would not notice otherwise: its blkfront takes ERROR or EOPNOTSUPP for
// an empty flush as "has none", tells the file system OK, and sends no more of them (blkif_interrupt).
import { moduleLogger } from "../core/log.ts";
import { errnoName, errnoText } from "../native/shim.ts";
import { SECTOR_SIZE } from "../protocol/blkif.ts";
import type { Journal } from "./journal.ts";
import type { QueueCounters } from "./queue-counters.ts";
import { KIND_FLUSH, KIND_READ } from "./requests.ts";

const logger = moduleLogger("blkback");

const LOG_EVERY_MS = 60_000;
/** By kind. */
const NAMES = ["read", "write", "flush", "discard", "secure discard", "barrier"];

const LOST = "what the guest wrote since the flush before may be lost";
const CONSEQUENCE = "its writes and flushes fail until it reconnects";

interface Line {
  loggedAtMs: number;
  /** Failures that had no line of their own since. */
  unlogged: number;
}

export class IoFailures {
  /** -errno of the flush that failed on this ring, or 0. */
  flushErrno: number;
  readonly #counters: QueueCounters;
  readonly #journal: Journal | undefined;
  readonly #lines = new Map<number, Line>();

  /** A former server of the ring may have met a failed flush: then its `journal` says so. */
  constructor(counters: QueueCounters, journal: Journal | undefined) {
    this.#counters = counters;
    this.#journal = journal;
    this.flushErrno = journal?.flushErrno ?? 0;
    counters.flushFailure(this.flushErrno);
    if (this.flushErrno !== 0)
      logger.error(
        `a flush failed under the former server (${errnoName(this.flushErrno)}): ${LOST}; ${CONSEQUENCE}`,
      );
  }

  /** Whether a request of this kind has to fail, because it would build on data that is lost. */
  forbids(kind: number): boolean {
    return this.flushErrno !== 0 && kind !== KIND_READ;
  }

  /** A transfer or discard of `length` bytes at `start` failed with -`errno`. */
  failed(kind: number, start: number, length: number, errno: number, nowMs: number): void {
    this.#counters.ioFailure(kind, errno);
    const line = this.#lines.get(errno) ?? { loggedAtMs: -Infinity, unlogged: 0 };
    this.#lines.set(errno, line);
    if (nowMs - line.loggedAtMs < LOG_EVERY_MS) {
      line.unlogged++;
      return;
    }
    const others =
      line.unlogged === 0 ? "" : `, and ${count(line.unlogged, "other")} since the last such line`;
    logger.error(
      `${NAMES[kind]} of ${count(length / SECTOR_SIZE, "sector")} at sector ${start / SECTOR_SIZE} failed${others}: ` +
        errnoText(errno),
    );
    line.loggedAtMs = nowMs;
    line.unlogged = 0;
  }

  /** A flush, or that of a barrier, failed with -`errno`. It is in the journal before the guest hears of it. */
  flushFailed(errno: number): void {
    this.#noteFlush(errno);
    logger.error(`a flush failed (${errnoText(errno)}): ${LOST}; ${CONSEQUENCE}`);
  }

  /** The flush after the guest had let go failed with -`errno`: nobody is left to be told but those who read logs. */
  lastFlushFailed(errno: number): void {
    this.#noteFlush(errno);
    logger.error(`the flush after the guest had let go failed (${errnoText(errno)}): ${LOST}`);
  }

  #noteFlush(errno: number): void {
    this.flushErrno = errno;
    this.#journal?.noteFlushFailure(errno);
    this.#counters.ioFailure(KIND_FLUSH, errno);
    this.#counters.flushFailure(errno);
  }
}

function count(number: number, noun: string): string {
  return `${number} ${noun}${number === 1 ? "" : "s"}`;
}
