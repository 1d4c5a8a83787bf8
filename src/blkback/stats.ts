// A device's statistics: counters that the data plane adds to and anybody may read at any time. They are kept in a
// file so that `blkback stats` in another process can show them, even while the data plane is busy.
import { closeSync, mkdirSync, openSync, readdirSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { XentoolError } from "../core/errors.ts";
import { mapFile, type Mapping } from "../native/memory.ts";
import { errnoName } from "../native/shim.ts";
import type { PlatformDescriptor } from "../platform/platform.ts";
import { MAX_INDIRECT_SEGMENTS } from "../protocol/blkif.ts";
import { xenbusStateName, type XenbusState } from "../protocol/xenbus.ts";
import { MAX_RING_SLOTS } from "./bounds.ts";
import { RATE_NUMBERS, ratesAsNumbers, ratesFromNumbers, type DiskRates } from "./rates.ts";
import { REFUSALS } from "./refusals.ts";

const MAGIC = 0x584e_5442;
const VERSION = 3;
const LATENCY_BUCKETS = 32;

/** Positions of the counters. Doubles, so that bytes never overflow. */
const FIELDS = [
  "magic",
  "version",
  "pid",
  "startedAtMs",
  "domid",
  "devid",
  "ringSlots",
  "requests",
  "ok",
  "errors",
  "reads",
  "writes",
  "flushes",
  "barriers",
  "discards",
  "indirect",
  "merged",
  "readBytes",
  "writeBytes",
  "discardBytes",
  "batches",
  "notifies",
  "wakeups",
  "spuriousWakeups",
  "copiedSegments",
  "readErrors",
  "writeErrors",
  "flushErrors",
  "discardErrors",
  "ioErrno",
  "flushErrno",
  "state",
  "connections",
  "inFlight",
  "waiting",
  "held",
  "throttled",
  "throttledMs",
  "stalls",
  "lastAnswerAtMs",
  "readMs",
  "writeMs",
  "flushMs",
  "discardMs",
] as const;
export type StatField = (typeof FIELDS)[number];

export const STAT = Object.fromEntries(FIELDS.map((name, index) => [name, index])) as Readonly<
  Record<StatField, number>
>;

/** The disk's limits, as `ratesAsNumbers` orders them. */
const LIMITS = 56;
/** The counters of refusals, in the order of their codes. There is room, so that new ones move nothing else. */
const REFUSED = 64;
const REFUSED_ROOM = 32;
/** Histograms, one after another after the counters. */
export const RING_UTILISATION = REFUSED + REFUSED_ROOM;
export const BATCH_SIZES = RING_UTILISATION + MAX_RING_SLOTS + 1;
export const SEGMENTS_PER_REQUEST = BATCH_SIZES + MAX_RING_SLOTS + 1;
export const READ_LATENCY = SEGMENTS_PER_REQUEST + MAX_INDIRECT_SEGMENTS + 1;
export const WRITE_LATENCY = READ_LATENCY + LATENCY_BUCKETS;
export const FLUSH_LATENCY = WRITE_LATENCY + LATENCY_BUCKETS;
export const DISCARD_LATENCY = FLUSH_LATENCY + LATENCY_BUCKETS;
const DOUBLES = DISCARD_LATENCY + LATENCY_BUCKETS;
const FILE_BYTES = Math.ceil((DOUBLES * 8) / 4096) * 4096;

if (FIELDS.length > LIMITS || LIMITS + RATE_NUMBERS > REFUSED || REFUSALS.length > REFUSED_ROOM)
  throw new Error("the counters reach into what follows them in the page: make room, and raise VERSION");

/** Position of the counter of the reason with this code, which is at least 1. */
export function refusalCounter(reason: number): number {
  return REFUSED + reason - 1;
}

/** Bucket of a latency: 0 below 1 µs, n for 2^(n-1) to 2^n µs. */
export function latencyBucket(ms: number): number {
  const us = ms * 1000;
  return us < 1 ? 0 : Math.min(LATENCY_BUCKETS - 1, 32 - Math.clz32(us));
}

export class StatsPage {
  readonly path: string;
  readonly counters: Float64Array;
  readonly #mapping: Mapping;

  private constructor(path: string, mapping: Mapping) {
    this.path = path;
    this.#mapping = mapping;
    this.counters = new Float64Array(mapping.bytes.buffer);
  }

  /** Creates the statistics file of a device served by this process. Throws `environment`, leaving no file behind. */
  static create(runDir: string, domid: number, devid: number): StatsPage {
    const path = statsPath(runDir, domid, devid);
    let page: StatsPage;
    try {
      mkdirSync(runDir, { recursive: true, mode: 0o755 });
      page = StatsPage.#map(path, "w+", true);
    } catch (error) {
      rmSync(path, { force: true });
      throw new XentoolError("environment", `cannot make ${path} for statistics`, { path }, error);
    }
    page.counters.fill(0);
    page.counters[STAT.pid] = process.pid;
    page.counters[STAT.startedAtMs] = Date.now();
    page.counters[STAT.domid] = domid;
    page.counters[STAT.devid] = devid;
    page.counters[STAT.version] = VERSION;
    page.counters[STAT.magic] = MAGIC;
    return page;
  }

  /** Opens a file created by `create` to count in it (the data plane). */
  static attach(path: string): StatsPage {
    return StatsPage.#map(path, "r+", true);
  }

  set state(state: XenbusState) {
    this.counters[STAT.state] = state;
  }

  set limits(limits: DiskRates) {
    this.counters.set(ratesAsNumbers(limits), LIMITS);
  }

  /** A guest connects to a fresh ring, or a former server's: nothing is known to be in flight yet. */
  connecting(): void {
    this.counters[STAT.connections]++;
    for (const gauge of [STAT.inFlight, STAT.waiting, STAT.held]) this.counters[gauge] = 0;
  }

  /** Unmaps; the file stays. */
  close(): void {
    this.#mapping.close();
  }

  /** Unmaps and deletes the file. */
  remove(): void {
    this.close();
    rmSync(this.path, { force: true });
  }

  static #map(path: string, flags: string, writable: boolean): StatsPage {
    const fd = openSync(path, flags, 0o644);
    try {
      // Written out rather than left as a hole: on a full file system, a store to the mapping would kill the process.
      if (flags === "w+") writeFileSync(fd, new Uint8Array(FILE_BYTES));
      return new StatsPage(path, mapFile(fd, FILE_BYTES, writable));
    } finally {
      closeSync(fd);
    }
  }
}

/** Directory where a process that serves devices keeps its statistics: with the simulated host, or in /run. */
export function statsDir(platform: PlatformDescriptor): string {
  return platform.name === "sim" ? join(platform.dir, "blkback") : "/run/xentool/blkback";
}

/** The statistics file of a device. */
export function statsPath(runDir: string, domid: number, devid: number): string {
  return join(runDir, `${domid}-${devid}.stats`);
}

export interface Latency {
  /** Count per bucket: below 1 µs, then up to 2, 4, 8… µs. */
  readonly buckets: readonly number[];
  readonly medianUs: number;
  readonly p99Us: number;
}

type NotShown = "magic" | "version" | "ioErrno" | "flushErrno" | "state";

/** A snapshot, for people and JSON. */
export interface DeviceStats extends Readonly<Record<Exclude<StatField, NotShown>, number>> {
  readonly alive: boolean;
  /** What the backend's state was when its server last changed it, e.g. "Connected". */
  readonly state: string;
  readonly limits: DiskRates;
  /** How many requests were refused for each reason, by its name in refusals.ts; together they are `errors`. */
  readonly refused: Readonly<Record<string, number>>;
  /** The image's last error, e.g. "ENOSPC", or null. The counters that end in `Errors` show how many there were. */
  readonly lastIoError: string | null;
  /** The error of a failed flush, or null. While it is set, writes and flushes fail. */
  readonly flushFailure: string | null;
  /** How often a fetch found n requests on the ring. */
  readonly ringUtilisation: readonly number[];
  readonly batchSizes: readonly number[];
  /** How many requests had n segments. */
  readonly segmentsPerRequest: readonly number[];
  readonly readLatency: Latency;
  readonly writeLatency: Latency;
  readonly flushLatency: Latency;
  readonly discardLatency: Latency;
}

/** Reads one device's statistics; `io` when no process serves it. */
export function readStats(runDir: string, domid: number, devid: number): DeviceStats {
  const path = statsPath(runDir, domid, devid);
  let bytes: Buffer;
  try {
    bytes = readFileSync(path);
  } catch (error) {
    throw new XentoolError(
      "io",
      `no statistics for device ${devid} of domain ${domid}: nobody serves it`,
      {},
      error,
    );
  }
  return decodeStats(new Float64Array(bytes.buffer.slice(bytes.byteOffset, bytes.byteOffset + bytes.length)));
}

/** The statistics of every device that a process of this host serves, or served before it was killed. */
export function readAllStats(runDir: string): DeviceStats[] {
  let names: string[];
  try {
    names = readdirSync(runDir);
  } catch {
    return [];
  }
  return names.flatMap((name) => {
    const match = /^([0-9]+)-([0-9]+)\.stats$/.exec(name);
    if (match === null) return [];
    try {
      return [readStats(runDir, Number(match[1]), Number(match[2]))];
    } catch {
      return []; // removed, or not complete yet
    }
  });
}

/** How many operations the image has failed. */
export function imageErrors(stats: DeviceStats): number {
  return stats.readErrors + stats.writeErrors + stats.flushErrors + stats.discardErrors;
}

function decodeStats(counters: Float64Array): DeviceStats {
  if (counters.length < DOUBLES || counters[STAT.magic] !== MAGIC || counters[STAT.version] !== VERSION)
    throw new XentoolError("io", "the statistics file is not complete, or of another version of xentool");
  const { magic: _magic, version: _version, ioErrno, flushErrno, state, ...fields } = STAT;
  const nameAt = (index: number): string | null =>
    counters[index] === 0 ? null : errnoName(counters[index]);
  const values = Object.fromEntries(
    Object.entries(fields).map(([name, index]) => [name, counters[index]]),
  ) as Record<keyof typeof fields, number>;
  return {
    ...values,
    alive: isAlive(values.pid),
    state: xenbusStateName(counters[state] as XenbusState),
    limits: ratesFromNumbers(counters.subarray(LIMITS, LIMITS + RATE_NUMBERS)),
    refused: Object.fromEntries(
      REFUSALS.map(({ name }, index) => [name, counters[refusalCounter(index + 1)]]),
    ),
    lastIoError: nameAt(ioErrno),
    flushFailure: nameAt(flushErrno),
    ringUtilisation: histogram(counters, RING_UTILISATION, MAX_RING_SLOTS + 1),
    batchSizes: histogram(counters, BATCH_SIZES, MAX_RING_SLOTS + 1),
    segmentsPerRequest: histogram(counters, SEGMENTS_PER_REQUEST, MAX_INDIRECT_SEGMENTS + 1),
    readLatency: latency(counters, READ_LATENCY),
    writeLatency: latency(counters, WRITE_LATENCY),
    flushLatency: latency(counters, FLUSH_LATENCY),
    discardLatency: latency(counters, DISCARD_LATENCY),
  };
}

function isAlive(pid: number): boolean {
  try {
    process.kill(pid, 0);
    return true;
  } catch (error) {
    return (error as NodeJS.ErrnoException).code === "EPERM";
  }
}

/** A histogram without its trailing empty buckets. */
function histogram(counters: Float64Array, at: number, length: number): number[] {
  const all = [...counters.subarray(at, at + length)];
  return all.slice(0, all.findLastIndex((value) => value !== 0) + 1);
}

function latency(counters: Float64Array, at: number): Latency {
  const buckets = histogram(counters, at, LATENCY_BUCKETS);
  return { buckets, medianUs: quantileUs(buckets, 0.5), p99Us: quantileUs(buckets, 0.99) };
}

/** The upper end of the bucket in which the quantile lies; 0 if the buckets are empty. */
export function quantileUs(buckets: readonly number[], fraction: number): number {
  const total = buckets.reduce((sum, count) => sum + count, 0);
  let seen = 0;
  for (const [index, count] of buckets.entries()) {
    seen += count;
    if (total > 0 && seen >= total * fraction) return 2 ** index;
  }
  return 0;
}
