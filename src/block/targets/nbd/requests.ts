// The table of requests that an NBD target has under way. Allocated once: a request takes a slot, and its slot and the
// slot's generation are its cookie, so that a reply to anything else is recognised.
import { shim, type Pointer } from "../../../native/shim.ts";
import { NBD_CMD_FLUSH, NBD_CMD_READ, NBD_CMD_TRIM, NBD_CMD_WRITE } from "../../../protocol/nbd.ts";
import { MAX_PIECES, Vectors } from "./vectors.ts";

export const NO_RECORD = -1;
/** Tags of a free slot, and of a request that nobody outside waits for. */
const FREE = -1;
export const INTERNAL = -2;

const NAMES: ReadonlyMap<number, string> = new Map([
  [NBD_CMD_READ, "read"],
  [NBD_CMD_WRITE, "write"],
  [NBD_CMD_FLUSH, "flush"],
  [NBD_CMD_TRIM, "trim"],
]);

export class NbdRequests {
  readonly tag: Int32Array;
  readonly command: Uint8Array;
  /** The range of the command that is sent. `rest`: what follows it in a trim that one command cannot hold. */
  readonly offset: Float64Array;
  readonly length: Float64Array;
  readonly rest: Float64Array;
  /** The first error in its reply, as -errno. */
  readonly error: Int32Array;
  readonly generation: Uint32Array;
  /** Its record in the log of writes, or NO_RECORD. */
  readonly record: Float64Array;
  /** The connection that carries it; -1: none does. */
  readonly connection: Int16Array;
  /** When it was given to its connection. */
  readonly sinceMs: Float64Array;
  /** 1: all of it has been sent, and it may be replied to. */
  readonly sent: Uint8Array;
  /** Found by `locate`. */
  address = 0;
  room = 0;
  readonly #pieces: Float64Array;
  readonly #pieceCount: Uint8Array;
  readonly #free: Int32Array;
  #freeCount: number;
  readonly #vectors = new Vectors();

  constructor(slots: number) {
    this.tag = new Int32Array(slots).fill(FREE);
    this.command = new Uint8Array(slots);
    this.offset = new Float64Array(slots);
    this.length = new Float64Array(slots);
    this.rest = new Float64Array(slots);
    this.error = new Int32Array(slots);
    this.generation = new Uint32Array(slots);
    this.record = new Float64Array(slots);
    this.connection = new Int16Array(slots).fill(-1);
    this.sinceMs = new Float64Array(slots);
    this.sent = new Uint8Array(slots);
    this.#pieces = new Float64Array(slots * MAX_PIECES * 2);
    this.#pieceCount = new Uint8Array(slots);
    this.#free = new Int32Array(slots).map((_, at) => slots - 1 - at);
    this.#freeCount = slots;
  }

  get slots(): number {
    return this.tag.length;
  }

  /** Returns a free slot, or -1. */
  take(tag: number, command: number, offset: number, length: number): number {
    if (this.#freeCount === 0) return -1;
    const slot = this.#free[--this.#freeCount];
    this.tag[slot] = tag;
    this.command[slot] = command;
    this.offset[slot] = offset;
    this.length[slot] = length;
    this.rest[slot] = 0;
    this.error[slot] = 0;
    this.sent[slot] = 0;
    this.record[slot] = NO_RECORD;
    this.#pieceCount[slot] = 0;
    return slot;
  }

  /** Whether the request in `slot` changes the export. */
  changes(slot: number): boolean {
    return this.command[slot] !== NBD_CMD_READ && this.command[slot] !== NBD_CMD_FLUSH;
  }

  /** What the request in `slot` is. */
  nameOf(slot: number): string {
    return NAMES.get(this.command[slot]) as string;
  }

  /** Takes the request in `slot` from its connection: no reply to it counts any more. */
  detach(slot: number): void {
    this.generation[slot]++;
    this.connection[slot] = -1;
    this.sent[slot] = 0;
    this.error[slot] = 0;
  }

  release(slot: number): void {
    this.detach(slot);
    this.tag[slot] = FREE;
    this.#free[this.#freeCount++] = slot;
  }

  /** The slot's data are `length` bytes at `address`. */
  setMemory(slot: number, address: number): void {
    this.#pieces[slot * MAX_PIECES * 2] = address;
    this.#pieces[slot * MAX_PIECES * 2 + 1] = this.length[slot];
    this.#pieceCount[slot] = 1;
  }

  /** The slot's data are in the first of `count` iovecs at `address`, up to `most` bytes; sets its length. */
  setVectors(slot: number, address: number, count: number, most: number): void {
    const vectors = this.#vectors;
    const length = Math.min(vectors.load(address, count), most);
    const used = length === 0 ? 0 : vectors.cut(length);
    for (let i = 0; i < used; i++) {
      const place = (slot * MAX_PIECES + i) * 2;
      this.#pieces[place] = vectors.from(i);
      this.#pieces[place + 1] = vectors.size(i);
    }
    this.#pieceCount[slot] = used;
    this.length[slot] = length;
  }

  /** Sets `address` and `room` to where byte `at` of the slot's data is, and how many follow in one piece. */
  locate(slot: number, at: number): void {
    const base = slot * MAX_PIECES;
    let before = at;
    for (let i = 0; i < this.#pieceCount[slot]; i++) {
      const size = this.#pieces[(base + i) * 2 + 1];
      if (before < size) {
        this.address = this.#pieces[(base + i) * 2] + before;
        this.room = size - before;
        return;
      }
      before -= size;
    }
    this.address = 0;
    this.room = 0;
  }

  /** Copies the slot's data to `address`. */
  copyTo(slot: number, address: number): void {
    const length = this.length[slot];
    for (let at = 0; at < length; at += this.room) {
      this.locate(slot, at);
      shim.xt_memory_copy((address + at) as Pointer, this.address as Pointer, this.room);
    }
  }

  close(): void {
    this.#vectors.close();
  }
}
