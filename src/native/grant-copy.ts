// A batch of grant copies in the kernel's layout (struct gntdev_grant_copy_segment, which is struct xt_copy_segment).
// The data plane fills it, and GrantTable.copy runs it in one call.
import {
  XT_COPY_DEST_GREF,
  XT_COPY_FOREIGN,
  XT_COPY_SEGMENT,
  XT_COPY_SIDE,
  XT_COPY_SOURCE_GREF,
} from "./abi.ts";
import { allocateMemory, type Mapping } from "./memory.ts";

// A segment is U32 words or U16 half-words large; the fields' positions are in one or the other.
const U32 = XT_COPY_SEGMENT.bytes / 4;
const U16 = XT_COPY_SEGMENT.bytes / 2;
const SOURCE_ADDRESS = (XT_COPY_SEGMENT.source + XT_COPY_SIDE.address) / 4;
const SOURCE_REF = (XT_COPY_SEGMENT.source + XT_COPY_SIDE.foreign + XT_COPY_FOREIGN.ref) / 4;
const SOURCE_OFFSET = (XT_COPY_SEGMENT.source + XT_COPY_SIDE.foreign + XT_COPY_FOREIGN.offset) / 2;
const SOURCE_DOMID = (XT_COPY_SEGMENT.source + XT_COPY_SIDE.foreign + XT_COPY_FOREIGN.domid) / 2;
const DEST_ADDRESS = (XT_COPY_SEGMENT.dest + XT_COPY_SIDE.address) / 4;
const DEST_REF = (XT_COPY_SEGMENT.dest + XT_COPY_SIDE.foreign + XT_COPY_FOREIGN.ref) / 4;
const DEST_OFFSET = (XT_COPY_SEGMENT.dest + XT_COPY_SIDE.foreign + XT_COPY_FOREIGN.offset) / 2;
const DEST_DOMID = (XT_COPY_SEGMENT.dest + XT_COPY_SIDE.foreign + XT_COPY_FOREIGN.domid) / 2;
const LENGTH = XT_COPY_SEGMENT.length / 2;
const FLAGS = XT_COPY_SEGMENT.flags / 2;
const STATUS = XT_COPY_SEGMENT.status / 2;
const TWO_32 = 2 ** 32;

export class GrantCopyBatch {
  /** Number of segments filled in. */
  count = 0;
  readonly capacity: number;
  readonly memory: Mapping;
  readonly #u32: Uint32Array;
  readonly #u16: Uint16Array;
  readonly #status: Int16Array;

  constructor(capacity: number) {
    this.capacity = capacity;
    this.memory = allocateMemory(capacity * XT_COPY_SEGMENT.bytes);
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

  /** Adds a copy of `length` bytes at `offset` of the page `ref` of `domid` to our `address`. offset+length ≤ 4096. */
  fromGrant(domid: number, ref: number, offset: number, length: number, address: number): void {
    const index = this.count++;
    const words = index * U32;
    const halves = index * U16;
    const u32 = this.#u32;
    const u16 = this.#u16;
    u32[words + SOURCE_REF] = ref;
    u16[halves + SOURCE_OFFSET] = offset;
    u16[halves + SOURCE_DOMID] = domid;
    u32[words + DEST_ADDRESS] = address >>> 0;
    u32[words + DEST_ADDRESS + 1] = address / TWO_32;
    u16[halves + LENGTH] = length;
    u16[halves + FLAGS] = XT_COPY_SOURCE_GREF;
    u16[halves + STATUS] = 0;
  }

  /** Adds a copy of `length` bytes at our `address` to `offset` of the page `ref` of `domid`. offset+length ≤ 4096. */
  toGrant(domid: number, ref: number, offset: number, length: number, address: number): void {
    const index = this.count++;
    const words = index * U32;
    const halves = index * U16;
    const u32 = this.#u32;
    const u16 = this.#u16;
    u32[words + SOURCE_ADDRESS] = address >>> 0;
    u32[words + SOURCE_ADDRESS + 1] = address / TWO_32;
    u32[words + DEST_REF] = ref;
    u16[halves + DEST_OFFSET] = offset;
    u16[halves + DEST_DOMID] = domid;
    u16[halves + LENGTH] = length;
    u16[halves + FLAGS] = XT_COPY_DEST_GREF;
    u16[halves + STATUS] = 0;
  }

  /** GNTST_* status of segment `index` after a copy: 0 is okay, negative is an error. */
  status(index: number): number {
    return this.#status[index * U16 + STATUS];
  }

  /** Bytes of segment `index`. */
  length(index: number): number {
    return this.#u16[index * U16 + LENGTH];
  }

  close(): void {
    this.memory.close();
  }
}
