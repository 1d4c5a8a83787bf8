// Moves data by grant copy through our own buffers, a whole batch per call: the default. No guest page is ever
// mapped, so none can be held or pulled away (XSA-229, XSA-396), and the buffers suit direct I/O.
import { PAGE_SIZE, type Domid } from "../../../core/types.ts";
import { SECTOR_SIZE } from "../../../protocol/blkif.ts";
import { BufferPool } from "./buffers.ts";
import type { OperationTable } from "../operations.ts";
import { KIND_READ, type RequestTable } from "../requests.ts";
import type { RequestCopies } from "./copies.ts";
import type { DataPath } from "./path.ts";

export class CopyPath implements DataPath {
  readonly #domid: Domid;
  readonly #requests: RequestTable;
  readonly #operations: OperationTable;
  readonly #copies: RequestCopies;
  readonly #pool: BufferPool;

  constructor(
    domid: Domid,
    requests: RequestTable,
    operations: OperationTable,
    copies: RequestCopies,
    poolBytes: number,
  ) {
    this.#domid = domid;
    this.#requests = requests;
    this.#operations = operations;
    this.#copies = copies;
    this.#pool = new BufferPool(poolBytes);
  }

  reserve(op: number): boolean {
    const operations = this.#operations;
    const row = operations.first[op];
    const pages = Math.ceil(this.#requests.length[row] / PAGE_SIZE);
    const page = this.#pool.allocate(pages);
    if (page < 0) return false;
    operations.page[op] = page;
    operations.pageCount[op] = pages;
    operations.address[op] = this.#pool.addressOf(page);
    return true;
  }

  append(op: number, row: number): boolean {
    const operations = this.#operations;
    const bytes = operations.end[op] - operations.start[op];
    const have = operations.pageCount[op];
    const more = Math.ceil((bytes + this.#requests.length[row]) / PAGE_SIZE) - have;
    if (more > 0 && !this.#pool.extend(operations.page[op], have, more)) return false;
    operations.pageCount[op] = have + Math.max(0, more);
    return true;
  }

  gather(ops: Uint16Array, count: number): void {
    const { kind, first, address } = this.#operations;
    const { next, length } = this.#requests;
    for (let i = 0; i < count; i++) {
      const op = ops[i];
      if (kind[op] === KIND_READ) continue;
      let to = address[op];
      for (let row = first[op]; row >= 0; row = next[row]) {
        this.#copyIn(row, to);
        to += length[row];
      }
    }
    this.#copies.run();
  }

  scatter(ops: Uint16Array, count: number): void {
    const { first, address } = this.#operations;
    const { next, length } = this.#requests;
    for (let i = 0; i < count; i++) {
      let from = address[ops[i]];
      for (let row = first[ops[i]]; row >= 0; row = next[row]) {
        this.#copyOut(row, from);
        from += length[row];
      }
    }
    this.#copies.run();
  }

  release(op: number): void {
    const { page, pageCount } = this.#operations;
    if (pageCount[op] !== 0) this.#pool.release(page[op], pageCount[op]);
  }

  vectors(): number {
    return 0;
  }

  vectorAddress(): number {
    return 0;
  }

  close(): void {
    this.#pool.close();
  }

  #copyIn(row: number, address: number): void {
    const requests = this.#requests;
    const count = requests.segmentCount[row];
    let to = address;
    for (let i = 0; i < count; i++) {
      const length = requests.sectCount(row, i) * SECTOR_SIZE;
      const offset = requests.firstSect(row, i) * SECTOR_SIZE;
      this.#copies.fromGrant(row, this.#domid, requests.gref(row, i), offset, length, to);
      to += length;
    }
  }

  #copyOut(row: number, address: number): void {
    const requests = this.#requests;
    const count = requests.segmentCount[row];
    let from = address;
    for (let i = 0; i < count; i++) {
      const length = requests.sectCount(row, i) * SECTOR_SIZE;
      const offset = requests.firstSect(row, i) * SECTOR_SIZE;
      this.#copies.toGrant(row, this.#domid, requests.gref(row, i), offset, length, from);
      from += length;
    }
  }
}
