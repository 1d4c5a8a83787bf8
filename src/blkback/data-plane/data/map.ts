// Moves data by mapping the guest's pages for the duration of the I/O: no copy, but a map and an unmap per request.
// It is the alternative to copy.ts for large requests on targets that do not copy themselves. Pages are unmapped
// before the response is written, and the number of pages mapped at once is bounded (XSA-300).
import { PAGE_SIZE, type Domid } from "../../../core/types.ts";
import type { Mapping } from "../../../native/memory.ts";
import type { GrantTable } from "../../../platform/platform.ts";
import { SECTOR_SIZE } from "../../../protocol/blkif.ts";
import type { OperationTable } from "../operations.ts";
import { KIND_READ, type RequestTable } from "../requests.ts";
import type { DataPath } from "./path.ts";
import { VectorTable } from "./vectors.ts";

export class MapPath implements DataPath {
  readonly #domid: Domid;
  readonly #requests: RequestTable;
  readonly #operations: OperationTable;
  readonly #grants: GrantTable;
  readonly #mappings = new Map<number, Mapping>();
  readonly #vectors: VectorTable;
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
    this.#vectors = new VectorTable(operations.active.length);
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

  vectors(op: number): number {
    const requests = this.#requests;
    const vectors = this.#vectors;
    const { first, address, done } = this.#operations;
    const row = first[op];
    const segments = requests.segmentCount[row];
    vectors.begin(op, done[op]);
    for (let i = 0; i < segments; i++) {
      const at = address[op] + i * PAGE_SIZE + requests.firstSect(row, i) * SECTOR_SIZE;
      if (!vectors.add(at, requests.sectCount(row, i) * SECTOR_SIZE)) break;
    }
    return vectors.count;
  }

  vectorAddress(op: number): number {
    return this.#vectors.addressOf(op);
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
