// Keeps track of a region's free pages, and hands out runs of adjacent ones. It takes the lowest run that fits, so
// that recently used pages are reused while they are still in the cache; cycling through the whole region would find
// cold memory.

export class PageRuns {
  readonly pageCount: number;
  readonly #taken: Uint8Array;
  #free: number;
  /** No page below this one is free. */
  #lowest = 0;

  constructor(pageCount: number) {
    this.pageCount = pageCount;
    this.#taken = new Uint8Array(pageCount);
    this.#free = pageCount;
  }

  get freePages(): number {
    return this.#free;
  }

  /** Takes a free run of `count` pages; returns its first page, or -1. A single page is found whenever one is free. */
  allocate(count: number): number {
    if (count > this.#free) return -1;
    let run = 0;
    for (let page = this.#lowest; page < this.pageCount; page++) {
      run = this.#taken[page] === 0 ? run + 1 : 0;
      if (run === count) return this.#take(page - count + 1, count);
    }
    return -1;
  }

  /**
   * Extends the run of `have` pages at `start` by `more`. Returns false when one of those pages is taken or outside.
   */
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
    if (start < this.#lowest) this.#lowest = start;
  }

  #take(start: number, count: number): number {
    if (count === 1) this.#taken[start] = 1;
    else this.#taken.fill(1, start, start + count);
    this.#free -= count;
    if (start === this.#lowest) this.#lowest = start + count;
    return start;
  }
}
