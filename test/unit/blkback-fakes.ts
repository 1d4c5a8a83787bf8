// What the tests of blkback's core put in the place of guest, grants and data: a guest's pages in memory of the test's,
// a data path that only counts, a clock, and choices that a test makes in every possible way.
import { PAGE_SIZE, toDomid, type Domid } from "../../src/core/types.ts";
import type { DataPath } from "../../src/blkback/data-plane/data/path.ts";
import type { Clock } from "../../src/blkback/limits/rate-limiter.ts";
import { XentoolError } from "../../src/core/errors.ts";
import {
  XT_COPY_DEST_GREF,
  XT_COPY_FOREIGN,
  XT_COPY_SEGMENT,
  XT_COPY_SIDE,
  XT_COPY_SOURCE_GREF,
} from "../../src/native/abi.ts";
import type { GrantCopyBatch } from "../../src/native/grant-copy.ts";
import { allocateMemory, Mapping } from "../../src/native/memory.ts";
import type { Timer } from "../../src/native/reactor.ts";
import type { Access, GrantTable } from "../../src/platform/platform.ts";

export const GUEST = toDomid(7);

/** Runs `body` once for every way in which its calls of `choose` can come out. How many there were. */
export function inEveryWay(body: (choose: (count: number) => number) => void): number {
  const taken: number[] = [];
  const limits: number[] = [];
  for (let ways = 1; ; ways++) {
    let depth = 0;
    const choose = (count: number): number => {
      if (depth === taken.length) taken.push(0);
      limits[depth] = count;
      return taken[depth++];
    };
    try {
      body(choose);
    } catch (error) {
      throw new Error(`with the choices ${taken.join(", ")}`, { cause: error });
    }
    taken.length = depth;
    while (taken.length > 0 && (taken.at(-1) as number) + 1 === limits[taken.length - 1]) taken.pop();
    if (taken.length === 0) return ways;
    taken[taken.length - 1] += 1;
  }
}

/** Time that stands still until somebody waits. */
export class TestClock implements Clock {
  nowMs = 1000;
  readonly originMs = 0;
  /** How often a wait ended. */
  wakeUps = 0;
  #timer: Timer | undefined;

  setTimer(timer: Timer, ms: number): void {
    timer.dueMs = this.nowMs + ms;
    this.#timer = timer;
  }

  /** When the timer comes. */
  get dueMs(): number {
    return this.#timer?.dueMs ?? Infinity;
  }

  /** Waits for the timer, which comes `lateMs` late. */
  wait(lateMs = 0): void {
    const timer = this.#timer;
    if (timer === undefined || timer.dueMs === Infinity) throw new Error("nothing would end this wait");
    this.nowMs = timer.dueMs + lateMs;
    timer.dueMs = Infinity;
    this.wakeUps++;
    timer.onDue();
  }
}

/** Memory at `address` for a moment, as bytes. */
function withBytes<T>(address: number, length: number, work: (bytes: Uint8Array) => T): T {
  const view = new Mapping(address, Math.ceil(length / 4) * 4, () => {});
  try {
    return work(view.bytes.subarray(0, length));
  } finally {
    view.close();
  }
}

export interface Copy {
  readonly toGuest: boolean;
  readonly domid: number;
  readonly ref: number;
  readonly offset: number;
  readonly length: number;
  /** Of our side. */
  readonly address: number;
}

/** What a batch is to copy, as the kernel reads it. */
export function copiesOf(batch: GrantCopyBatch): Copy[] {
  const view = new DataView(batch.memory.bytes.buffer);
  return Array.from({ length: batch.count }, (_, index) => {
    const at = index * XT_COPY_SEGMENT.bytes;
    const flags = view.getUint16(at + XT_COPY_SEGMENT.flags, true);
    if (flags !== XT_COPY_SOURCE_GREF && flags !== XT_COPY_DEST_GREF) throw new Error(`flags ${flags}`);
    const toGuest = flags === XT_COPY_DEST_GREF;
    const [guest, own] = toGuest
      ? [at + XT_COPY_SEGMENT.dest, at + XT_COPY_SEGMENT.source]
      : [at + XT_COPY_SEGMENT.source, at + XT_COPY_SEGMENT.dest];
    const foreign = guest + XT_COPY_SIDE.foreign;
    return {
      toGuest,
      domid: view.getUint16(foreign + XT_COPY_FOREIGN.domid, true),
      ref: view.getUint32(foreign + XT_COPY_FOREIGN.ref, true),
      offset: view.getUint16(foreign + XT_COPY_FOREIGN.offset, true),
      length: view.getUint16(at + XT_COPY_SEGMENT.length, true),
      address: Number(view.getBigUint64(own + XT_COPY_SIDE.address, true)),
    };
  });
}

/** Grants of GUEST: references 100, 101, … of pages that the test sees in `pages`. */
export class FakeGrants implements GrantTable {
  readonly pages: Uint8Array;
  readonly #memory: Mapping;
  /** References that fail. */
  readonly revoked = new Set<number>();
  /** Mappings that are open. */
  mapped = 0;
  /** Makes every copy as a whole fail. */
  copyErrno = 0;
  copyCalls = 0;

  constructor(pageCount: number) {
    this.#memory = allocateMemory(pageCount * PAGE_SIZE);
    this.pages = this.#memory.bytes;
  }

  ref(page: number): number {
    return 100 + page;
  }

  page(ref: number): Uint8Array | undefined {
    const at = (ref - 100) * PAGE_SIZE;
    if (this.revoked.has(ref) || at < 0 || at >= this.pages.length) return undefined;
    return this.pages.subarray(at, at + PAGE_SIZE);
  }

  copy(batch: GrantCopyBatch): number {
    this.copyCalls++;
    if (this.copyErrno !== 0) return this.copyErrno;
    const view = new DataView(batch.memory.bytes.buffer);
    for (const [index, copy] of copiesOf(batch).entries()) {
      const { domid, ref, offset, length, address, toGuest } = copy;
      if (domid !== GUEST) throw new Error("another domain");
      if (offset + length > PAGE_SIZE) throw new Error(`${length} bytes at ${offset} are no part of a page`);
      const page = this.page(ref);
      const status = index * XT_COPY_SEGMENT.bytes + XT_COPY_SEGMENT.status;
      view.setInt16(status, page === undefined ? -3 : 0, true);
      const part = page?.subarray(offset, offset + length);
      withBytes(address, length, (bytes) => {
        if (part === undefined) return;
        if (toGuest) part.set(bytes);
        else bytes.set(part);
      });
    }
    return 0;
  }

  /** A page itself. Of several pages a copy, which goes back to them when it is closed. */
  map(domid: Domid, refs: ArrayLike<number>, access: Access): Mapping {
    if (domid !== GUEST) throw new Error("another domain");
    const pages = Array.from(refs, (ref) => this.page(ref));
    if (pages.includes(undefined)) throw new XentoolError("io", "no such grant");
    if (pages.length === 1) {
      this.mapped++;
      const at = this.#memory.address + (refs[0] - 100) * PAGE_SIZE;
      return new Mapping(at, PAGE_SIZE, () => this.mapped--);
    }
    const memory = allocateMemory(pages.length * PAGE_SIZE);
    pages.forEach((page, index) => memory.bytes.set(page as Uint8Array, index * PAGE_SIZE));
    this.mapped++;
    return new Mapping(memory.address, memory.sizeBytes, () => {
      this.mapped--;
      if (access === "rw")
        pages.forEach((page, index) =>
          page?.set(memory.bytes.subarray(index * PAGE_SIZE, (index + 1) * PAGE_SIZE)),
        );
      memory.close();
    });
  }

  close(): void {
    this.#memory.close();
  }
}

/** A data path without data: room for `room` operations with data at once, and `joins` says what may be merged. */
export class FakePath implements DataPath {
  readonly begun = new Set<number>();
  readonly #room: number;
  readonly #joins: boolean;

  constructor(room: number, joins: boolean) {
    this.#room = room;
    this.#joins = joins;
  }

  reserve(op: number): boolean {
    if (this.begun.size >= this.#room) return false;
    this.begun.add(op);
    return true;
  }

  append(): boolean {
    return this.#joins;
  }

  release(op: number): void {
    this.begun.delete(op);
  }

  gather(): void {}
  scatter(): void {}
  close(): void {}

  vectors(): number {
    return 0;
  }

  vectorAddress(): number {
    return 0;
  }
}
