// Memory outside the JavaScript heap, seen through one ArrayBuffer. A Mapping has one owner; closing it
// detaches every view first, so that a stale view reads `undefined` instead of crashing the process.
import { toArrayBuffer, shim, checkAddress } from "./shim.ts";
import { PAGE_SIZE } from "../core/types.ts";

export class Mapping {
  /** Address in this process, exact as a double. */
  readonly address: number;
  readonly sizeBytes: number;
  /** The memory. `bytes.buffer` is its only ArrayBuffer: make views of that, never a second buffer. */
  readonly bytes: Uint8Array<ArrayBuffer>;
  /** The same as 32-bit words, for Atomics. */
  readonly words: Uint32Array<ArrayBuffer>;
  #release: (() => void) | undefined;

  /** Takes over `sizeBytes` (a multiple of 4) at `address`; `release` unmaps it and runs once. */
  constructor(address: number, sizeBytes: number, release: () => void) {
    this.address = address;
    this.sizeBytes = sizeBytes;
    const buffer = toArrayBuffer(address, 0, sizeBytes);
    this.bytes = new Uint8Array(buffer);
    this.words = new Uint32Array(buffer);
    this.#release = release;
  }

  get closed(): boolean {
    return this.#release === undefined;
  }

  /** Detaches the views, then unmaps. Closing twice is harmless. */
  close(): void {
    const release = this.#release;
    if (release === undefined) return;
    this.#release = undefined;
    this.bytes.buffer.transfer(0);
    release();
  }

  [Symbol.dispose](): void {
    this.close();
  }
}

/** Allocates zeroed private memory, page-aligned and rounded up to whole pages. */
export function allocateMemory(sizeBytes: number): Mapping {
  return allocate(sizeBytes, shim.xt_memory_alloc);
}

/** The same for data that devices transfer: in large pages, where the kernel has them. */
export function allocateDataMemory(sizeBytes: number): Mapping {
  return allocate(sizeBytes, shim.xt_memory_alloc_large);
}

function allocate(sizeBytes: number, by: (size: number) => number): Mapping {
  const size = Math.ceil(sizeBytes / PAGE_SIZE) * PAGE_SIZE;
  const address = checkAddress(by(size), `allocate ${size} bytes`);
  return new Mapping(address, size, () => shim.xt_memory_free(address, size));
}

/** Maps the first `sizeBytes` of the open file `fd`, shared with whoever else maps it. */
export function mapFile(fd: number, sizeBytes: number, writable: boolean): Mapping {
  const address = checkAddress(
    shim.xt_memory_map(fd, 0, sizeBytes, writable ? 1 : 0),
    `map ${sizeBytes} bytes of a file`,
  );
  return new Mapping(address, sizeBytes, () => shim.xt_memory_free(address, sizeBytes));
}
