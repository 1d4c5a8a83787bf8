// A device's statistics: counters that the data plane adds to and anybody may read at any time. They are kept in a
// file so that `blkback stats` in another process can show them, even while the data plane is busy. The file has a
// section for each of the device's queues, all alike. The first queue of each thread also counts what belongs to that
// thread as a whole, and the very first has what belongs to the device; that is 0 in the others, so that the device's
// numbers are sums over all sections.
import { closeSync, existsSync, fstatSync, ftruncateSync, mkdirSync, rmSync, writeSync } from "node:fs";
import { join } from "node:path";
import { XentoolError } from "../../core/errors.ts";
import type { Domid } from "../../core/types.ts";
import { isProcessAlive } from "../../core/process-alive.ts";
import { mapFile, type Mapping } from "../../native/memory.ts";
import { makeOwnFile, openOwnFile, readOwnFile } from "../../native/own-file.ts";
import { errnoName } from "../../native/shim.ts";
import type { PlatformDescriptor } from "../../platform/platform.ts";
import { MAX_INDIRECT_SEGMENTS } from "../../protocol/blkif.ts";
import { xenbusStateName, type XenbusState } from "../../protocol/xenbus.ts";
import { MAX_QUEUES, MAX_RING_SLOTS } from "../bounds.ts";
import { RATE_NUMBERS, ratesAsNumbers, ratesFromNumbers, type DiskRates } from "../limits/rates.ts";
import { REFUSALS } from "../data-plane/refusals.ts";
import { disksIn, guestDir } from "../device/state-directory.ts";

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
  "laneCount",
  "serverLosses",
  "serverLostAtMs",
] as const;
export type StatField = (typeof FIELDS)[number];

export const STAT = Object.fromEntries(FIELDS.map((name, index) => [name, index])) as Readonly<
  Record<StatField, number>
>;

/** What begins anew with each connection. */
const OF_CONNECTION: readonly StatField[] = [
  "inFlight",
  "waiting",
  "held",
  "merged",
  "copiedSegments",
  "flushErrno",
  "laneCount",
];
/** What is no sum over the sections, but the largest number in them. */
const LARGEST: readonly StatField[] = ["ioErrno", "flushErrno", "lastAnswerAtMs"];

/** The disk's rates, as `ratesAsNumbers` orders them. */
const RATES = 56;
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
const SECTION_BYTES = Math.ceil((DOUBLES * 8) / 4096) * 4096;
const SECTION_DOUBLES = SECTION_BYTES / 8;

if (FIELDS.length > RATES || RATES + RATE_NUMBERS > REFUSED || REFUSALS.length > REFUSED_ROOM)
  throw new Error("the counters reach into what follows them in the page: make room, and raise VERSION");

/** Position of the counter of the reason with this code, which is at least 1. */
export function refusalCounter(reason: number): number {
  return REFUSED + reason - 1;
}

/** Bucket of a latency: 0 below 1 µs, n for 2^(n-1) to 2^n µs. */
export function latencyBucket(ms: number): number {
  const us = ms * 1000;
  // clz32 would take it modulo 2^32, which is 71 minutes.
  if (us >= 2 ** (LATENCY_BUCKETS - 2)) return LATENCY_BUCKETS - 1;
  return us < 1 ? 0 : 32 - Math.clz32(us);
}

export class StatsPage {
  readonly path: string;
  #mapping: Mapping;

  private constructor(path: string, mapping: Mapping) {
    this.path = path;
    this.#mapping = mapping;
  }

  /**
   * Creates the statistics file of a device served by this process, with one section. Throws `environment`, leaving
   * no file behind.
   */
  static create(runDir: string, domid: number, devid: number): StatsPage {
    const path = statsPath(runDir, domid, devid);
    let page: StatsPage;
    try {
      mkdirSync(runDir, { recursive: true, mode: 0o755 });
      page = new StatsPage(path, mapSections(makeEmpty(path), 1));
    } catch (error) {
      if (existsSync(path)) rmSync(path, { force: true });
      throw noRoom(path, error);
    }
    const { counters } = page;
    counters.fill(0);
    counters[STAT.pid] = process.pid;
    counters[STAT.startedAtMs] = Date.now();
    counters[STAT.domid] = domid;
    counters[STAT.devid] = devid;
    counters[STAT.version] = VERSION;
    counters[STAT.magic] = MAGIC;
    return page;
  }

  /** Opens a file created by `create` to count in it (the data plane). */
  static attach(path: string): StatsPage {
    return new StatsPage(path, mapSections(openExisting(path), 1));
  }

  /** Of the device, and of its first lane. */
  get counters(): Float64Array {
    return this.section(0);
  }

  /** The counters of lane `index`; those of the device as a whole are in the first section. */
  section(index: number): Float64Array {
    return new Float64Array(this.#mapping.bytes.buffer, index * SECTION_BYTES, SECTION_DOUBLES);
  }

  set state(state: XenbusState) {
    this.counters[STAT.state] = state;
  }

  set rates(rates: DiskRates) {
    this.counters.set(ratesAsNumbers(rates), RATES);
  }

  /**
   * A guest connects up to `laneCount` rings, fresh or a former server's: nothing is known to be in flight yet.
   * Throws `environment` when there is no room for as many sections.
   */
  connecting(laneCount: number): void {
    if (laneCount > this.#sectionCount) {
      let grown: Mapping;
      try {
        grown = mapSections(openExisting(this.path), laneCount);
      } catch (error) {
        throw noRoom(this.path, error);
      }
      this.#mapping.close();
      this.#mapping = grown;
    }
    this.counters[STAT.connections]++;
    for (let index = 0; index < this.#sectionCount; index++)
      for (const field of OF_CONNECTION) this.section(index)[STAT[field]] = 0;
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

  get #sectionCount(): number {
    return this.#mapping.sizeBytes / SECTION_BYTES;
  }
}

function makeEmpty(path: string): number {
  const fd = makeOwnFile(path, 0o644);
  ftruncateSync(fd);
  return fd;
}

function openExisting(path: string): number {
  const fd = openOwnFile(path, "change");
  if (fd === undefined) throw new Error(`${path} is gone`);
  return fd;
}

/** Maps a statistics file, which grows to `atLeast` sections if it has fewer, and closes its descriptor. */
function mapSections(fd: number, atLeast: number): Mapping {
  try {
    // Written out rather than left as a hole: on a full file system, a store to the mapping would kill the process.
    const size = fstatSync(fd).size;
    const sections = Math.max(atLeast, Math.floor(size / SECTION_BYTES));
    const bytes = new Uint8Array(Math.max(0, sections * SECTION_BYTES - size));
    for (let at = 0; at < bytes.length;) at += writeSync(fd, bytes, at, bytes.length - at, size + at);
    return mapFile(fd, sections * SECTION_BYTES, true);
  } finally {
    closeSync(fd);
  }
}

function noRoom(path: string, cause: unknown): XentoolError {
  return new XentoolError("environment", `cannot make ${path} for statistics`, { path }, cause);
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

type NotShown = "magic" | "version" | "ioErrno" | "flushErrno" | "state" | "laneCount";

/** What is counted for each queue. */
const LANE_FIELDS = [
  "requests",
  "ok",
  "errors",
  "reads",
  "writes",
  "flushes",
  "barriers",
  "discards",
  "indirect",
  "readBytes",
  "writeBytes",
  "discardBytes",
  "batches",
  "notifies",
  "inFlight",
] as const satisfies readonly StatField[];
export type QueueStats = Readonly<Record<(typeof LANE_FIELDS)[number], number>>;

/** A snapshot, for people and JSON. */
export interface DeviceStats extends Readonly<Record<Exclude<StatField, NotShown>, number>> {
  readonly alive: boolean;
  /** What the backend's state was when its server last changed it, e.g. "Connected". */
  readonly state: string;
  readonly limits: DiskRates;
  /** Of the queues that the guest connected last, in their order. */
  readonly queues: readonly QueueStats[];
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
  const paths = [runDir, guestDir(runDir, domid as Domid)].map((dir) => statsPath(dir, domid, devid));
  const bytes = readFirst(paths, MAX_QUEUES * SECTION_BYTES);
  if (bytes === undefined)
    throw new XentoolError("io", `no statistics for device ${devid} of domain ${domid}: nobody serves it`);
  const whole = bytes.length - (bytes.length % SECTION_BYTES);
  const stats = decodeStats(new Float64Array(bytes.buffer.slice(bytes.byteOffset, bytes.byteOffset + whole)));
  // A process that its guest has taken over writes what it likes, but not in the name of another disk.
  return { ...stats, domid, devid };
}

function readFirst(paths: readonly string[], bytesMax: number): Buffer | undefined {
  const path = paths.find((it) => existsSync(it));
  try {
    return path === undefined ? undefined : readOwnFile(path, bytesMax);
  } catch (error) {
    throw new XentoolError("io", `cannot read ${path}`, {}, error);
  }
}

/** The statistics of every device that a process of this host serves, or served before it was killed. */
export function readAllStats(runDir: string): DeviceStats[] {
  return disksIn(runDir).flatMap(({ frontend, devid }) => {
    try {
      return [readStats(runDir, frontend, devid)];
    } catch {
      return []; // removed, or not complete yet
    }
  });
}

/** How many operations the image has failed. */
export function imageErrors(stats: DeviceStats): number {
  return stats.readErrors + stats.writeErrors + stats.flushErrors + stats.discardErrors;
}

function decodeStats(file: Float64Array): DeviceStats {
  if (file.length < SECTION_DOUBLES || file[STAT.magic] !== MAGIC || file[STAT.version] !== VERSION)
    throw new XentoolError("io", "the statistics file is not complete, or of another version of xentool");
  const sections = Array.from({ length: Math.floor(file.length / SECTION_DOUBLES) }, (_, index) =>
    file.subarray(index * SECTION_DOUBLES, (index + 1) * SECTION_DOUBLES),
  );
  const counters = sumOf(sections);
  const { magic: _magic, version: _version, ioErrno, flushErrno, state, laneCount, ...fields } = STAT;
  const nameAt = (index: number): string | null =>
    counters[index] === 0 ? null : errnoName(counters[index]);
  const values = Object.fromEntries(
    Object.entries(fields).map(([name, index]) => [name, counters[index]]),
  ) as Record<keyof typeof fields, number>;
  return {
    ...values,
    alive: isProcessAlive(values.pid),
    state: xenbusStateName(counters[state] as XenbusState),
    limits: ratesFromNumbers(counters.subarray(RATES, RATES + RATE_NUMBERS)),
    queues: sections.slice(0, counters[laneCount]).map(queueStats),
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

/** All rings of a device have the same number of slots. */
function sumOf([first, ...others]: readonly Float64Array[]): Float64Array {
  const sum = first.slice();
  for (const section of others) for (let i = 0; i < DOUBLES; i++) sum[i] += section[i];
  for (const field of LARGEST)
    sum[STAT[field]] = Math.max(first[STAT[field]], ...others.map((it) => it[STAT[field]]));
  sum[STAT.ringSlots] = first[STAT.ringSlots];
  return sum;
}

function queueStats(section: Float64Array): QueueStats {
  return Object.fromEntries(LANE_FIELDS.map((name) => [name, section[STAT[name]]])) as Record<
    (typeof LANE_FIELDS)[number],
    number
  >;
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
