// I/O operations being built or in flight, as columns. An operation serves one request or a chain of adjacent ones.
// The scheduler compares new requests with the list of active operations.

/** A barrier's steps; other operations have only STAGE_IO. */
export const STAGE_IO = 0;
export const STAGE_PRE_FLUSH = 1;
export const STAGE_POST_FLUSH = 2;

export class OperationTable {
  readonly kind: Uint8Array;
  readonly stage: Uint8Array;
  /** First and last request of the chain. */
  readonly first: Int16Array;
  readonly last: Int16Array;
  /** Byte range on the disk, [start, end), and how much of it is done. */
  readonly start: Float64Array;
  readonly end: Float64Array;
  readonly done: Float64Array;
  /** How often it was submitted again because it had only been interrupted or put off. */
  readonly tries: Uint16Array;
  /** Arrival number of its first request. */
  readonly sequence: Float64Array;
  /** Address of its data, set by the data path. */
  readonly address: Float64Array;
  /** For the data path's use: first page and page count of its buffer. */
  readonly page: Int32Array;
  readonly pageCount: Int32Array;
  /** Operations between `open` and `close`, in no particular order. */
  readonly active: Uint16Array;
  activeCount = 0;
  /** Number of active operations that change the disk. */
  writing = 0;
  readonly #position: Uint16Array;
  readonly #free: Uint16Array;
  #freeCount: number;

  constructor(size: number) {
    this.kind = new Uint8Array(size);
    this.stage = new Uint8Array(size);
    this.first = new Int16Array(size);
    this.last = new Int16Array(size);
    this.start = new Float64Array(size);
    this.end = new Float64Array(size);
    this.done = new Float64Array(size);
    this.tries = new Uint16Array(size);
    this.sequence = new Float64Array(size);
    this.address = new Float64Array(size);
    this.page = new Int32Array(size);
    this.pageCount = new Int32Array(size);
    this.active = new Uint16Array(size);
    this.#position = new Uint16Array(size);
    this.#free = Uint16Array.from({ length: size }, (_, index) => size - 1 - index);
    this.#freeCount = size;
  }

  /**
   * Opens a new active operation for request `row`. There are as many operations as requests, so one is always free.
   */
  open(row: number, kind: number, start: number, length: number, sequence: number, writes: boolean): number {
    const op = this.#free[--this.#freeCount];
    this.kind[op] = kind;
    this.stage[op] = STAGE_IO;
    this.first[op] = row;
    this.last[op] = row;
    this.start[op] = start;
    this.end[op] = start + length;
    this.done[op] = 0;
    this.tries[op] = 0;
    this.sequence[op] = sequence;
    this.address[op] = 0;
    this.pageCount[op] = 0;
    this.#position[op] = this.activeCount;
    this.active[this.activeCount++] = op;
    if (writes) this.writing++;
    return op;
  }

  close(op: number, writes: boolean): void {
    const hole = this.#position[op];
    const moved = this.active[--this.activeCount];
    this.active[hole] = moved;
    this.#position[moved] = hole;
    this.#free[this.#freeCount++] = op;
    if (writes) this.writing--;
  }
}
