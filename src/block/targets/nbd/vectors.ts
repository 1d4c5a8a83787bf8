// The first iovecs of an operation, copied, so that they can be measured and cut.
import { allocateMemory, type Mapping } from "../../../native/memory.ts";
import { shim, type Pointer } from "../../../native/shim.ts";
import { MAX_PIECES } from "./requests.ts";

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
    for (let i = 0; i < this.#count; i++) bytes += this.#size(i);
    return bytes;
  }

  /** Leaves only the first `bytes` of what they point to. Returns how many iovecs that is. */
  cut(bytes: number): number {
    let left = bytes;
    for (let i = 0; i < this.#count; i++) {
      const size = this.#size(i);
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
    const { words } = this.#memory;
    return Array.from({ length: this.#count }, (_, i) => {
      const at = i * IOVEC_WORDS;
      return { address: words[at] + words[at + 1] * 2 ** 32, size: this.#size(i) };
    });
  }

  close(): void {
    this.#memory.close();
  }

  #size(i: number): number {
    const at = i * IOVEC_WORDS + 2;
    return this.#memory.words[at] + this.#memory.words[at + 1] * 2 ** 32;
  }
}
