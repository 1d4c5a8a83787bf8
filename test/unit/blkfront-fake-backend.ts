// A backend in plain memory that writes its own bytes: it reads requests off the ring as public/io/blkif.h
// lays them out and answers what, when and as wrongly as the test likes. Nothing of src/blkback is used.
import { GrantedPool } from "../../src/blkfront/granted-pool.ts";
import { FrontDataPlane } from "../../src/blkfront/data-plane.ts";
import { FrontRing } from "../../src/blkfront/front-ring.ts";
import { XentoolError } from "../../src/core/errors.ts";
import { toDomid, type EvtchnPort, type GrantRef } from "../../src/core/types.ts";
import { allocateMemory, type Mapping } from "../../src/native/memory.ts";
import type { EventChannels, GrantShare, SharedPages } from "../../src/platform/platform.ts";
import { ABI_X86_64, type BlkifAbi } from "../../src/protocol/blkif.ts";

export interface SeenSegment {
  readonly gref: number;
  readonly first: number;
  readonly last: number;
}

export interface SeenRequest {
  readonly op: number;
  /** Of an indirect request the operation inside, else `op`. */
  readonly echo: number;
  readonly id: bigint;
  readonly handle: number;
  readonly sector: bigint;
  readonly segments: readonly SeenSegment[];
  /** DISCARD. */
  readonly flag: number;
  readonly sectors: bigint;
}

/** References of the pool start here, so that a page's number is no valid reference. */
const FIRST_REF = 1000;

/** Plain memory as granted pages; it fails as gntalloc does when `limit` pages are out. */
class MemoryShare implements GrantShare {
  readonly pages = new Map<number, { mapping: Mapping; offset: number; access: string }>();
  readonly #limit: number;
  #next = FIRST_REF;

  constructor(limit: number) {
    this.#limit = limit;
  }

  share(_domid: number, pageCount: number, access: "r" | "rw"): SharedPages {
    if (this.pages.size + pageCount > this.#limit)
      throw new XentoolError("io", "no page left", { errno: "ENOSPC" });
    const mapping = allocateMemory(pageCount * 4096);
    const refs = Array.from({ length: pageCount }, () => this.#next++ as GrantRef);
    for (const [index, ref] of refs.entries()) this.pages.set(ref, { mapping, offset: index * 4096, access });
    return { refs, mapping };
  }

  close(): void {}
}

export interface FakeOptions {
  readonly abi?: BlkifAbi;
  readonly ringPages?: number;
  readonly poolPages?: number;
  readonly maxIndirectSegments?: number;
}

export class FakeBackend {
  readonly plane: FrontDataPlane;
  readonly ring: FrontRing;
  readonly pool: GrantedPool;
  readonly memory: Mapping;
  readonly channels: EventChannels;
  /** Completions in order. */
  readonly done: { tag: number; status: number }[] = [];
  notified = 0;
  readonly #abi: BlkifAbi;
  readonly #share = new MemoryShare(2048);
  readonly #view: DataView;
  #reqCons = 0;
  #rspProd = 0;

  constructor(options: FakeOptions = {}) {
    this.#abi = options.abi ?? ABI_X86_64;
    this.memory = allocateMemory((options.ringPages ?? 1) * 4096);
    this.#view = new DataView(this.memory.bytes.buffer);
    this.ring = new FrontRing(this.memory, this.#abi);
    this.pool = GrantedPool.share(this.#share, toDomid(0), options.poolPages ?? 64);
    this.channels = {
      fd: -1,
      bindInterdomain: (_domid, port) => port,
      bindUnbound: () => 1 as EvtchnPort,
      notify: () => {
        this.notified++;
        return 0;
      },
      pending: () => 0,
      unmask: () => 0,
      unbind: () => {},
      restrict: () => true,
      close: () => {},
    };
    this.plane = new FrontDataPlane({
      rings: [{ ring: this.ring, port: 1 as EvtchnPort }],
      pool: this.pool,
      channels: this.channels,
      handle: 51728,
      maxIndirectSegments: options.maxIndirectSegments ?? 0,
      tags: 1024,
    });
    this.plane.onDone = (tag, status) => void this.done.push({ tag, status });
  }

  get slots(): number {
    return this.ring.slots;
  }

  /** Requests that were pushed and not taken yet. */
  take(): SeenRequest[] {
    const prod = this.#view.getUint32(0, true);
    const seen: SeenRequest[] = [];
    for (; this.#reqCons !== prod; this.#reqCons = (this.#reqCons + 1) >>> 0)
      seen.push(this.#read(this.#slotAt(this.#reqCons)));
    return seen;
  }

  /** Puts a response on the ring, right or wrong, and publishes it. */
  answer(id: bigint, op: number, status = 0): void {
    const at = this.#slotAt(this.#rspProd);
    this.#view.setBigUint64(at, id, true);
    this.#view.setUint8(at + 8, op);
    this.#view.setUint8(at + 9, 0xaa);
    this.#view.setInt16(at + 10, status, true);
    this.#rspProd = (this.#rspProd + 1) >>> 0;
    this.publish(this.#rspProd);
  }

  publish(rspProd: number): void {
    Atomics.store(this.memory.words, 2, rspProd);
  }

  /** What a grant reference stands for. */
  page(gref: number): { bytes: Uint8Array; access: string } {
    const page = this.#share.pages.get(gref);
    if (page === undefined) throw new Error(`reference ${gref} was never granted`);
    return { bytes: page.mapping.bytes.subarray(page.offset, page.offset + 4096), access: page.access };
  }

  close(): void {
    this.ring.close();
    this.pool.close();
    this.memory.close();
  }

  #slotAt(index: number): number {
    return 64 + (index & (this.slots - 1)) * this.#abi.slotBytes;
  }

  #read(at: number): SeenRequest {
    const view = this.#view;
    const gap = this.#abi.gapBytes;
    const op = view.getUint8(at);
    const second = view.getUint8(at + 1);
    const common = {
      op,
      echo: op === 6 ? second : op,
      id: view.getBigUint64(at + 8 - gap, true),
      handle: view.getUint16(op === 6 ? at + 24 - gap : at + 2, true),
      sector: view.getBigUint64(at + 16 - gap, true),
      flag: second,
      sectors: op === 5 ? view.getBigUint64(at + 24 - gap, true) : 0n,
    };
    if (op === 5) return { ...common, segments: [] };
    if (op !== 6)
      return {
        ...common,
        segments: Array.from({ length: second }, (_, index) => readSegment(view, at + 24 - gap + index * 8)),
      };
    const count = view.getUint16(at + 2, true);
    const segments: SeenSegment[] = [];
    for (let index = 0; index < count; index++) {
      const gref = view.getUint32(at + 28 - gap + Math.floor(index / 512) * 4, true);
      const { bytes } = this.page(gref);
      segments.push(
        readSegment(new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength), (index % 512) * 8),
      );
    }
    return { ...common, segments };
  }
}

function readSegment(view: DataView, at: number): SeenSegment {
  return { gref: view.getUint32(at, true), first: view.getUint8(at + 4), last: view.getUint8(at + 5) };
}
