// `blkfront bench`: a fixed number of jobs, each with its own pages. A job starts its next I/O as soon as the last
// one is done. One thread and no promises, so that it measures the ring, not the event loop.
import { PAGE_SIZE } from "../core/types.ts";
import { XentoolError } from "../core/errors.ts";
import { BLKIF_OP_READ, BLKIF_OP_WRITE, BLKIF_RSP_OKAY, SECTOR_SIZE } from "../protocol/blkif.ts";
import { BENCH_LOOK_EVERY, BENCH_POLL_US_MAX } from "./bounds.ts";
import type { FrontControl } from "./blkfront-control.ts";
import type { Disk } from "./handshake.ts";
import { JobLoop } from "./job-loop.ts";
import { LatencyHistogram, type LatencySummary } from "./latency.ts";
import type { FrontDataPlane } from "./data-plane.ts";

const BENCH_PATTERNS = ["read", "write", "randread", "randwrite", "randrw"] as const;
export type BenchPattern = (typeof BENCH_PATTERNS)[number];

export interface BenchOptions {
  readonly pattern: BenchPattern;
  readonly blockBytes: number;
  readonly depth: number;
  readonly runtimeMs: number;
  /** How long the load runs before it is measured: both ends' programs are compiled while they run. */
  readonly rampMs: number;
}

/** Structured-cloneable. */
export interface BenchResult extends BenchOptions {
  readonly queues: number;
  /** Jobs that had pages: fewer than `depth` when the pool is too small for all of them. */
  readonly jobs: number;
  readonly elapsedMs: number;
  readonly reads: number;
  readonly writes: number;
  readonly errors: number;
  readonly bytes: number;
  /** Before it was measured. */
  readonly rampBytes: number;
  readonly latencyUs: LatencySummary;
  /** CPU time of this process during the run. */
  readonly cpuUserMs: number;
  readonly cpuSystemMs: number;
}

export class Bench {
  readonly #options: BenchOptions;
  readonly #plane: FrontDataPlane;
  #latency = new LatencyHistogram();
  readonly #blocks: number;
  readonly #jobs: number;
  /** By job: its pages, and when its I/O was started. */
  readonly #pages: Int32Array;
  readonly #startedAt: Float64Array;
  #nextBlock = 0;
  #random = 0x9e37_79b9;
  #now = 0;
  #running = false;
  #startedMs = 0;
  #cpuBefore = process.cpuUsage();
  #rampBytes = 0;
  #reads = 0;
  #writes = 0;
  #errors = 0;

  /** Takes over the whole disk, which has a tag for each slot. Throws `usage` for what this disk cannot do. */
  constructor(plane: FrontDataPlane, disk: Disk, options: BenchOptions) {
    const { blockBytes, depth, pattern } = options;
    if (blockBytes % disk.logicalSectorBytes !== 0 || blockBytes === 0)
      throw new XentoolError("usage", `--bs must be a multiple of ${disk.logicalSectorBytes} bytes here`);
    if (disk.readOnly && pattern !== "read" && pattern !== "randread")
      throw new XentoolError("usage", "the disk is read-only: use --rw read or randread");
    this.#blocks = Math.floor((disk.sectors512 * SECTOR_SIZE) / blockBytes);
    if (this.#blocks === 0) throw new XentoolError("usage", "--bs is larger than the disk");
    this.#jobs = Math.min(depth, plane.transfersThatFit(blockBytes));
    if (this.#jobs === 0) throw new XentoolError("usage", "--bs is larger than all pages that are shared");
    this.#options = options;
    this.#plane = plane;
    this.#pages = new Int32Array(this.#jobs);
    this.#startedAt = new Float64Array(this.#jobs);
    for (let job = 0; job < this.#jobs; job++) this.#pages[job] = this.#fillPages();
    plane.onDone = (tag, status) => this.#done(tag, status);
    plane.doorbell.poll.maxUs = BENCH_POLL_US_MAX;
  }

  /**
   * Runs until the time is up, `control` stops it or the backend breaks the protocol; then waits for what is in
   * flight.
   */
  run(control: FrontControl): BenchResult {
    const { runtimeMs, rampMs, blockBytes } = this.#options;
    const plane = this.#plane;
    using loop = new JobLoop(plane, control);
    this.#measureFromNow();
    this.#running = true;
    let isRamp = rampMs > 0;
    for (let job = 0; job < this.#jobs; job++) this.#start(job);
    plane.push();
    for (let turn = 0; plane.inFlight > 0 && plane.failure === undefined; turn++) {
      if (control.released) break;
      this.#now = performance.now();
      const responses = loop.turn();
      if (!this.#running || (responses > 0 && turn % BENCH_LOOK_EVERY !== 0)) continue;
      if (this.#now - this.#startedMs >= (isRamp ? rampMs : runtimeMs)) {
        if (isRamp) this.#measureFromNow();
        else this.#running = false;
        isRamp = false;
      }
      this.#running &&= control.runs;
    }
    const elapsedMs = performance.now() - this.#startedMs;
    const used = process.cpuUsage(this.#cpuBefore);
    return {
      ...this.#options,
      queues: plane.lanes,
      jobs: this.#jobs,
      elapsedMs,
      reads: this.#reads,
      writes: this.#writes,
      errors: this.#errors,
      bytes: (this.#reads + this.#writes) * blockBytes,
      rampBytes: this.#rampBytes,
      latencyUs: this.#latency.summary(),
      cpuUserMs: used.user / 1000,
      cpuSystemMs: used.system / 1000,
    };
  }

  /** What was before is not a part of the result, except for its errors. */
  #measureFromNow(): void {
    this.#startedMs = this.#now = performance.now();
    this.#cpuBefore = process.cpuUsage();
    this.#rampBytes = (this.#reads + this.#writes) * this.#options.blockBytes;
    this.#reads = this.#writes = 0;
    this.#latency = new LatencyHistogram();
  }

  #done(job: number, status: number): void {
    this.#latency.add((this.#now - this.#startedAt[job]) * 1000);
    if (status !== BLKIF_RSP_OKAY) this.#errors++;
    if (this.#running) this.#start(job);
  }

  /** There is always room: there are no more jobs than fit. */
  #start(job: number): void {
    const reads = this.#readsNext();
    const sector = this.#nextOffset() / SECTOR_SIZE;
    this.#startedAt[job] = this.#now;
    if (reads) this.#reads++;
    else this.#writes++;
    const op = reads ? BLKIF_OP_READ : BLKIF_OP_WRITE;
    this.#plane.transfer(op, job, sector, this.#pages[job], this.#options.blockBytes);
  }

  /** Allocates the pages of one job and fills them with data to write. */
  #fillPages(): number {
    const { pool } = this.#plane;
    const count = Math.ceil(this.#options.blockBytes / PAGE_SIZE);
    const page = pool.allocate(count);
    const start = (page * PAGE_SIZE) / 4;
    for (let word = start; word < start + (count * PAGE_SIZE) / 4; word++)
      pool.words[word] = this.#nextRandom();
    return page;
  }

  #readsNext(): boolean {
    switch (this.#options.pattern) {
      case "read":
      case "randread":
        return true;
      case "write":
      case "randwrite":
        return false;
      case "randrw":
        return (this.#nextRandom() & 0x10000) !== 0;
    }
  }

  #nextOffset(): number {
    const { pattern, blockBytes } = this.#options;
    if (pattern !== "read" && pattern !== "write")
      return Math.floor((this.#nextRandom() / 2 ** 32) * this.#blocks) * blockBytes;
    const block = this.#nextBlock;
    this.#nextBlock = block + 1 === this.#blocks ? 0 : block + 1;
    return block * blockBytes;
  }

  /** xorshift32: the same sequence every time. */
  #nextRandom(): number {
    let x = this.#random;
    x ^= x << 13;
    x ^= x >>> 17;
    x ^= x << 5;
    this.#random = x;
    return x >>> 0;
  }
}
