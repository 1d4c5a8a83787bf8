// Moves data straight between the target and the guest's pages, which stay mapped from one request to the next: neither
// a copy nor a grant operation per request. Only for a guest that agreed to it, because such a guest copies within its
// own memory instead. Pages belong to the ring whose requests name them.
import type { Domid } from "../../../core/types.ts";
import { allocateMemory, type Mapping } from "../../../native/memory.ts";
import type { GrantTable } from "../../../platform/platform.ts";
import { SECTOR_SIZE } from "../../../protocol/blkif.ts";
import type { OperationTable } from "../operations.ts";
import type { Clock } from "../../limits/rate-limiter.ts";
import type { RequestTable } from "../requests.ts";
import { PersistentGrants, NO_PAGE } from "./persistent-grants.ts";
import type { DataPath, SegmentSource } from "./path.ts";
import { VectorTable } from "./vectors.ts";

/** In `operations.page`: whether the operation holds its pages. */
const RESERVED = 0;
const HELD = 1;

export class PersistentPath implements DataPath, SegmentSource {
  readonly #requests: RequestTable;
  readonly #operations: OperationTable;
  /** By lane. */
  readonly #lanes: readonly PersistentGrants[];
  readonly #vectors: VectorTable;
  readonly #places: Mapping;
  /** Place of each segment's page among those of its lane: as many per request as it may have segments. */
  readonly #placeOf: Uint16Array;
  #freePages: number;

  /** Requests under way name up to `maxPages` pages. */
  constructor(
    domid: Domid,
    requests: RequestTable,
    operations: OperationTable,
    grants: GrantTable,
    clock: Clock,
    maxPages: number,
  ) {
    this.#requests = requests;
    this.#operations = operations;
    this.#lanes = Array.from(
      { length: requests.laneCount },
      () => new PersistentGrants(domid, grants, clock),
    );
    this.#freePages = maxPages;
    this.#vectors = new VectorTable(operations.active.length);
    this.#places = allocateMemory(
      requests.next.length * requests.segmentStride * Uint16Array.BYTES_PER_ELEMENT,
    );
    this.#placeOf = new Uint16Array(this.#places.bytes.buffer);
  }

  reserve(op: number): boolean {
    const { first, page, pageCount } = this.#operations;
    const count = this.#requests.segmentCount[first[op]];
    if (count > this.#freePages) return false;
    this.#freePages -= count;
    pageCount[op] = count;
    page[op] = RESERVED;
    return true;
  }

  append(op: number, row: number): boolean {
    const count = this.#requests.segmentCount[row];
    if (count > this.#freePages) return false;
    this.#freePages -= count;
    this.#operations.pageCount[op] += count;
    return true;
  }

  gather(ops: Uint16Array, count: number): void {
    const { first, page, pageCount } = this.#operations;
    const { next } = this.#requests;
    for (let i = 0; i < count; i++) {
      const op = ops[i];
      if (pageCount[op] === 0) continue;
      page[op] = HELD;
      for (let row = first[op]; row >= 0; row = next[row]) this.#hold(row);
    }
  }

  scatter(): void {}

  release(op: number): void {
    const { first, page, pageCount } = this.#operations;
    const { next } = this.#requests;
    if (pageCount[op] === 0) return;
    this.#freePages += pageCount[op];
    if (page[op] === HELD) for (let row = first[op]; row >= 0; row = next[row]) this.#letGo(row);
  }

  vectors(op: number): number {
    const requests = this.#requests;
    const vectors = this.#vectors;
    const { first, done } = this.#operations;
    vectors.begin(op, done[op]);
    for (let row = first[op]; row >= 0; row = requests.next[row]) {
      const pages = this.#lanes[requests.laneOf(row)];
      const base = row * requests.segmentStride;
      const segments = requests.segmentCount[row];
      for (let i = 0; i < segments; i++) {
        const at = pages.addressOf(this.#placeOf[base + i]) + requests.firstSect(row, i) * SECTOR_SIZE;
        if (!vectors.add(at, requests.sectCount(row, i) * SECTOR_SIZE)) return vectors.count;
      }
    }
    return vectors.count;
  }

  vectorAddress(op: number): number {
    return this.#vectors.addressOf(op);
  }

  /** Copies at once, into the segments of `row`. */
  fromGrant(row: number, _domid: Domid, ref: number, offset: number, length: number, address: number): void {
    const requests = this.#requests;
    const pages = this.#lanes[requests.laneOf(row)];
    const place = pages.acquire(ref);
    if (place === NO_PAGE) {
      requests.failed[row] = 1;
      return;
    }
    const { segments } = requests;
    segments.bytes.set(pages.bytesOf(place).subarray(offset, offset + length), address - segments.address);
    pages.release(place);
  }

  run(): void {}

  close(): void {
    for (const pages of this.#lanes) pages.close();
    this.#vectors.close();
    this.#places.close();
  }

  #hold(row: number): void {
    const requests = this.#requests;
    const pages = this.#lanes[requests.laneOf(row)];
    const base = row * requests.segmentStride;
    const segments = requests.segmentCount[row];
    for (let i = 0; i < segments; i++) {
      const place = pages.acquire(requests.gref(row, i));
      if (place === NO_PAGE) requests.failed[row] = 1;
      this.#placeOf[base + i] = place;
    }
  }

  #letGo(row: number): void {
    const requests = this.#requests;
    const pages = this.#lanes[requests.laneOf(row)];
    const base = row * requests.segmentStride;
    const segments = requests.segmentCount[row];
    for (let i = 0; i < segments; i++) pages.release(this.#placeOf[base + i]);
  }
}
