// Requests of any sectors on a target that takes only whole blocks: every byte ends where it belongs, whatever else
// is under way in the same block.
import { expect, test } from "bun:test";
import { WholeBlocks } from "../../src/block/targets/nbd/whole-blocks.ts";
import type { BlockTarget } from "../../src/block/target.ts";
import { allocateMemory } from "../../src/native/memory.ts";
import {
  IO_DISCARD,
  IO_FLUSH,
  IO_READ,
  IO_READV,
  IO_WRITE,
  IO_WRITEV,
  Reactor,
  type IoOp,
  type OnEnd,
} from "../../src/native/reactor.ts";
import { shim, type Pointer } from "../../src/native/shim.ts";
import { chosenSeed, Random } from "../support/random.ts";

const BLOCK = 4096;
const SIZE = 16 * BLOCK;
const SECTOR = 512;
/** Bytes of memory for each operation: its data, then its iovecs. */
const DATA = 4 * BLOCK;
const ROOM = DATA + 128 * 16;
const MOST = 40;

/** Carries operations out in any order, some of a read's or write's time apart; refuses what is not whole blocks. */
class Blocks implements BlockTarget {
  readonly info = {
    sizeBytes: SIZE,
    readOnly: false,
    canDiscard: true,
    canSecureDiscard: false,
    discardGranularityBytes: BLOCK,
    physicalSectorBytes: BLOCK,
  };
  readonly memory = allocateMemory(SIZE);
  readonly waiting: (() => void)[] = [];
  result: number | undefined;
  readonly #onEnd: OnEnd;
  readonly #random: Random;

  constructor(onEnd: OnEnd, random: Random) {
    this.#onEnd = onEnd;
    this.#random = random;
  }

  start(op: IoOp, tag: number, offset: number, length: number, address: number): void {
    const vectors = op === IO_READV || op === IO_WRITEV;
    const pieces = vectors ? piecesAt(address, Math.min(length, 64)) : [[address, length] as const];
    const bytes = pieces.reduce((sum, [, size]) => sum + size, 0);
    expect([offset % BLOCK, bytes % BLOCK, offset + bytes <= SIZE]).toEqual([0, 0, true]);
    const carryOut = (): void => {
      let at = offset;
      for (const [piece, size] of pieces) {
        const here = (this.memory.address + at) as Pointer;
        if (op === IO_READ || op === IO_READV) shim.xt_memory_copy(piece as Pointer, here, size);
        else if (op === IO_WRITE || op === IO_WRITEV) shim.xt_memory_copy(here, piece as Pointer, size);
        at += size;
      }
      if (op === IO_DISCARD) this.memory.bytes.fill(0, offset, offset + bytes);
    };
    const isEarly = this.#random.below(2) === 0;
    if (isEarly) carryOut();
    this.waiting.push(() => {
      if (!isEarly) carryOut();
      this.#onEnd(tag, this.result ?? (op === IO_DISCARD || op === IO_FLUSH ? 0 : bytes));
    });
  }

  /** Ends one operation. */
  step(): void {
    const [end] = this.waiting.splice(this.#random.below(this.waiting.length), 1);
    end?.();
  }

  close(): void {
    this.memory.close();
  }
}

function piecesAt(address: number, count: number): (readonly [number, number])[] {
  using copy = allocateMemory(count * 16);
  shim.xt_memory_copy(copy.address as Pointer, address as Pointer, count * 16);
  const words = new BigUint64Array(copy.bytes.buffer);
  return Array.from({ length: count }, (_, i) => [Number(words[2 * i]), Number(words[2 * i + 1])] as const);
}

/** Bytes of their own for each sector. */
function fillSectors(bytes: Uint8Array, random: Random): void {
  for (let at = 0; at < bytes.length; at += SECTOR) bytes.fill(random.below(256), at, at + SECTOR);
}

interface Asked {
  readonly op: IoOp;
  readonly offset: number;
  readonly length: number;
  done: number;
}

class Fixture implements Disposable {
  readonly reactor = Reactor.open(8, "sync");
  readonly memory = allocateMemory(MOST * ROOM);
  readonly model = Buffer.alloc(SIZE);
  readonly asked = new Map<number, Asked>();
  readonly results: number[] = [];
  readonly random: Random;
  inner!: Blocks;
  readonly target: WholeBlocks<Blocks>;

  constructor(seed: number) {
    const random = new Random(seed);
    this.random = random;
    const openInner = (onEnd: OnEnd): Blocks => (this.inner = new Blocks(onEnd, random));
    this.target = new WholeBlocks(openInner, BLOCK, this.reactor, (tag, result) => this.#ended(tag, result));
    fillSectors(this.inner.memory.bytes, random);
    this.model.set(this.inner.memory.bytes);
  }

  /** Starts an operation unless it overlaps one that is under way, as blkback's scheduler does. */
  ask(op: IoOp, offset: number, length: number): void {
    const others = [...this.asked.values()];
    if (others.some((it) => it.offset < offset + length && offset < it.offset + it.length)) return;
    const tag = Array.from({ length: MOST }, (_, i) => i).find((i) => !this.asked.has(i));
    if (tag === undefined) return;
    const bytes = this.memory.bytes.subarray(tag * ROOM, tag * ROOM + DATA);
    fillSectors(bytes, this.random);
    if (op === IO_WRITE || op === IO_WRITEV) this.model.set(bytes.subarray(0, length), offset);
    this.asked.set(tag, { op, offset, length, done: 0 });
    this.#start(tag);
  }

  settle(): void {
    while (this.asked.size > 0) {
      this.reactor.wait(0, 0);
      this.reactor.dispatch();
      this.inner.step();
    }
  }

  [Symbol.dispose](): void {
    this.target.close(true);
    this.reactor.close();
    this.memory.close();
  }

  #start(tag: number): void {
    const it = this.asked.get(tag);
    if (it === undefined) return;
    const { op, offset, length, done } = it;
    const data = this.memory.address + tag * ROOM;
    if (op !== IO_READV && op !== IO_WRITEV) {
      this.target.start(op, tag, offset + done, length - done, op === IO_DISCARD ? 0 : data + done);
      return;
    }
    const vectors = new BigUint64Array(this.memory.bytes.buffer, tag * ROOM + DATA);
    let count = 0;
    for (let at = done; at < length; count++) {
      const size = Math.min(length - at, SECTOR * (1 + this.random.below(3)));
      vectors.set([BigInt(data + at), BigInt(size)], 2 * count);
      at += size;
    }
    this.target.start(op, tag, offset + done, count, data + DATA);
  }

  #ended(tag: number, result: number): void {
    const it = this.asked.get(tag);
    if (it === undefined) throw new Error(`${tag} ends twice`);
    it.done += Math.max(0, result);
    if (result > 0 && it.done < it.length) return this.#start(tag);
    this.results.push(result);
    this.asked.delete(tag);
    if (result >= 0) this.#check(tag, it);
  }

  #check(tag: number, { op, offset, length }: Asked): void {
    if (op === IO_READ || op === IO_READV) {
      const bytes = this.memory.bytes.subarray(tag * ROOM, tag * ROOM + length);
      expect(this.model.subarray(offset, offset + length).equals(bytes)).toBe(true);
    }
    if (op === IO_DISCARD) {
      const from = Math.ceil(offset / BLOCK) * BLOCK;
      this.model.fill(0, from, Math.max(from, Math.floor((offset + length) / BLOCK) * BLOCK));
    }
  }
}

test("any sectors, at once and in any order", () => {
  const seed = chosenSeed();
  console.log(`SEED=${seed}`);
  using it = new Fixture(seed);
  const { random } = it;
  const ops = [IO_READ, IO_READV, IO_WRITE, IO_WRITEV, IO_WRITE, IO_WRITEV, IO_DISCARD] as const;
  for (let round = 0; round < 5000; round++) {
    const offset = random.below(SIZE / SECTOR) * SECTOR;
    const length = Math.min(SIZE - offset, (1 + random.below(random.below(2) === 0 ? 4 : 32)) * SECTOR);
    it.ask(ops[random.below(ops.length)] as IoOp, offset, length);
    if (random.below(3) > 0) it.inner.step();
    it.reactor.wait(0, 0);
    it.reactor.dispatch();
  }
  it.settle();
  expect(it.model.equals(it.inner.memory.bytes)).toBe(true);
});

test("eight writes to one block take turns; to eight blocks they do not", () => {
  using it = new Fixture(1);
  for (let sector = 0; sector < 8; sector++) it.ask(IO_WRITE, sector * SECTOR, SECTOR);
  expect(it.inner.waiting.length).toBe(1);
  it.settle();
  for (let block = 0; block < 8; block++) it.ask(IO_WRITE, block * BLOCK, SECTOR);
  expect(it.inner.waiting.length).toBe(8);
  it.settle();
  expect(it.results).toEqual(Array.from({ length: 16 }, () => SECTOR));
  expect(it.model.equals(it.inner.memory.bytes)).toBe(true);
});

test("an error, and a block that comes short, fail the request, and the next one in the block goes on", () => {
  using it = new Fixture(1);
  for (const [result, seen] of [
    [-5, -5],
    [SECTOR, -5],
  ]) {
    it.inner.result = result;
    it.ask(IO_WRITE, 0, SECTOR);
    it.ask(IO_WRITE, SECTOR, SECTOR);
    it.inner.step();
    it.inner.result = undefined;
    it.settle();
    expect(it.results.splice(0)).toEqual([seen ?? 0, SECTOR]);
  }
});

test("what is whole goes through, and less than a block is not trimmed", () => {
  using it = new Fixture(1);
  it.ask(IO_FLUSH, 0, 0);
  it.ask(IO_WRITE, BLOCK, 2 * BLOCK);
  expect(it.inner.waiting.length).toBe(2);
  it.settle();
  it.ask(IO_DISCARD, SECTOR, BLOCK);
  expect(it.inner.waiting.length).toBe(0);
  it.settle();
  expect(it.results.sort((a, b) => a - b)).toEqual([0, 0, 2 * BLOCK]);
  expect(it.model.equals(it.inner.memory.bytes)).toBe(true);
});
