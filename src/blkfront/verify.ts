// Fills a disk with known data, flushes it and reads it back: the job of `xentool selftest block`. The last block is a
// mark, written once the flush before it was answered: a server that sees the mark knows what must be safe by then.
import { XentoolError } from "../core/errors.ts";
import { PAGE_SIZE } from "../core/types.ts";
import {
  BLKIF_OP_FLUSH_DISKCACHE,
  BLKIF_OP_READ,
  BLKIF_OP_WRITE,
  BLKIF_RSP_OKAY,
  SECTOR_SIZE,
} from "../protocol/blkif.ts";
import type { FrontControl } from "./blkfront-control.ts";
import type { Disk } from "./handshake.ts";
import { JobLoop } from "./job-loop.ts";
import type { FrontDataPlane } from "./data-plane.ts";

/** Structured-cloneable. */
export interface VerifyOptions {
  /** Whole pages; the disk is a multiple of it. */
  readonly blockBytes: number;
  readonly depth: number;
}

type Step = typeof BLKIF_OP_READ | typeof BLKIF_OP_WRITE | typeof BLKIF_OP_FLUSH_DISKCACHE;

/** Fills `words` with what block `block` holds: every word differs from its neighbours', and from other blocks'. */
export function fillBlock(words: Uint32Array, block: number): void {
  let x = Math.imul(block + 1, 0x9e37_79b9) | 1;
  for (let index = 0; index < words.length; index++) {
    x ^= x << 13;
    x ^= x >>> 17;
    x ^= x << 5;
    words[index] = x;
  }
}

export class Verify {
  readonly #plane: FrontDataPlane;
  readonly #options: VerifyOptions;
  readonly #blocks: number;
  /** By job: its pages, its words on them, and the block that it is at. */
  readonly #pages: readonly number[];
  readonly #words: readonly Uint32Array[];
  readonly #at: Int32Array;
  readonly #expected: Uint32Array;
  #step: Step = BLKIF_OP_WRITE;
  #next = 0;
  #end = 0;
  #pending = 0;
  #fault: string | undefined;

  /** Takes over the whole disk. Throws `usage` when the disk or the pool is too small. */
  constructor(plane: FrontDataPlane, disk: Disk, options: VerifyOptions) {
    const { blockBytes, depth } = options;
    this.#blocks = Math.floor((disk.sectors512 * SECTOR_SIZE) / blockBytes);
    const jobs = Math.min(depth, plane.transfersThatFit(blockBytes));
    if (this.#blocks < 2 || jobs === 0)
      throw new XentoolError("usage", "the disk is too small to be verified");
    if (!disk.canFlush) throw new XentoolError("usage", "the disk cannot flush");
    const perBlock = blockBytes / PAGE_SIZE;
    this.#options = options;
    this.#plane = plane;
    this.#pages = Array.from({ length: jobs }, () => plane.pool.allocate(perBlock));
    this.#words = this.#pages.map((page) => {
      const start = (page * PAGE_SIZE) / 4;
      return plane.pool.words.subarray(start, start + blockBytes / 4);
    });
    this.#at = new Int32Array(jobs);
    this.#expected = new Uint32Array(blockBytes / 4);
    plane.onDone = (job, status) => this.#done(job, status);
  }

  /** Throws `io` at the first fault; returns early when `control` stops it or the backend breaks the protocol. */
  run(control: FrontControl): void {
    using loop = new JobLoop(this.#plane, control);
    const mark = this.#blocks - 1;
    this.#each(loop, control, BLKIF_OP_WRITE, 0, mark);
    this.#each(loop, control, BLKIF_OP_FLUSH_DISKCACHE, 0, 1);
    this.#each(loop, control, BLKIF_OP_WRITE, mark, this.#blocks);
    this.#each(loop, control, BLKIF_OP_READ, 0, this.#blocks);
    if (this.#fault !== undefined) throw new XentoolError("io", this.#fault);
  }

  /** Does `step` with the blocks from `from` to below `to`, and waits until all of them are done. */
  #each(loop: JobLoop, control: FrontControl, step: Step, from: number, to: number): void {
    this.#step = step;
    this.#next = from;
    this.#end = to;
    for (let job = 0; job < this.#pages.length; job++) this.#start(job);
    this.#plane.push();
    while (this.#pending > 0 && this.#plane.failure === undefined && !control.released) {
      if (!control.runs) this.#end = this.#next;
      loop.turn();
    }
  }

  #start(job: number): void {
    if (this.#next >= this.#end || this.#fault !== undefined) return;
    const block = this.#next++;
    const { blockBytes } = this.#options;
    this.#at[job] = block;
    this.#pending++;
    if (this.#step === BLKIF_OP_FLUSH_DISKCACHE) {
      this.#plane.flush(job);
      return;
    }
    // What a read must replace is something else than what was written.
    if (this.#step === BLKIF_OP_READ) this.#words[job].fill(0);
    else fillBlock(this.#words[job], block);
    this.#plane.transfer(this.#step, job, block * (blockBytes / SECTOR_SIZE), this.#pages[job], blockBytes);
  }

  #done(job: number, status: number): void {
    this.#pending--;
    const block = this.#at[job];
    if (status !== BLKIF_RSP_OKAY) this.#fault ??= `${NAMES[this.#step]} of block ${block} failed`;
    else if (this.#step === BLKIF_OP_READ) this.#compare(this.#words[job], block);
    this.#start(job);
  }

  #compare(words: Uint32Array, block: number): void {
    fillBlock(this.#expected, block);
    for (let index = 0; index < words.length; index++) {
      if (words[index] === this.#expected[index]) continue;
      const offset = block * this.#options.blockBytes + index * 4;
      this.#fault ??= `what was read differs from what was written, from byte ${offset} on`;
      return;
    }
  }
}

const NAMES: Readonly<Record<Step, string>> = {
  [BLKIF_OP_READ]: "a read",
  [BLKIF_OP_WRITE]: "a write",
  [BLKIF_OP_FLUSH_DISKCACHE]: "a flush",
};
