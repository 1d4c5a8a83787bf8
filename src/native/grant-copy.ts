// A batch of grant copies, laid out as the kernel wants it (struct gntdev_grant_copy_segment, 24 bytes;
// csrc/xentool.h: xt_copy_segment): filled by the data plane, run by GrantTable.copy in one call.
import { allocateMemory, type Mapping } from "./memory.ts";

const SEGMENT_BYTES = 24;
const SOURCE_GREF = 1;
const DEST_GREF = 2;

export class GrantCopyBatch {
  /** How many segments are filled in. */
  count = 0;
  readonly capacity: number;
  readonly memory: Mapping;
  readonly #u32: Uint32Array;
  readonly #u16: Uint16Array;
  readonly #status: Int16Array;

  constructor(capacity: number) {
    this.capacity = capacity;
    this.memory = allocateMemory(capacity * SEGMENT_BYTES);
    this.#u32 = new Uint32Array(this.memory.bytes.buffer);
    this.#u16 = new Uint16Array(this.memory.bytes.buffer);
    this.#status = new Int16Array(this.memory.bytes.buffer);
  }

  get full(): boolean {
    return this.count === this.capacity;
  }

  clear(): void {
    this.count = 0;
  }

  /** Copies `length` bytes at `offset` of the page `ref` of `domid` to our `address`. offset+length ≤ 4096. */
  fromGrant(domid: number, ref: number, offset: number, length: number, address: number): void {
    const at = this.count++ * 6;
    const u32 = this.#u32;
    u32[at] = ref;
    u32[at + 1] = offset | (domid << 16);
    u32[at + 2] = address % 0x1_0000_0000;
    u32[at + 3] = address / 0x1_0000_0000;
    u32[at + 4] = length | (SOURCE_GREF << 16);
    u32[at + 5] = 0;
  }

  /** Copies `length` bytes of our `address` to `offset` of the page `ref` of `domid`. offset+length ≤ 4096. */
  toGrant(domid: number, ref: number, offset: number, length: number, address: number): void {
    const at = this.count++ * 6;
    const u32 = this.#u32;
    u32[at] = address % 0x1_0000_0000;
    u32[at + 1] = address / 0x1_0000_0000;
    u32[at + 2] = ref;
    u32[at + 3] = offset | (domid << 16);
    u32[at + 4] = length | (DEST_GREF << 16);
    u32[at + 5] = 0;
  }

  /** GNTST_* of segment `index` after a copy: 0 okay, negative an error. */
  status(index: number): number {
    return this.#status[index * 12 + 10] as number;
  }

  /** Bytes of segment `index`. */
  length(index: number): number {
    return this.#u16[index * 12 + 8] as number;
  }

  close(): void {
    this.memory.close();
  }
}
