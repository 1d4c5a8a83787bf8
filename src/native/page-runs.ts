// Which pages of a region are taken: hands out runs of neighbouring ones. Next-fit, because runs are given
// back in about the order they were taken.

export class PageRuns {
  readonly pageCount: number;
  readonly #taken: Uint8Array;
  #cursor = 0;
  #free: number;

  constructor(pageCount: number) {
    this.pageCount = pageCount;
    this.#taken = new Uint8Array(pageCount);
    this.#free = pageCount;
  }

  get freePages(): number {
    return this.#free;
  }

  /** The first page of a free run of `count`, or -1. A single page is found whenever one is free. */
  allocate(count: number): number {
    if (count > this.#free) return -1;
    const found = this.#find(count, this.#cursor, this.pageCount);
    const start = found >= 0 ? found : this.#find(count, 0, Math.min(this.#cursor + count, this.pageCount));
    if (start < 0) return -1;
    this.#take(start, count);
    return start;
  }

  /** Makes the run of `have` pages at `start` longer by `more`; false when its neighbour is taken. */
  extend(start: number, have: number, more: number): boolean {
    const end = start + have;
    if (end + more > this.pageCount) return false;
    for (let page = end; page < end + more; page++) if (this.#taken[page] !== 0) return false;
    this.#take(end, more);
    return true;
  }

  release(start: number, count: number): void {
    this.#taken.fill(0, start, start + count);
    this.#free += count;
  }

  #take(start: number, count: number): void {
    const end = start + count;
    if (count === 1) this.#taken[start] = 1;
    else this.#taken.fill(1, start, end);
    this.#free -= count;
    this.#cursor = end === this.pageCount ? 0 : end;
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
