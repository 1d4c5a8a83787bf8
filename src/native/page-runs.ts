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
    this.#taken.fill(1, start, start + count);
    this.#free -= count;
    this.#cursor = start + count === this.pageCount ? 0 : start + count;
    return start;
  }

  release(start: number, count: number): void {
    this.#taken.fill(0, start, start + count);
    this.#free += count;
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
