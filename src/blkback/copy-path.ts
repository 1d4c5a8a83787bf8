// Moves data by grant copy through our own buffers, a whole batch per call: the default. No guest page is ever
// mapped, so none can be held or pulled away (XSA-229, XSA-396), and the buffers suit direct I/O.
import { PAGE_SIZE, type Domid } from "../core/types.ts";
import { SECTOR_SIZE } from "../protocol/blkif.ts";
import { BufferPool } from "./buffers.ts";
import type { GrantPath, RequestCopies } from "./grants.ts";
import type { OperationTable } from "./operations.ts";
import { KIND_READ, type RequestTable } from "./requests.ts";

export class CopyPath implements GrantPath {
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

  begin(op: number): boolean {
    const operations = this.#operations;
    const row = operations.first[op];
    const pages = Math.ceil(this.#requests.length[row] / PAGE_SIZE);
    const page = this.#pool.allocate(pages);
    if (page < 0) return false;
    operations.page[op] = page;
    operations.pageCount[op] = pages;
    const address = this.#pool.addressOf(page);
    operations.address[op] = address;
    if (operations.kind[op] !== KIND_READ) this.#copyIn(row, address);
    return true;
  }

  extend(op: number, row: number): boolean {
    const operations = this.#operations;
    const bytes = operations.end[op] - operations.start[op];
    const have = operations.pageCount[op];
    const more = Math.ceil((bytes + this.#requests.length[row]) / PAGE_SIZE) - have;
    if (more > 0 && !this.#pool.extend(operations.page[op], have, more)) return false;
    operations.pageCount[op] = have + Math.max(0, more);
    if (operations.kind[op] !== KIND_READ) this.#copyIn(row, operations.address[op] + bytes);
    return true;
  }

  fetch(): void {
    this.#copies.run();
  }

  finish(op: number): void {
    const requests = this.#requests;
    let address = this.#operations.address[op];
    for (let row = this.#operations.first[op]; row >= 0; row = requests.next[row]) {
      this.#copyOut(row, address);
      address += requests.length[row];
    }
  }

  deliver(): void {
    this.#copies.run();
  }

  end(op: number): void {
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
