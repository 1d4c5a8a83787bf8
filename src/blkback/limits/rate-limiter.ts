// Holds a disk's requests back when its limits say so. Each limit is a token bucket, kept as one number: the time
// until which what has passed is paid for. Tokens come with time, so that time is all there is to compute. A request
// passes as soon as those before it are paid for, so none is too large. Whoever is refused is woken when there are
// tokens again, and needs no processor until then.
//
// The planes of a disk share its buckets. What each has passed is a number of its own, which only it adds to, and a
// bucket's time is the sum of these and of a base, which moves on only while the bucket is full. So two planes that
// pass something at once count both. Of those that hold something back, the one that has had least goes first.
import { Timer } from "../../native/reactor.ts";
import { ratesAsNumbers, UNLIMITED_DISK, type DiskRates, type Rate } from "./rates.ts";
import { SharedDisk } from "../data-plane/shared-disk.ts";

/** A bucket without a burst of its own holds what comes in this time. */
const DEFAULT_BURST_MS = 100;
/** At most one wake-up in this time. Every bucket holds what comes meanwhile, even if the wake-up is late. */
const WAKE_EVERY_MS = 1;
const LEAST_BURST_MS = 4;
/** How long a plane leaves tokens to one that has had less; that one may be busy. The smallest bucket holds them. */
const COURTESY_MS = 2;

/** The part of a reactor that a limiter needs. */
export interface Clock {
  /** When the last wait ended. */
  readonly nowMs: number;
  /** What makes `nowMs` a time that all threads have in common. */
  readonly originMs: number;
  setTimer(timer: Timer, ms: number): void;
}

/** Where a bucket has its base; what the planes have passed follows. */
const BASE = 0;

class Bucket {
  /** 1 for a bucket of requests, which counts them; 0 for one of bytes. */
  readonly #perRequest: number;
  readonly #perByte: number;
  /** What passes may be paid for so much later. */
  readonly #creditMs: number;
  /** The base, and what each plane has passed: together the time until which all is paid for. */
  readonly #memory: Float64Array;
  readonly #mine: number;

  /**
   * Begins empty, so that neither a guest that reconnects nor one whose limit changes gains by it. With `owes`, what
   * has passed by this limit is still to be paid for. `mine` is the plane's place in `memory`.
   */
  constructor(
    memory: Float64Array,
    mine: number,
    countsBytes: boolean,
    perSecond: number,
    burst: number,
    timeMs: number,
    owes: boolean,
  ) {
    const msEach = 1000 / perSecond;
    this.#perRequest = countsBytes ? 0 : msEach;
    this.#perByte = countsBytes ? msEach : 0;
    const creditMs = burst === 0 ? DEFAULT_BURST_MS : burst * msEach - this.#perRequest;
    this.#creditMs = Math.max(LEAST_BURST_MS, creditMs);
    this.#memory = memory;
    this.#mine = mine;
    const addedMs = timeMs + this.#creditMs - this.#paidUntilMs;
    memory[BASE] += owes ? Math.max(0, addedMs) : addedMs;
  }

  /** When the next request may pass. */
  get opensAtMs(): number {
    return this.#paidUntilMs - this.#creditMs;
  }

  /** Returns the time that it pays with. */
  take(bytes: number, timeMs: number): number {
    const memory = this.#memory;
    const unusedMs = timeMs - this.#paidUntilMs;
    if (unusedMs > 0) memory[BASE] += unusedMs;
    const cost = this.#perRequest + bytes * this.#perByte;
    memory[this.#mine] += cost;
    return cost;
  }

  get #paidUntilMs(): number {
    const memory = this.#memory;
    let sum = 0;
    for (let i = 0; i < memory.length; i++) sum += memory[i];
    return sum;
  }
}

export class RateLimiter {
  /** Indexed by direction. */
  #reads: readonly Bucket[] = [];
  #writes: readonly Bucket[] = [];
  #numbers: readonly number[] = ratesAsNumbers(UNLIMITED_DISK);
  readonly #clock: Clock;
  readonly #shared: SharedDisk;
  /** How much longer tokens are left to others. */
  #courtesyMs = 0;
  /** Ends the reactor's wait, after which the scheduler asks again. */
  readonly #timer = new Timer(() => {});

  constructor(clock: Clock, rates: DiskRates = UNLIMITED_DISK, shared: SharedDisk = SharedDisk.alone()) {
    this.#clock = clock;
    this.#shared = shared;
    this.#change(rates, true);
  }

  get nowMs(): number {
    return this.#clock.nowMs;
  }

  /** Takes effect at once, for requests that are being held back as well. */
  change(rates: DiskRates): void {
    this.#change(rates, false);
  }

  #change(rates: DiskRates, owes: boolean): void {
    const numbers = ratesAsNumbers(rates);
    if (numbers.every((it, index) => it === this.#numbers[index])) return;
    this.#numbers = numbers;
    const reads: Bucket[] = [];
    const writes: Bucket[] = [];
    const add = (first: number, countsBytes: boolean, { total, read, write, burst }: Rate): void => {
      const bucket = (index: number, rate: number): Bucket => {
        const memory = this.#shared.bucket(first + index);
        return new Bucket(memory, 1 + this.#shared.seat, countsBytes, rate, burst, this.#timeMs, owes);
      };
      if (read !== 0) reads.push(bucket(1, read));
      if (write !== 0) writes.push(bucket(2, write));
      if (total === 0) return;
      const both = bucket(0, total);
      reads.push(both);
      writes.push(both);
    };
    add(0, false, rates.iops);
    add(3, true, rates.bandwidth);
    this.#reads = reads;
    this.#writes = writes;
    if (!this.isLimited) this.#shared.shares.waitNoMore();
  }

  /** Whether there is any limit. */
  get isLimited(): boolean {
    return this.#reads.length + this.#writes.length > 0;
  }

  /** Called before the scheduler looks at what may pass. */
  beginPass(): void {
    if (this.isLimited) this.#courtesyMs = this.#shared.shares.isFirst ? 0 : COURTESY_MS;
  }

  /** Called afterwards. `holds`: something is held back. */
  endPass(holds: boolean): void {
    if (!this.isLimited) return;
    if (holds) this.#shared.shares.wait();
    else this.#shared.shares.waitNoMore();
  }

  /** Whether a request in this direction may pass now. If not, the reactor's wait ends when it may. */
  isOpen(writes: boolean): boolean {
    const buckets = writes ? this.#writes : this.#reads;
    if (buckets.length === 0) return true;
    const timeMs = this.#timeMs;
    let opensAtMs = -Infinity;
    for (let i = 0; i < buckets.length; i++) opensAtMs = Math.max(opensAtMs, buckets[i].opensAtMs);
    opensAtMs += this.#courtesyMs;
    if (opensAtMs <= timeMs) return true;
    const waitMs = Math.max(opensAtMs - timeMs, WAKE_EVERY_MS);
    if (this.#clock.nowMs + waitMs < this.#timer.dueMs) this.#clock.setTimer(this.#timer, waitMs);
    return false;
  }

  /** Counts a request that passes. `isOpen` has allowed it. */
  pass(writes: boolean, bytes: number): void {
    const buckets = writes ? this.#writes : this.#reads;
    for (let i = 0; i < buckets.length; i++) this.#shared.shares.took(buckets[i].take(bytes, this.#timeMs));
  }

  get #timeMs(): number {
    return this.#clock.nowMs + this.#clock.originMs;
  }
}
