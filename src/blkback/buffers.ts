// The data plane's buffers: one aligned region, handed out in runs of pages. Next-fit, because runs are
// given back in about the order they were taken; a region that is full just holds requests back.
import { PAGE_SIZE } from "../core/types.ts";
import { allocateMemory, type Mapping } from "../native/memory.ts";

export class BufferPool {
  readonly memory: Mapping;
  readonly pageCount: number;
  readonly #taken: Uint8Array;
  #cursor = 0;
  #free: number;

  constructor(sizeBytes: number) {
    this.memory = allocateMemory(sizeBytes);
    this.pageCount = this.memory.sizeBytes / PAGE_SIZE;
    this.#taken = new Uint8Array(this.pageCount);
    this.#free = this.pageCount;
  }

  get freePages(): number {
    return this.#free;
  }

  /** The first page of a free run of `count`, or -1. */
  allocate(count: number): number {
    if (count > this.#free) return -1;
    const found = this.#find(count, this.#cursor, this.pageCount);
    const start = found >= 0 ? found : this.#find(count, 0, Math.min(this.#cursor + count, this.pageCount));
    if (start < 0) return -1;
    this.#take(start, count);
    this.#cursor = start + count === this.pageCount ? 0 : start + count;
    return start;
  }

  /** Makes the run of `have` pages at `start` longer by `more`; false when its neighbour is taken. */
  extend(start: number, have: number, more: number): boolean {
    const end = start + have;
    if (end + more > this.pageCount) return false;
    for (let page = end; page < end + more; page++) if (this.#taken[page] !== 0) return false;
    this.#take(end, more);
    this.#cursor = end + more === this.pageCount ? 0 : end + more;
    return true;
  }

  release(start: number, count: number): void {
    this.#taken.fill(0, start, start + count);
    this.#free += count;
  }

  addressOf(page: number): number {
    return this.memory.address + page * PAGE_SIZE;
  }

  close(): void {
    this.memory.close();
  }

  #take(start: number, count: number): void {
    if (count === 1) this.#taken[start] = 1;
    else this.#taken.fill(1, start, start + count);
    this.#free -= count;
  }

  #find(count: number, from: number, to: number): number {
    let run = 0;
    for (let page = from; page < to; page++) {
      run = this.#taken[page] === 0 ? run + 1 : 0;
      if (run === count) return page - count + 1;
    }
    return -1;
  }
}
