// Counts in a disk's statistics what belongs to none of a plane's lanes alone: what waits, what was merged, what the
// image failed.
import {
  KIND_BARRIER,
  KIND_DISCARD,
  KIND_FLUSH,
  KIND_READ,
  KIND_SECURE_DISCARD,
  KIND_WRITE,
} from "./requests.ts";
import { STAT } from "../stats/stats.ts";

/** Indexed by kind. */
const ERRORS: number[] = [];
ERRORS[KIND_READ] = STAT.readErrors;
ERRORS[KIND_WRITE] = ERRORS[KIND_BARRIER] = STAT.writeErrors;
ERRORS[KIND_FLUSH] = STAT.flushErrors;
ERRORS[KIND_DISCARD] = ERRORS[KIND_SECURE_DISCARD] = STAT.discardErrors;

export class DiskCounters {
  readonly #counters: Float64Array;

  /** Counts in `counters`, where the plane's first lane counts, too. */
  constructor(counters: Float64Array, laneCount: number) {
    this.#counters = counters;
    counters[STAT.laneCount] = laneCount;
  }

  /** Shows how many requests have not started yet, and how many of them the limits hold back. */
  waiting(count: number, held: number): void {
    this.#counters[STAT.waiting] = count;
    this.#counters[STAT.held] = held;
  }

  /** Takes the running totals after a push of answers. */
  pushed(copiedSegments: number, merged: number, nowMs: number): void {
    this.#counters[STAT.copiedSegments] = copiedSegments;
    this.#counters[STAT.merged] = merged;
    this.#counters[STAT.lastAnswerAtMs] = performance.timeOrigin + nowMs;
  }

  /** Counts an operation of this kind that the image failed with -`errno`. */
  ioFailure(kind: number, errno: number): void {
    this.#counters[ERRORS[kind]]++;
    this.#counters[STAT.ioErrno] = -errno;
  }

  /** Records that a flush failed with -`errno` and stays failed; 0 if none has. */
  flushFailure(errno: number): void {
    this.#counters[STAT.flushErrno] = -errno;
  }
}
