// The first iovecs of an operation, copied, so that they can be measured and cut.
import { allocateMemory, type Mapping } from "../../../native/memory.ts";
import { shim, type Pointer } from "../../../native/shim.ts";

/** Pieces of memory that one request may have; the owner of an operation with more is told of a short transfer. */
export const MAX_PIECES = 64;
const IOVEC_WORDS = 4;
const IOVEC_BYTES = 4 * IOVEC_WORDS;

export interface Piece {
  readonly address: number;
  readonly size: number;
}

export class Vectors {
  readonly #memory: Mapping = allocateMemory(MAX_PIECES * IOVEC_BYTES);
  #count = 0;

  /** Where the copies are. */
  get address(): number {
    return this.#memory.address;
  }

  /** Copies as many of the `count` iovecs at `address` as an NBD target takes at once. Returns their bytes. */
  load(address: number, count: number): number {
    this.#count = Math.min(count, MAX_PIECES);
    shim.xt_memory_copy(this.address as Pointer, address as Pointer, this.#count * IOVEC_BYTES);
    let bytes = 0;
    for (let i = 0; i < this.#count; i++) bytes += this.size(i);
    return bytes;
  }

  /** Leaves only the first `bytes` of what they point to. Returns how many iovecs that is. */
  cut(bytes: number): number {
    let left = bytes;
    for (let i = 0; i < this.#count; i++) {
      const size = this.size(i);
      if (size >= left) {
        this.#memory.words[i * IOVEC_WORDS + 2] = left;
        this.#memory.words[i * IOVEC_WORDS + 3] = 0;
        return i + 1;
      }
      left -= size;
    }
    return this.#count;
  }

  pieces(): readonly Piece[] {
    return Array.from({ length: this.#count }, (_, i) => ({ address: this.from(i), size: this.size(i) }));
  }

  /** The address of what copy `i` points to, and how many bytes that is. */
  from(i: number): number {
    return this.#number(i * IOVEC_WORDS);
  }

  size(i: number): number {
    return this.#number(i * IOVEC_WORDS + 2);
  }

  close(): void {
    this.#memory.close();
  }

  #number(at: number): number {
    const { words } = this.#memory;
    return words[at] + words[at + 1] * 2 ** 32;
  }
}
