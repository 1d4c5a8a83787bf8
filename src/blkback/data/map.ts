// Moves data by mapping the guest's pages for the duration of the I/O: no copy, but a map and an unmap per request.
// It is the alternative to copy.ts for large requests on targets that do not copy themselves. Pages are unmapped
// before the response is written, and the number of pages mapped at once is bounded (XSA-300).
import { PAGE_SIZE, type Domid } from "../../core/types.ts";
import { allocateMemory, type Mapping } from "../../native/memory.ts";
import type { GrantTable } from "../../platform/platform.ts";
import { SECTOR_SIZE } from "../../protocol/blkif.ts";
import { MAX_VECTORS } from "../bounds.ts";
import type { OperationTable } from "../operations.ts";
import { KIND_READ, type RequestTable } from "../requests.ts";
import type { DataPath } from "./path.ts";

const IOVEC_BYTES = 16;

export class MapPath implements DataPath {
  readonly #domid: Domid;
  readonly #requests: RequestTable;
  readonly #operations: OperationTable;
  readonly #grants: GrantTable;
  readonly #mappings = new Map<number, Mapping>();
  /** struct iovec: base and length in turn, MAX_VECTORS per operation. */
  readonly #vectors: Mapping;
  readonly #vectorWords: BigUint64Array;
  #freePages: number;

  constructor(
    domid: Domid,
    requests: RequestTable,
    operations: OperationTable,
    grants: GrantTable,
    maxPages: number,
  ) {
    this.#domid = domid;
    this.#requests = requests;
    this.#operations = operations;
    this.#grants = grants;
    this.#freePages = maxPages;
    this.#vectors = allocateMemory(operations.active.length * MAX_VECTORS * IOVEC_BYTES);
    this.#vectorWords = new BigUint64Array(this.#vectors.bytes.buffer);
  }

  reserve(op: number): boolean {
    const count = this.#requests.segmentCount[this.#operations.first[op]];
    if (count > this.#freePages) return false;
    this.#operations.pageCount[op] = count;
    this.#freePages -= count;
    return true;
  }

  append(): boolean {
    return false;
  }

  gather(ops: Uint16Array, count: number): void {
    for (let i = 0; i < count; i++) if (this.#operations.pageCount[ops[i]] !== 0) this.#map(ops[i]);
  }

  scatter(): void {}

  release(op: number): void {
    this.#freePages += this.#operations.pageCount[op];
    this.#mappings.get(op)?.close();
    this.#mappings.delete(op);
  }

  /** Describes the request's pieces from byte `done` on; pieces that are adjacent in memory become one. */
  vectors(op: number): number {
    const requests = this.#requests;
    const row = this.#operations.first[op];
    const words = this.#vectorWords;
    const base = op * MAX_VECTORS * 2;
    const segments = requests.segmentCount[row];
    let skip = this.#operations.done[op];
    let count = 0;
    let end = -1;
    for (let i = 0; i < segments; i++) {
      let length = requests.sectCount(row, i) * SECTOR_SIZE;
      let address = this.#operations.address[op] + i * PAGE_SIZE + requests.firstSect(row, i) * SECTOR_SIZE;
      const skipped = Math.min(skip, length);
      skip -= skipped;
      length -= skipped;
      address += skipped;
      if (length === 0) continue;
      if (address === end) {
        words[base + count * 2 - 1] = words[base + count * 2 - 1] + BigInt(length);
      } else {
        if (count === MAX_VECTORS) break;
        words[base + count * 2] = BigInt(address);
        words[base + count * 2 + 1] = BigInt(length);
        count++;
      }
      end = address + length;
    }
    return count;
  }

  vectorAddress(op: number): number {
    return this.#vectors.address + op * MAX_VECTORS * IOVEC_BYTES;
  }

  close(): void {
    for (const mapping of this.#mappings.values()) mapping.close();
    this.#mappings.clear();
    this.#vectors.close();
  }

  #map(op: number): void {
    const operations = this.#operations;
    const requests = this.#requests;
    const row = operations.first[op];
    const refs = Array.from({ length: requests.segmentCount[row] }, (_, index) => requests.gref(row, index));
    try {
      const access = operations.kind[op] === KIND_READ ? "rw" : "r";
      const mapping = this.#grants.map(this.#domid, refs, access);
      this.#mappings.set(op, mapping);
      operations.address[op] = mapping.address;
    } catch {
      requests.failed[row] = 1;
    }
  }
}
