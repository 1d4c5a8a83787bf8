// The pieces of memory that operations transfer, as the kernel takes them: struct iovec, base and length in turn.
import { allocateMemory, type Mapping } from "../../../native/memory.ts";
import { MAX_VECTORS } from "../../bounds.ts";

const IOVEC_BYTES = 16;
const VECTOR_WORDS = IOVEC_BYTES / 4;
const LENGTH_WORD = 2;
const TWO_32 = 2 ** 32;

export class VectorTable {
  /** Vectors of the operation that was begun last. */
  count = 0;
  readonly #memory: Mapping;
  /** Each vector has a 64-bit base and a length below 2^32. */
  readonly #words: Uint32Array;
  #base = 0;
  #skip = 0;
  #end = -1;

  /** Holds MAX_VECTORS for each of `operations`. */
  constructor(operations: number) {
    this.#memory = allocateMemory(operations * MAX_VECTORS * IOVEC_BYTES);
    this.#words = this.#memory.words;
  }

  /** Starts anew with the vectors of `op`, leaving out the first `skip` bytes of what is added. */
  begin(op: number, skip: number): void {
    this.count = 0;
    this.#base = op * MAX_VECTORS * VECTOR_WORDS;
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
    if (from === this.#end) {
      words[this.#base + (this.count - 1) * VECTOR_WORDS + LENGTH_WORD] += length - skipped;
    } else {
      if (this.count === MAX_VECTORS) return false;
      const at = this.#base + this.count++ * VECTOR_WORDS;
      words[at] = from >>> 0;
      words[at + 1] = from / TWO_32;
      words[at + LENGTH_WORD] = length - skipped;
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
