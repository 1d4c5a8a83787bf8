// What the planes of one disk have in common, in memory that they share: whether all are ready, whether a flush has
// failed, which one may flush, and what the disk's limits have let pass. Each plane has a seat, and an eventfd by
// which the others wake it. The plane of a disk that has no other shares with nobody.
import { closeSync } from "node:fs";
import { check, shim } from "../../native/shim.ts";
import { Shares } from "../limits/shares.ts";
import { TURN_WORDS, Turns } from "./turns.ts";

/** Structured-cloneable. */
export interface SharedDiskHandle {
  readonly memory: SharedArrayBuffer;
  /** By seat; none if there is only one plane. */
  readonly wakeFds: readonly number[];
}

// Words of the memory.
const READY = 0;
const FLUSH_ERRNO = 1;
const FLUSHING = 2;
const FLUSH_TURNS = 3;
const WORDS = 6;
// What follows, in doubles.
const SHARES_AT = (WORDS * 4) / 8;
/** For each quantity one in all, one for reads and one for writes. */
const BUCKETS = 6;

function bucketsAt(planes: number): number {
  return SHARES_AT + planes;
}

function bucketDoubles(planes: number): number {
  return 1 + planes;
}

/**
 * Makes what `planes` planes share, at least one. What the disk's limits have let pass and is not paid for yet is taken
 * over from the disk's `former` planes. Throws `io` when no descriptor is left.
 */
export function createSharedDisk(planes: number, former?: SharedDiskHandle): SharedDiskHandle {
  const wakeFds: number[] = [];
  try {
    while (planes > 1 && wakeFds.length < planes) wakeFds.push(check(shim.xt_eventfd(), "make an eventfd"));
  } catch (error) {
    for (const fd of wakeFds) closeSync(fd);
    throw error;
  }
  const memory = sharedMemory(planes);
  for (let index = 0; former !== undefined && index < BUCKETS; index++)
    bucketIn(memory, planes, index)[0] = sumOf(bucketIn(former.memory, planesOf(former), index));
  return { memory, wakeFds };
}

function planesOf({ wakeFds }: SharedDiskHandle): number {
  return Math.max(1, wakeFds.length);
}

function bucketIn(memory: SharedArrayBuffer, planes: number, index: number): Float64Array {
  const doubles = bucketDoubles(planes);
  return new Float64Array(memory, (bucketsAt(planes) + index * doubles) * 8, doubles);
}

function sumOf(doubles: Float64Array): number {
  return doubles.reduce((sum, it) => sum + it, 0);
}

/** When no plane is left: one that is woken must not find another file under its number. */
export function closeSharedDisk({ wakeFds }: SharedDiskHandle): void {
  for (const fd of wakeFds) closeSync(fd);
}

function sharedMemory(planes: number): SharedArrayBuffer {
  const memory = new SharedArrayBuffer((bucketsAt(planes) + BUCKETS * bucketDoubles(planes)) * 8);
  new Float64Array(memory, SHARES_AT * 8, planes).fill(Infinity);
  return memory;
}

export class SharedDisk {
  /** Becomes readable when another plane has news; none if there is no other. */
  readonly wakeFd: number | undefined;
  /** Of its limits. */
  readonly shares: Shares;
  readonly seat: number;
  readonly #planes: number;
  readonly #words: Int32Array;
  readonly #memory: SharedArrayBuffer;
  readonly #wakeFds: readonly number[];
  readonly #flushTurns: Turns;

  /** Attaches the plane at `seat`. */
  constructor(handle: SharedDiskHandle, seat: number) {
    const { memory, wakeFds } = handle;
    const planes = planesOf(handle);
    this.#memory = memory;
    this.#words = new Int32Array(memory, 0, WORDS);
    this.#wakeFds = wakeFds;
    this.#planes = planes;
    this.seat = seat;
    this.wakeFd = wakeFds[seat];
    this.#flushTurns = new Turns(this.#words.subarray(FLUSH_TURNS, FLUSH_TURNS + TURN_WORDS), seat, planes);
    this.shares = new Shares(new Float64Array(memory, SHARES_AT * 8, planes), seat);
  }

  /** For a plane that has its disk for itself. */
  static alone(): SharedDisk {
    return new SharedDisk({ memory: sharedMemory(1), wakeFds: [] }, 0);
  }

  /** Reports that this plane has opened all that it needs. None serves before all have. */
  ready(): void {
    if (Atomics.add(this.#words, READY, 1) + 1 === this.#planes) this.#wake(-1);
  }

  get areAllReady(): boolean {
    return Atomics.load(this.#words, READY) >= this.#planes;
  }

  /** Called when `wakeFd` is readable. */
  drain(): void {
    if (this.wakeFd !== undefined) shim.xt_eventfd_drain(this.wakeFd);
  }

  /** -errno of the flush that failed, on whichever plane; 0 if none has. */
  get flushErrno(): number {
    return Atomics.load(this.#words, FLUSH_ERRNO);
  }

  /** A flush failed with -`errno`. Returns false if one had failed before. */
  noteFlushFailure(errno: number): boolean {
    return Atomics.compareExchange(this.#words, FLUSH_ERRNO, 0, errno) === 0;
  }

  /**
   * Whether this plane may flush now; then it calls `endFlush`. Otherwise it is woken when it may. Flushes run one at
   * a time: of two concurrent ones, the kernel would report lost data to one and OK to the other. A plane that may
   * flush knows of every flush that has failed.
   */
  beginFlush(): boolean {
    // Noted before we try: whoever ends a flush after that sees us wait.
    this.#flushTurns.wait();
    if (!this.#flushTurns.isMine || Atomics.compareExchange(this.#words, FLUSHING, 0, 1) !== 0) return false;
    this.#flushTurns.took();
    this.#flushTurns.waitNoMore();
    return true;
  }

  endFlush(): void {
    Atomics.store(this.#words, FLUSHING, 0);
    this.#wake(this.#flushTurns.waiting);
  }

  /**
   * The doubles of bucket `index`: one that any plane may set, and then one for each plane, which only that one adds
   * to. Their sum is what they stand for, so that nobody has to wait for a lock.
   */
  bucket(index: number): Float64Array {
    return bucketIn(this.#memory, this.#planes, index);
  }

  /** Wakes the planes whose seats are bits of `seats`. */
  #wake(seats: number): void {
    this.#wakeFds.forEach((fd, seat) => {
      if (seat !== this.seat && (seats & (1 << seat)) !== 0) shim.xt_eventfd_signal(fd);
    });
  }
}
