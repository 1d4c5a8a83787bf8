// The pieces of memory that operations transfer, as the kernel takes them: struct iovec, base and length in turn.
import { allocateMemory, type Mapping } from "../../native/memory.ts";
import { MAX_VECTORS } from "../bounds.ts";

const IOVEC_BYTES = 16;

export class VectorTable {
  /** Vectors of the operation that was begun last. */
  count = 0;
  readonly #memory: Mapping;
  readonly #words: BigUint64Array;
  #base = 0;
  #skip = 0;
  #end = -1;

  /** Holds MAX_VECTORS for each of `operations`. */
  constructor(operations: number) {
    this.#memory = allocateMemory(operations * MAX_VECTORS * IOVEC_BYTES);
    this.#words = new BigUint64Array(this.#memory.bytes.buffer);
  }

  /** Starts anew with the vectors of `op`, leaving out the first `skip` bytes of what is added. */
  begin(op: number, skip: number): void {
    this.count = 0;
    this.#base = op * MAX_VECTORS * 2;
    this.#skip = skip;
    this.#end = -1;
  }

  /** Adds a piece; one that is adjacent to the last becomes part of it. Returns false when there is no room. */
  add(address: number, length: number): boolean {
    const skipped = Math.min(this.#skip, length);
    this.#skip -= skipped;
    if (skipped === length) return true;
    const words = this.#words;
    const from = address + skipped;
    const bytes = BigInt(length - skipped);
    if (from === this.#end) {
      const last = this.#base + this.count * 2 - 1;
      words[last] = words[last] + bytes;
    } else {
      if (this.count === MAX_VECTORS) return false;
      words[this.#base + this.count * 2] = BigInt(from);
      words[this.#base + this.count * 2 + 1] = bytes;
      this.count++;
    }
    this.#end = address + length;
    return true;
  }

  addressOf(op: number): number {
    return this.#memory.address + op * MAX_VECTORS * IOVEC_BYTES;
  }

  close(): void {
    this.#memory.close();
  }
}
