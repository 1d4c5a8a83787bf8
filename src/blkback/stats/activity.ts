// What a disk did between two looks at its statistics: rates, and the latencies of just that time.
import { quantileUs, type DeviceStats } from "./stats.ts";

/** Per second, unless the name says otherwise. */
export interface Activity {
  readonly reads: number;
  readonly writes: number;
  readonly flushes: number;
  readonly discards: number;
  readonly readBytes: number;
  readonly writeBytes: number;
  readonly errors: number;
  /** Of all requests that were carried out; 0 if there were none. */
  readonly medianUs: number;
  readonly p99Us: number;
  /** How long the time was that this is about. */
  readonly seconds: number;
}

/** Distinguishes what a disk's servers count, one after another. */
export function statsKey({ domid, devid, startedAtMs }: DeviceStats): string {
  return `${domid}/${devid}/${startedAtMs}`;
}

/** What happened since `before`, which is of the same server; undefined: since that server started. */
export function activityBetween(
  before: DeviceStats | undefined,
  now: DeviceStats,
  elapsedMs: number,
): Activity {
  const seconds = Math.max(elapsedMs, 1) / 1000;
  const rate = (of: (stats: DeviceStats) => number): number =>
    Math.max(0, of(now) - (before === undefined ? 0 : of(before))) / seconds;
  const latencies = bucketsBetween(before, now);
  return {
    reads: rate((it) => it.reads),
    writes: rate((it) => it.writes + it.barriers),
    flushes: rate((it) => it.flushes),
    discards: rate((it) => it.discards),
    readBytes: rate((it) => it.readBytes),
    writeBytes: rate((it) => it.writeBytes),
    errors: rate((it) => it.errors),
    medianUs: quantileUs(latencies, 0.5),
    p99Us: quantileUs(latencies, 0.99),
    seconds,
  };
}

function bucketsBetween(before: DeviceStats | undefined, now: DeviceStats): number[] {
  const sum: number[] = [];
  const add = (stats: DeviceStats, sign: 1 | -1): void => {
    for (const { buckets } of [
      stats.readLatency,
      stats.writeLatency,
      stats.flushLatency,
      stats.discardLatency,
    ])
      for (const [index, count] of buckets.entries()) sum[index] = (sum[index] ?? 0) + sign * count;
  };
  add(now, 1);
  if (before !== undefined) add(before, -1);
  return sum.map((count) => Math.max(0, count));
}
