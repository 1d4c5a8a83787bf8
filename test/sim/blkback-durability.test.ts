// The promise itself, on a disk like Linux' page cache: what was answered OK before a flush that was answered OK is
// durable. The disk ends its operations in any order, and now and then a flush of it loses what it should have kept,
// tells one of those who wait, and calls everything clean.
import { expect, spyOn, test } from "bun:test";
import type { BlockTarget, TargetInfo } from "../../src/block/target.ts";
import { Mapping } from "../../src/native/memory.ts";
import { IO_FLUSH, IO_WRITE, Timer, type IoOp, type OnEnd, type Reactor } from "../../src/native/reactor.ts";
import { RingHarness } from "./blk-harness.ts";
import { chosenSeed, Random } from "../support/random.ts";

const READ = 0;
const WRITE = 1;
const BARRIER = 2;
const FLUSH = 3;
const OKAY = 0;
const EIO = -5;
const BLOCKS = 12;
const BLOCK_BYTES = 4096;
const BATCHES = 60;

interface Pending {
  readonly op: IoOp;
  readonly tag: number;
  readonly offset: number;
  readonly length: number;
  readonly address: number;
}

/** Each block holds the number of the write that was the last to fill it: in the cache, and on the disk. */
class CachedDisk implements BlockTarget {
  readonly info: TargetInfo = {
    sizeBytes: BLOCKS * BLOCK_BYTES,
    readOnly: false,
    canDiscard: false,
    canSecureDiscard: false,
    discardGranularityBytes: 512,
    physicalSectorBytes: 512,
  };
  readonly cached = new Uint32Array(BLOCKS);
  readonly durable = new Uint32Array(BLOCKS);
  losses = 0;
  readonly #dirty = new Set<number>();
  readonly #pending: Pending[] = [];
  readonly #timer = new Timer(() => this.#endSome());
  #onEnd: OnEnd = () => {};
  #reactor: Reactor | undefined;
  /** A loss that no flush was told of yet. */
  #untold = false;
  readonly #random: Random;

  constructor(random: Random) {
    this.#random = random;
  }

  open(onEnd: OnEnd, reactor: Reactor): BlockTarget {
    this.#onEnd = onEnd;
    this.#reactor = reactor;
    return this;
  }

  start(op: IoOp, tag: number, offset: number, length: number, address: number): void {
    this.#pending.push({ op, tag, offset, length, address });
    this.#reactor?.setTimer(this.#timer, 0);
  }

  /** One or more of what is pending, whichever. Writing back what is dirty happens before, so that flushes race. */
  #endSome(): void {
    const ending = this.#pending.splice(0).filter((it) => {
      const ends = this.#random.chance(0.6);
      if (!ends) this.#pending.push(it);
      return ends;
    });
    const shuffled = ending.map((it) => [this.#random.next(), it] as const).toSorted(([a], [b]) => a - b);
    if (shuffled.some(([, { op }]) => op === IO_FLUSH)) this.#writeBack();
    for (const [, it] of shuffled) this.#onEnd(it.tag, this.#perform(it));
    if (this.#pending.length > 0) this.#reactor?.setTimer(this.#timer, 0);
  }

  #writeBack(): void {
    for (const block of this.#dirty) {
      if (this.#random.chance(0.002)) {
        this.losses++;
        this.#untold = true;
      } else this.durable[block] = this.cached[block];
    }
    this.#dirty.clear();
  }

  #perform({ op, offset, length, address }: Pending): number {
    if (op === IO_FLUSH) {
      const told = this.#untold;
      this.#untold = false;
      return told ? EIO : 0;
    }
    const memory = new Mapping(address, length, () => {});
    for (let done = 0; done < length; done += BLOCK_BYTES) {
      const block = (offset + done) / BLOCK_BYTES;
      if (op === IO_WRITE) {
        this.cached[block] = memory.words[done / 4];
        this.#dirty.add(block);
      } else memory.words[done / 4] = this.cached[block];
    }
    memory.close();
    return length;
  }
}

/** Serves batches of anything on so many rings; whether the disk has lost something meanwhile. */
async function run(seed: number, queues: number): Promise<boolean> {
  const random = new Random(seed);
  const disk = new CachedDisk(random);
  const h = await RingHarness.start({
    imageBytes: BLOCKS * BLOCK_BYTES,
    queues,
    openDisk: (onEnd, reactor) => disk.open(onEnd, reactor),
  });
  const promised = new Uint32Array(BLOCKS);
  let version = 1;
  for (let batch = 0; batch < BATCHES; batch++) {
    // Rings are looked at in turn. So in that order, what is written gets its numbers.
    const rings = Array.from({ length: 1 + random.below(12) }, () => random.below(queues)).toSorted();
    const asked = rings.map((queue, id) => {
      const op = random.pick([READ, WRITE, WRITE, WRITE, WRITE, BARRIER, FLUSH, FLUSH, FLUSH]);
      const block = random.below(BLOCKS);
      const segments = op === FLUSH ? [] : h.pages(id, 1);
      new DataView(h.data.mapping.bytes.buffer).setUint32(id * 4096, version, true);
      h.rings[queue].put({ op, id: BigInt(id), sector: block * 8, segments });
      return { op, block, version: version++ };
    });
    for (const ring of h.rings) ring.push();
    h.plane.step();
    const answers = h.rings.flatMap((ring) => ring.takeResponses());
    const status = new Map(answers.map((it) => [Number(it.id), it.status]));
    expect(status.size).toBe(asked.length);
    for (const [id, { op, block, version: written }] of asked.entries()) {
      if (status.get(id) !== OKAY) continue;
      if (op === BARRIER) promised[block] = written;
      if (op === FLUSH || op === BARRIER)
        for (let at = 0; at < BLOCKS; at++)
          if (disk.durable[at] < promised[at])
            throw new Error(`block ${at} has ${disk.durable[at]}, but ${promised[at]} was promised`);
      if (op === WRITE) promised[block] = written;
    }
  }
  await h.close();
  return disk.losses > 0;
}

test.each([
  [1, "ring", 40],
  [4, "rings", 30],
])(
  "%i %s: what was answered OK before a flush that was answered OK is durable",
  async (queues, _rings, turns) => {
    const seed = chosenSeed();
    console.log(`durability: SEED=${seed}`);
    const stderr = spyOn(process.stderr, "write").mockImplementation(() => true);
    try {
      let lost = 0;
      for (let turn = 0; turn < turns; turn++) {
        const failed = (error: unknown): never => {
          throw new Error(`SEED=${seed}, turn ${turn}`, { cause: error });
        };
        if (await run(seed + turn, queues).catch(failed)) lost++;
      }
      // About a third of them.
      expect(lost).toBeGreaterThan(0);
    } finally {
      stderr.mockRestore();
    }
  },
);
