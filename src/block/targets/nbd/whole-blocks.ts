// A target in front of one that takes only whole blocks, larger than the sectors that the guest sees. What begins or
// ends within a block is carried out for this one block, in memory of our own: a read reads all of it; a write reads
// all of it, changes its part, and writes it back. What is longer ends short, at a block's border, and its owner goes
// on from there.
//
// Requests that overlap never reach a target at the same time (blkback/data-plane/scheduler.ts). Two writes that share
// a block without overlapping do, and each would write the other's part back as it was: so of the writes to parts of a
// block only one is under way, and the others wait in their order. Nothing else can change the block meanwhile, because
// what writes or trims all of it overlaps.
import { allocateMemory, type Mapping } from "../../../native/memory.ts";
import {
  IO_DISCARD,
  IO_READ,
  IO_READV,
  IO_WRITE,
  IO_WRITEV,
  type IoOp,
  type OnEnd,
  type Reactor,
} from "../../../native/reactor.ts";
import { shim, type Pointer } from "../../../native/shim.ts";
import type { BlockTarget, ClosableTarget, TargetInfo } from "../../target.ts";
import { Vectors, type Piece } from "./vectors.ts";

const EIO = -5;
/** Blocks in memory at once, of at most 64 KiB each. */
const MOST = 32;
/** Our own operations have tags above all of the guest's. */
const FIRST_TAG = 1 << 20;

/** A part of one block, which the operation `tag` transfers. */
interface Part {
  readonly tag: number;
  readonly writes: boolean;
  readonly offset: number;
  readonly length: number;
  /** Where the operation's data are; the part may need only the first of them. */
  readonly pieces: readonly Piece[];
}

export class WholeBlocks<Inner extends ClosableTarget> implements BlockTarget {
  readonly info: TargetInfo;
  readonly inner: Inner;
  readonly #blockBytes: number;
  readonly #reactor: Reactor;
  readonly #source: number;
  readonly #onEnd: OnEnd;
  readonly #memory: Mapping;
  readonly #vectors = new Vectors();
  /** What is carried out, by the place of its block in memory. */
  readonly #parts: (Part | undefined)[] = Array.from({ length: MOST }, () => undefined);
  /** By the same: the block has been read, and is being written. */
  readonly #isBack = new Uint8Array(MOST);
  #waiting: Part[] = [];

  /** `openInner` opens a target that copies the iovecs of an operation when it starts. */
  constructor(openInner: (onEnd: OnEnd) => Inner, blockBytes: number, reactor: Reactor, onEnd: OnEnd) {
    this.inner = openInner((tag, result) => this.#ended(tag, result));
    this.info = this.inner.info;
    this.#blockBytes = blockBytes;
    this.#reactor = reactor;
    this.#source = reactor.addSource(onEnd);
    this.#onEnd = onEnd;
    this.#memory = allocateMemory(MOST * blockBytes);
  }

  start(op: IoOp, tag: number, offset: number, length: number, address: number): void {
    if (op === IO_DISCARD) this.#discard(tag, offset, length);
    else if (op === IO_READ || op === IO_WRITE) this.#transfer(op, tag, offset, length, address);
    else if (op === IO_READV || op === IO_WRITEV) this.#transferVectors(op, tag, offset, length, address);
    else this.inner.start(op, tag, offset, length, address);
  }

  /** As in NbdTarget. */
  close(isOver: boolean): void {
    this.inner.close(isOver);
    this.#memory.close();
    this.#vectors.close();
  }

  #transfer(
    op: typeof IO_READ | typeof IO_WRITE,
    tag: number,
    offset: number,
    length: number,
    address: number,
  ): void {
    const whole = this.#wholeBytes(offset, length);
    if (whole > 0) this.inner.start(op, tag, offset, whole, address);
    else this.#take(op === IO_WRITE, tag, offset, length, [{ address, size: length }]);
  }

  #transferVectors(
    op: typeof IO_READV | typeof IO_WRITEV,
    tag: number,
    offset: number,
    count: number,
    address: number,
  ): void {
    const vectors = this.#vectors;
    const length = vectors.load(address, count);
    const whole = this.#wholeBytes(offset, length);
    if (whole > 0) this.inner.start(op, tag, offset, vectors.cut(whole), vectors.address);
    else this.#take(op === IO_WRITEV, tag, offset, length, vectors.pieces());
  }

  /** How many bytes from `offset` on are whole blocks. */
  #wholeBytes(offset: number, length: number): number {
    return offset % this.#blockBytes === 0 ? length - (length % this.#blockBytes) : 0;
  }

  /** Only whole blocks are trimmed: the rest may keep its bytes. */
  #discard(tag: number, offset: number, length: number): void {
    const block = this.#blockBytes;
    const from = Math.ceil(offset / block) * block;
    const to = Math.floor((offset + length) / block) * block;
    if (from < to) this.inner.start(IO_DISCARD, tag, from, to - from, 0);
    else this.#reactor.finish(this.#source, tag, 0);
  }

  /** Takes the part of the operation that is in its first block. */
  #take(writes: boolean, tag: number, offset: number, most: number, pieces: readonly Piece[]): void {
    const block = this.#blockBytes;
    const length = Math.min(most, block - (offset % block));
    const part: Part = { tag, writes, offset, length, pieces };
    if (!this.#begin(part)) this.#waiting.push(part);
  }

  /** Reads the part's block, unless it has to wait. */
  #begin(part: Part): boolean {
    const block = Math.floor(part.offset / this.#blockBytes);
    const isTaken = (it: Part | undefined): boolean =>
      it?.writes === true && Math.floor(it.offset / this.#blockBytes) === block;
    const place = this.#parts.indexOf(undefined);
    if (place < 0 || (part.writes && this.#parts.some(isTaken))) return false;
    this.#parts[place] = part;
    this.#isBack[place] = 0;
    this.#startWhole(IO_READ, place, part);
    return true;
  }

  #startWhole(op: typeof IO_READ | typeof IO_WRITE, place: number, { offset }: Part): void {
    const bytes = this.#blockBytes;
    this.inner.start(op, FIRST_TAG + place, offset - (offset % bytes), bytes, this.#addressOf(place));
  }

  #addressOf(place: number): number {
    return this.#memory.address + place * this.#blockBytes;
  }

  #ended(tag: number, result: number): void {
    const place = tag - FIRST_TAG;
    const part = place < 0 ? undefined : this.#parts[place];
    if (part === undefined) this.#onEnd(tag, result);
    else if (result < 0) this.#finish(place, part, result);
    else if (result !== this.#blockBytes) this.#finish(place, part, EIO);
    else if (this.#isBack[place] === 1) this.#finish(place, part, part.length);
    else {
      this.#copy(place, part);
      this.#isBack[place] = 1;
      if (part.writes) this.#startWhole(IO_WRITE, place, part);
      else this.#finish(place, part, part.length);
    }
  }

  /** Copies the part between the operation's memory and the block. */
  #copy(place: number, { writes, offset, length, pieces }: Part): void {
    const at = this.#addressOf(place) + (offset % this.#blockBytes);
    let done = 0;
    for (const { address, size } of pieces) {
      const count = Math.min(size, length - done);
      const [to, from] = writes ? [at + done, address] : [address, at + done];
      shim.xt_memory_copy(to as Pointer, from as Pointer, count);
      done += count;
      if (done === length) return;
    }
  }

  #finish(place: number, { tag }: Part, result: number): void {
    this.#parts[place] = undefined;
    if (this.#waiting.length > 0) this.#waiting = this.#waiting.filter((part) => !this.#begin(part));
    this.#onEnd(tag, result);
  }
}
