// Counts a lane's activity in its part of the disk's statistics. Plain additions to doubles, a few per request.
import { NOT_REFUSED } from "./refusals.ts";
import {
  KIND_BARRIER,
  KIND_DISCARD,
  KIND_FLUSH,
  KIND_READ,
  KIND_SECURE_DISCARD,
  KIND_WRITE,
  type RequestTable,
} from "./requests.ts";
import {
  BATCH_SIZES,
  DISCARD_LATENCY,
  FLUSH_LATENCY,
  latencyBucket,
  READ_LATENCY,
  refusalCounter,
  RING_UTILISATION,
  SEGMENTS_PER_REQUEST,
  STAT,
  WRITE_LATENCY,
} from "../stats/stats.ts";

/** Indexed by kind: the counter, the byte counter (-1: none) and the latency histogram. */
const COUNT = [STAT.reads, STAT.writes, STAT.flushes, STAT.discards, STAT.discards, STAT.barriers];
const BYTES = [STAT.readBytes, STAT.writeBytes, -1, STAT.discardBytes, STAT.discardBytes, STAT.writeBytes];
const LATENCY = [READ_LATENCY, WRITE_LATENCY, FLUSH_LATENCY, DISCARD_LATENCY, DISCARD_LATENCY, WRITE_LATENCY];
/** The time that requests took in all, for averages. */
const TIMES = [STAT.readMs, STAT.writeMs, STAT.flushMs, STAT.discardMs, STAT.discardMs, STAT.writeMs];
/** A request that takes longer, not counting how long the limits held it back, has stalled. */
const STALL_MS = 1000;
const KINDS = [KIND_READ, KIND_WRITE, KIND_FLUSH, KIND_DISCARD, KIND_SECURE_DISCARD, KIND_BARRIER];
if (KINDS.some((kind, index) => kind !== index))
  throw new Error("the tables above follow the order of the kinds");

export class LaneCounters {
  readonly #counters: Float64Array;

  constructor(counters: Float64Array, ringSlots: number) {
    this.#counters = counters;
    counters[STAT.ringSlots] = ringSlots;
  }

  /** Requests answered so far. */
  get answered(): number {
    return this.#counters[STAT.requests];
  }

  /** Counts a fetch that found `count` requests on the ring. */
  fetched(count: number): void {
    this.#counters[RING_UTILISATION + count]++;
    this.#counters[STAT.inFlight] += count;
  }

  indirect(count: number): void {
    this.#counters[STAT.indirect] += count;
  }

  /** Counts the answer to request `row`, by the reason for its refusal, or by its kind when it was carried out. */
  answer(requests: RequestTable, row: number, reason: number, nowMs: number): void {
    const counters = this.#counters;
    const kind = requests.kind[row];
    const tookMs = nowMs - requests.startedAtMs[row];
    const heldMs = requests.heldMs[row];
    counters[STAT.requests]++;
    if (heldMs > 0) {
      counters[STAT.throttled]++;
      counters[STAT.throttledMs] += heldMs;
    }
    if (tookMs - heldMs >= STALL_MS) counters[STAT.stalls]++;
    if (reason !== NOT_REFUSED) {
      counters[STAT.errors]++;
      counters[refusalCounter(reason)]++;
      return;
    }
    counters[STAT.ok]++;
    counters[COUNT[kind]]++;
    const bytes = BYTES[kind];
    if (bytes >= 0) counters[bytes] += requests.length[row];
    counters[SEGMENTS_PER_REQUEST + requests.segmentCount[row]]++;
    counters[LATENCY[kind] + latencyBucket(tookMs)]++;
    counters[TIMES[kind]] += tookMs;
  }

  /** Counts a push of `count` responses. */
  pushed(count: number, notified: boolean): void {
    const counters = this.#counters;
    counters[STAT.inFlight] -= count;
    counters[STAT.batches]++;
    counters[BATCH_SIZES + count]++;
    if (notified) counters[STAT.notifies]++;
  }
}
