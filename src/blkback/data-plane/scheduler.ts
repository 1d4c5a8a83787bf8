// Decides what may start now. Requests start in order of arrival unless they have to wait: overlapping ones keep
// their order (unless both read), a flush waits for the writes before it, nothing passes a barrier, and memory may be
// short. The disk's limits are one more reason to wait. Requests that are adjacent on the disk become one operation.
import { MAX_MERGED_BYTES } from "../bounds.ts";
import type { DataPath } from "./data/path.ts";
import { STAGE_IO, STAGE_POST_FLUSH, STAGE_PRE_FLUSH, type OperationTable } from "./operations.ts";
import type { RateLimiter } from "../limits/rate-limiter.ts";
import {
  KIND_BARRIER,
  KIND_DISCARD,
  KIND_FLUSH,
  KIND_READ,
  KIND_SECURE_DISCARD,
  KIND_WRITE,
  STILL_HELD,
  type RequestTable,
} from "./requests.ts";
import type { SharedDisk } from "./shared-disk.ts";

/** True for operations that change the disk, as far as ordering is concerned. */
export function changesDisk(kind: number): boolean {
  return kind !== KIND_READ && kind !== KIND_FLUSH;
}

/** True for operations that flush. Of all planes of a disk, one at a time has such a one. */
function flushesDisk(kind: number): boolean {
  return kind === KIND_FLUSH || kind === KIND_BARRIER;
}

const ANY_LANE = -1;

export class Scheduler {
  /** Operations that the last pass started, to be submitted once their data is available. */
  readonly started: Uint16Array;
  startedCount = 0;
  waitingCount = 0;
  /** How many of the waiting requests the last pass kept because of the limits. They wake us when they may start. */
  heldCount = 0;
  /** Requests were put back since the last pass, and nothing else would wake us for them. */
  mustPass = false;
  /** Statistic: requests that were merged into another request's operation. */
  merged = 0;
  readonly #waiting: Uint16Array;
  readonly #requests: RequestTable;
  readonly #operations: OperationTable;
  readonly #path: DataPath;
  readonly #limiter: RateLimiter;
  readonly #shared: SharedDisk;
  /**
   * By waiting request: an earlier one that it has to wait for, and the sequence of that. Until it has been answered
   * nothing else needs to be looked at, so a pass does not compare each request with all others.
   */
  readonly #blocker: Int16Array;
  readonly #blockerSequence: Float64Array;
  #keptWrites = 0;
  /** The lane whose turn it was last. */
  #turn = 0;

  constructor(
    size: number,
    requests: RequestTable,
    operations: OperationTable,
    path: DataPath,
    limiter: RateLimiter,
    shared: SharedDisk,
  ) {
    this.started = new Uint16Array(size);
    this.#waiting = new Uint16Array(size);
    this.#blocker = new Int16Array(size).fill(-1);
    this.#blockerSequence = new Float64Array(size);
    this.#requests = requests;
    this.#operations = operations;
    this.#path = path;
    this.#limiter = limiter;
    this.#shared = shared;
  }

  add(row: number): void {
    this.#blocker[row] = -1;
    this.#waiting[this.waitingCount++] = row;
  }

  /** Puts back a request whose merged operation failed, at its place in the order, to be tried without others. */
  putBack(row: number): void {
    const { sequence, retried, next } = this.#requests;
    retried[row] = 1;
    next[row] = -1;
    this.mustPass = true;
    let at = this.waitingCount++;
    for (; at > 0 && sequence[this.#waiting[at - 1]] > sequence[row]; at--)
      this.#waiting[at] = this.#waiting[at - 1];
    this.#waiting[at] = row;
  }

  /** Ends `op`: its requests are answered, or put back. */
  end(op: number): void {
    const kind = this.#operations.kind[op];
    this.#operations.close(op, changesDisk(kind));
    if (flushesDisk(kind)) this.#shared.endFlush();
  }

  /** Starts every waiting request that may start. */
  pass(): void {
    this.startedCount = 0;
    this.mustPass = false;
    this.#limiter.beginPass();
    if (this.#limiter.isLimited && this.#requests.laneCount > 1) this.#passInTurn();
    else this.#passOver(ANY_LANE);
    this.#limiter.endPass(this.heldCount > 0);
  }

  /**
   * Queues share a limit in turn: otherwise the share of each would grow with the number of requests that it keeps
   * waiting. Each has its turn until none has anything that may start.
   */
  #passInTurn(): void {
    const { laneCount } = this.#requests;
    for (let idle = 0; idle < laneCount;) {
      this.#turn = (this.#turn + 1) % laneCount;
      idle = this.#passOver(this.#turn) ? 0 : idle + 1;
    }
  }

  /** Of the requests that the limits concern, only those of `lane`. Returns whether one of them passed. */
  #passOver(lane: number): boolean {
    const waiting = this.#waiting;
    const { kind } = this.#requests;
    let kept = 0;
    let open = -1;
    let isUsed = false;
    let stalled = this.#barrierActive();
    this.#keptWrites = 0;
    this.heldCount = 0;
    for (let i = 0; i < this.waitingCount; i++) {
      const row = waiting[i];
      // The limits come first, because they are looked up at once, and one queue may hold hundreds of requests back.
      if (!stalled && this.#mayPass(row, lane) && !this.#mustWait(row, kept)) {
        if (open >= 0 && this.#extend(open, row)) {
          isUsed = this.#passed(row) || isUsed;
          continue;
        }
        const op = this.#start(row);
        if (op >= 0) {
          isUsed = this.#passed(row) || isUsed;
          open = op;
          stalled = kind[row] === KIND_BARRIER;
          continue;
        }
        stalled = true;
      }
      if (kind[row] === KIND_BARRIER) stalled = true;
      if (changesDisk(kind[row])) this.#keptWrites++;
      waiting[kept++] = row;
    }
    this.waitingCount = kept;
    return isUsed;
  }

  /** Whether the disk's limits let `row` start. */
  #mayPass(row: number, lane: number): boolean {
    if (!this.#isLimited(row)) return true;
    const isItsTurn = lane === ANY_LANE || this.#requests.laneOf(row) === lane;
    if (isItsTurn && this.#limiter.isOpen(changesDisk(this.#requests.kind[row]))) return true;
    this.#requests.heldMs[row] = STILL_HELD;
    this.heldCount++;
    return false;
  }

  /** Counts the start of `row` towards the limits. Returns false if they do not concern it. */
  #passed(row: number): boolean {
    if (!this.#isLimited(row)) return false;
    const { kind, length, heldMs, startedAtMs } = this.#requests;
    const of = kind[row];
    const discards = of === KIND_DISCARD || of === KIND_SECURE_DISCARD;
    this.#limiter.pass(changesDisk(of), discards ? 0 : length[row]);
    if (heldMs[row] === STILL_HELD) heldMs[row] = this.#limiter.nowMs - startedAtMs[row];
    return true;
  }

  /** A flush costs nothing, so it only waits for the writes before it. What is tried again has been paid for. */
  #isLimited(row: number): boolean {
    const { kind, length, retried } = this.#requests;
    const of = kind[row];
    return of !== KIND_FLUSH && (of !== KIND_BARRIER || length[row] > 0) && retried[row] === 0;
  }

  /** `kept` is the number of earlier requests that stay waiting. */
  #mustWait(row: number, kept: number): boolean {
    const operations = this.#operations;
    const { kind, sequence } = this.#requests;
    const of = kind[row];
    if (of === KIND_BARRIER) return operations.activeCount > 0 || kept > 0 || !this.#shared.beginFlush();
    const former = this.#blocker[row];
    if (former >= 0 && sequence[former] === this.#blockerSequence[row]) return true;
    if (of === KIND_READ && operations.writing === 0 && this.#keptWrites === 0) return false;
    if (of === KIND_FLUSH && this.#keptWrites > 0) return true;
    const blocker = of === KIND_FLUSH ? this.#earlierWriteOrFlush(row) : this.#overlapping(row, kept);
    if (blocker < 0) return of === KIND_FLUSH && !this.#shared.beginFlush();
    this.#blocker[row] = blocker;
    this.#blockerSequence[row] = sequence[blocker];
    return true;
  }

  /**
   * The first request of an active operation that a flush waits for, or -1. Flushes run one at a time: of two
   * concurrent ones, the kernel would report lost data to one and OK to the other.
   */
  #earlierWriteOrFlush(row: number): number {
    const { active, activeCount, kind, first, sequence } = this.#operations;
    const mine = this.#requests.sequence[row];
    for (let i = 0; i < activeCount; i++) {
      const op = active[i];
      if (kind[op] === KIND_FLUSH || (changesDisk(kind[op]) && sequence[op] < mine)) return first[op];
    }
    return -1;
  }

  /**
   * An earlier request that `row` overlaps, unless both read; or -1. Of the waiting ones it is the last, which will be
   * waited for longest.
   */
  #overlapping(row: number, kept: number): number {
    const waiting = this.#waiting;
    for (let i = kept - 1; i >= 0; i--) if (this.#overlap(row, waiting[i])) return waiting[i];
    const { active, activeCount, kind, start, end, first } = this.#operations;
    const { next } = this.#requests;
    const reads = this.#requests.kind[row] === KIND_READ;
    const from = this.#requests.start[row];
    const to = from + this.#requests.length[row];
    for (let i = 0; i < activeCount; i++) {
      const op = active[i];
      if (start[op] >= to || from >= end[op] || (reads && kind[op] === KIND_READ)) continue;
      let other = first[op];
      while (!this.#overlap(row, other)) other = next[other];
      return other;
    }
    return -1;
  }

  #overlap(one: number, other: number): boolean {
    const { kind, start, length } = this.#requests;
    if (start[other] >= start[one] + length[one] || start[one] >= start[other] + length[other]) return false;
    return kind[one] !== KIND_READ || kind[other] !== KIND_READ;
  }

  #extend(op: number, row: number): boolean {
    const operations = this.#operations;
    const requests = this.#requests;
    const kind = requests.kind[row];
    const length = requests.length[row];
    const first = operations.first[op];
    if (kind !== operations.kind[op] || (kind !== KIND_READ && kind !== KIND_WRITE)) return false;
    if (
      requests.start[row] !== operations.end[op] ||
      requests.retried[row] !== 0 ||
      requests.retried[first] !== 0
    )
      return false;
    if (operations.end[op] + length - operations.start[op] > MAX_MERGED_BYTES) return false;
    if (!this.#path.append(op, row)) return false;
    requests.next[operations.last[op]] = row;
    operations.last[op] = row;
    operations.end[op] = operations.end[op] + length;
    this.merged++;
    return true;
  }

  /** Starts an operation for `row`; returns it, or -1 when there is no memory for it. */
  #start(row: number): number {
    const operations = this.#operations;
    const requests = this.#requests;
    const kind = requests.kind[row];
    const length = requests.length[row];
    const writes = changesDisk(kind);
    const op = operations.open(row, kind, requests.start[row], length, requests.sequence[row], writes);
    if (kind === KIND_BARRIER) operations.stage[op] = length > 0 ? STAGE_PRE_FLUSH : STAGE_POST_FLUSH;
    else operations.stage[op] = STAGE_IO;
    if (requests.segmentCount[row] !== 0 && !this.#path.reserve(op)) {
      this.end(op);
      return -1;
    }
    this.started[this.startedCount++] = op;
    return op;
  }

  #barrierActive(): boolean {
    const { activeCount, active, kind } = this.#operations;
    return activeCount === 1 && kind[active[0]] === KIND_BARRIER;
  }
}
