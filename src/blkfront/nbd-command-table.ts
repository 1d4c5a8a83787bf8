// What the NBD server has in flight, as columns: commands, and the chunks of I/O that they are split into. Rows are
// taken and released; nothing is allocated while serving.
import type { NbdConnection } from "./nbd-connection.ts";

export class CommandTable {
  readonly connection: (NbdConnection | undefined)[];
  readonly type: Uint16Array;
  readonly cookieHigh: Uint32Array;
  readonly cookieLow: Uint32Array;
  readonly offset: Float64Array;
  readonly length: Float64Array;
  /** Bytes whose I/O has been started, and the number of its chunks that are not done. */
  readonly started: Float64Array;
  readonly pending: Uint16Array;
  /** NBD_E*; 0: none yet. */
  readonly error: Uint8Array;
  /** It ends with a flush of its own, once. */
  readonly fua: Uint8Array;
  /** Simple replies cannot be interleaved, so this read has the connection for itself, chunk by chunk. */
  readonly exclusive: Uint8Array;
  readonly #free: Uint16Array;
  #freeCount: number;

  constructor(size: number) {
    this.connection = Array.from({ length: size }, () => undefined);
    this.type = new Uint16Array(size);
    this.cookieHigh = new Uint32Array(size);
    this.cookieLow = new Uint32Array(size);
    this.offset = new Float64Array(size);
    this.length = new Float64Array(size);
    this.started = new Float64Array(size);
    this.pending = new Uint16Array(size);
    this.error = new Uint8Array(size);
    this.fua = new Uint8Array(size);
    this.exclusive = new Uint8Array(size);
    this.#free = Uint16Array.from({ length: size }, (_, index) => size - 1 - index);
    this.#freeCount = size;
  }

  get freeCount(): number {
    return this.#freeCount;
  }

  /** Takes a row for a command of `connection`; `freeCount` must not be 0. */
  take(connection: NbdConnection): number {
    const row = this.#free[--this.#freeCount];
    this.connection[row] = connection;
    this.started[row] = 0;
    this.pending[row] = 0;
    this.error[row] = 0;
    connection.outstanding++;
    return row;
  }

  release(row: number): void {
    (this.connection[row] as NbdConnection).outstanding--;
    this.connection[row] = undefined;
    this.#free[this.#freeCount++] = row;
  }
}

/** Chunks: each is one operation of the data plane, and its row is the tag. */
export class ChunkTable {
  readonly command: Uint16Array;
  /** First page of its data and the number of pages; 0 if it has none. */
  readonly page: Int32Array;
  readonly pages: Uint16Array;
  /** Its part of the command, in bytes from the command's start. */
  readonly offset: Float64Array;
  readonly length: Float64Array;
  readonly #free: Uint16Array;
  #freeCount: number;

  constructor(size: number) {
    this.command = new Uint16Array(size);
    this.page = new Int32Array(size);
    this.pages = new Uint16Array(size);
    this.offset = new Float64Array(size);
    this.length = new Float64Array(size);
    this.#free = Uint16Array.from({ length: size }, (_, index) => size - 1 - index);
    this.#freeCount = size;
  }

  get freeCount(): number {
    return this.#freeCount;
  }

  /** The row that the next `take` will use. */
  get next(): number {
    return this.#free[this.#freeCount - 1];
  }

  take(command: number, page: number, pages: number, offset: number, length: number): void {
    const row = this.#free[--this.#freeCount];
    this.command[row] = command;
    this.page[row] = page;
    this.pages[row] = pages;
    this.offset[row] = offset;
    this.length[row] = length;
  }

  release(row: number): void {
    this.#free[this.#freeCount++] = row;
  }
}
