// Holds a disk's requests back when its limits say so. Each limit is a token bucket, kept as one number: the time
// until which what has passed is paid for. Tokens come with time, so that time is all there is to compute. A request
// passes as soon as those before it are paid for, so none is too large. Whoever is refused is woken when there are
// tokens again, and needs no processor until then.
import { Timer } from "../native/reactor.ts";
import { UNLIMITED_DISK, type DiskRates, type Rate } from "./rates.ts";

/** A bucket without a burst of its own holds what comes in this time. */
const DEFAULT_BURST_MS = 100;
/** At most one wake-up in this time. Every bucket holds what comes meanwhile, even if the wake-up is late. */
const WAKE_EVERY_MS = 1;
const LEAST_BURST_MS = 4;

/** The part of a reactor that a limiter needs. */
export interface Clock {
  /** When the last wait ended. */
  readonly nowMs: number;
  setTimer(timer: Timer, ms: number): void;
}

class Bucket {
  /** 1 for a bucket of requests, which counts them; 0 for one of bytes. */
  readonly #perRequest: number;
  readonly #perByte: number;
  /** What passes may be paid for so much later. */
  readonly #creditMs: number;
  #paidUntilMs: number;

  /** Begins empty, so that neither a guest that reconnects nor one whose limit changes gains by it. */
  constructor(countsBytes: boolean, perSecond: number, burst: number, nowMs: number) {
    const msEach = 1000 / perSecond;
    this.#perRequest = countsBytes ? 0 : msEach;
    this.#perByte = countsBytes ? msEach : 0;
    const creditMs = burst === 0 ? DEFAULT_BURST_MS : burst * msEach - this.#perRequest;
    this.#creditMs = Math.max(LEAST_BURST_MS, creditMs);
    this.#paidUntilMs = nowMs + this.#creditMs;
  }

  /** When the next request may pass. */
  get opensAtMs(): number {
    return this.#paidUntilMs - this.#creditMs;
  }

  take(bytes: number, nowMs: number): void {
    this.#paidUntilMs = Math.max(this.#paidUntilMs, nowMs) + this.#perRequest + bytes * this.#perByte;
  }
}

export class RateLimiter {
  /** Indexed by direction. */
  #reads: readonly Bucket[] = [];
  #writes: readonly Bucket[] = [];
  readonly #clock: Clock;
  /** Ends the reactor's wait, after which the scheduler asks again. */
  readonly #timer = new Timer(() => {});

  constructor(clock: Clock, rates: DiskRates = UNLIMITED_DISK) {
    this.#clock = clock;
    this.change(rates);
  }

  get nowMs(): number {
    return this.#clock.nowMs;
  }

  /** Takes effect at once, for requests that are being held back as well. */
  change(rates: DiskRates): void {
    const reads: Bucket[] = [];
    const writes: Bucket[] = [];
    const add = (countsBytes: boolean, { total, read, write, burst }: Rate): void => {
      const bucket = (rate: number): Bucket => new Bucket(countsBytes, rate, burst, this.#clock.nowMs);
      if (read !== 0) reads.push(bucket(read));
      if (write !== 0) writes.push(bucket(write));
      if (total === 0) return;
      const shared = bucket(total);
      reads.push(shared);
      writes.push(shared);
    };
    add(false, rates.iops);
    add(true, rates.bandwidth);
    this.#reads = reads;
    this.#writes = writes;
  }

  /** Whether there is any limit. */
  get isLimited(): boolean {
    return this.#reads.length + this.#writes.length > 0;
  }

  /** Whether a request in this direction may pass now. If not, the reactor's wait ends when it may. */
  isOpen(writes: boolean): boolean {
    const buckets = writes ? this.#writes : this.#reads;
    if (buckets.length === 0) return true;
    const { nowMs } = this.#clock;
    let opensAtMs = -Infinity;
    for (let i = 0; i < buckets.length; i++) opensAtMs = Math.max(opensAtMs, buckets[i].opensAtMs);
    if (opensAtMs <= nowMs) return true;
    const dueMs = Math.max(opensAtMs, nowMs + WAKE_EVERY_MS);
    if (dueMs < this.#timer.dueMs) this.#clock.setTimer(this.#timer, dueMs - nowMs);
    return false;
  }

  /** Counts a request that passes. `isOpen` has allowed it. */
  pass(writes: boolean, bytes: number): void {
    const buckets = writes ? this.#writes : this.#reads;
    for (let i = 0; i < buckets.length; i++) buckets[i].take(bytes, this.#clock.nowMs);
  }
}
