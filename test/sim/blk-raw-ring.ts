// The frontend's end of one ring, written byte by byte: whatever a test wants, and nothing of src/blkfront, so that
// both sides' mistakes cannot cancel out.
import type { SharedPages } from "../../src/platform/platform.ts";
import type { BlkifAbi } from "../../src/protocol/blkif.ts";
import { ringSlots } from "../../src/protocol/ring.ts";

export interface Segment {
  readonly gref: number;
  readonly first?: number;
  readonly last?: number;
}

export interface Request {
  readonly op: number;
  readonly id?: bigint;
  readonly sector?: number | bigint;
  readonly segments?: readonly Segment[];
  /** Overrides segments.length. */
  readonly count?: number;
}

export interface Response {
  readonly id: bigint;
  readonly op: number;
  readonly status: number;
}

export class RawRing {
  readonly ring: SharedPages;
  readonly abi: BlkifAbi;
  readonly slots: number;
  #reqProd = 0;
  #rspCons = 0;

  constructor(ring: SharedPages, abi: BlkifAbi) {
    this.ring = ring;
    this.abi = abi;
    this.slots = ringSlots(ring.refs.length, abi.slotBytes);
    this.#words[1] = 1;
    this.#words[3] = 1;
  }

  get #words(): Uint32Array {
    return this.ring.mapping.words;
  }

  get reqProd(): number {
    return this.#reqProd;
  }

  /** Starts both counters elsewhere: before the first request only, and before the queue attached. */
  setIndex(word: number, value: number): void {
    Atomics.store(this.#words, word, value);
  }

  /** Byte offset of slot `index` in the ring's memory. */
  slotAt(index: number): number {
    return 64 + (index & (this.slots - 1)) * this.abi.slotBytes;
  }

  /** Puts raw request bytes (layout of this ABI) into the next slot. */
  putRaw(bytes: Uint8Array): void {
    this.ring.mapping.bytes.set(bytes.subarray(0, this.abi.slotBytes), this.slotAt(this.#reqProd));
    this.#reqProd = (this.#reqProd + 1) >>> 0;
  }

  /** READ, WRITE, BARRIER, FLUSH. */
  put(request: Request): void {
    const { slot, view, at } = this.#slot(request.op, request.id ?? 0n);
    const segments = request.segments ?? [];
    slot[1] = request.count ?? segments.length;
    view.setBigUint64(at(16), BigInt(request.sector ?? 0), true);
    for (const [index, segment] of segments.slice(0, 11).entries())
      writeSegment(view, at(24) + index * 8, segment);
    this.putRaw(slot);
  }

  putDiscard(sector: number | bigint, count: number | bigint, id = 0n, flag = 0): void {
    const { slot, view, at } = this.#slot(5, id);
    slot[1] = flag;
    view.setBigUint64(at(16), BigInt(sector), true);
    view.setBigUint64(at(24), BigInt(count), true);
    this.putRaw(slot);
  }

  putIndirect(
    inner: number,
    count: number,
    sector: number | bigint,
    grefs: readonly number[],
    id = 0n,
  ): void {
    const { slot, view, at } = this.#slot(6, id);
    slot[1] = inner;
    view.setUint16(2, count, true);
    view.setBigUint64(at(16), BigInt(sector), true);
    for (const [index, gref] of grefs.entries()) view.setUint32(at(28) + index * 4, gref, true);
    this.putRaw(slot);
  }

  /** Publishes what was put. */
  push(): void {
    Atomics.store(this.#words, 0, this.#reqProd);
  }

  takeResponses(): Response[] {
    const prod = Atomics.load(this.#words, 2);
    const view = new DataView(this.ring.mapping.bytes.buffer);
    const taken: Response[] = [];
    for (; this.#rspCons !== prod; this.#rspCons = (this.#rspCons + 1) >>> 0) {
      const at = this.slotAt(this.#rspCons);
      taken.push({
        id: view.getBigUint64(at, true),
        op: view.getUint8(at + 8),
        status: view.getInt16(at + 10, true),
      });
    }
    return taken;
  }

  #slot(op: number, id: bigint): { slot: Uint8Array; view: DataView; at: (offset: number) => number } {
    const slot = new Uint8Array(112);
    const view = new DataView(slot.buffer);
    const at = (offset: number): number => offset - this.abi.gapBytes;
    slot[0] = op;
    view.setBigUint64(at(8), id, true);
    return { slot, view, at };
  }
}

export function writeSegment(view: DataView, at: number, segment: Segment): void {
  view.setUint32(at, segment.gref, true);
  view.setUint8(at + 4, segment.first ?? 0);
  view.setUint8(at + 5, segment.last ?? 7);
}
