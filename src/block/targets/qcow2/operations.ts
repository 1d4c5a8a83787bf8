// The operations of a qcow2 target that are under way, as columns, and where each of them is carried out: by us on the
// image's file, or by the daemon.
import type { IoOp } from "../../../native/reactor.ts";

const NOWHERE = 0;
const ON_FILE = 1;
/** By the daemon, which changes the disk. What it only reads needs no place here. */
const ON_DAEMON = 2;

export class Operations {
  readonly tag: Int32Array;
  readonly op: Uint8Array;
  /** The range of the disk that is transferred or changed. */
  readonly offset: Float64Array;
  readonly length: Float64Array;
  /** What it is started with later: bytes or the number of iovecs, and where the data are. */
  readonly extent: Float64Array;
  readonly address: Float64Array;
  /** Ends that it waits for, and the first error among those it had. */
  readonly parts: Uint8Array;
  readonly error: Int32Array;
  readonly #place: Uint8Array;
  /** Those that have a place. */
  readonly #placed: Uint16Array;
  #placedCount = 0;
  /** By operation: where it is among them. */
  readonly #position: Uint16Array;
  readonly #free: Uint16Array;
  #freeCount: number;

  constructor(slots: number) {
    this.tag = new Int32Array(slots);
    this.op = new Uint8Array(slots);
    this.offset = new Float64Array(slots);
    this.length = new Float64Array(slots);
    this.extent = new Float64Array(slots);
    this.address = new Float64Array(slots);
    this.parts = new Uint8Array(slots);
    this.error = new Int32Array(slots);
    this.#place = new Uint8Array(slots);
    this.#placed = new Uint16Array(slots);
    this.#position = new Uint16Array(slots);
    this.#free = new Uint16Array(slots).map((_, at) => slots - 1 - at);
    this.#freeCount = slots;
  }

  /** Returns a free slot, for an operation that has one end; or -1. */
  take(tag: number, op: IoOp): number {
    if (this.#freeCount === 0) return -1;
    const slot = this.#free[--this.#freeCount];
    this.tag[slot] = tag;
    this.op[slot] = op;
    this.parts[slot] = 1;
    this.error[slot] = 0;
    return slot;
  }

  release(slot: number): void {
    if (this.#place[slot] !== NOWHERE) this.#displace(slot);
    this.#free[this.#freeCount++] = slot;
  }

  onFile(slot: number, offset: number, length: number): void {
    this.#put(slot, ON_FILE, offset, length);
  }

  /** For what changes the disk. */
  onDaemon(slot: number, offset: number, length: number): void {
    this.#put(slot, ON_DAEMON, offset, length);
  }

  /** Keeps what the operation needs when it is started later. */
  keep(slot: number, extent: number, address: number): void {
    this.extent[slot] = extent;
    this.address[slot] = address;
  }

  /** Calls `visit` for the range of each change that the daemon carries out. */
  forEachChangeOnDaemon(visit: (offset: number, length: number) => void): void {
    for (let i = 0; i < this.#placedCount; i++) {
      const slot = this.#placed[i];
      if (this.#place[slot] === ON_DAEMON) visit(this.offset[slot], this.length[slot]);
    }
  }

  /** Whether an operation on the file is under way in one of the clusters of `slot`. */
  meetsOneOnFile(slot: number, clusterBytes: number): boolean {
    const from = Math.floor(this.offset[slot] / clusterBytes) * clusterBytes;
    const to = Math.ceil((this.offset[slot] + this.length[slot]) / clusterBytes) * clusterBytes;
    for (let i = 0; i < this.#placedCount; i++) {
      const other = this.#placed[i];
      const begin = this.offset[other];
      if (this.#place[other] === ON_FILE && begin < to && begin + this.length[other] > from) return true;
    }
    return false;
  }

  #put(slot: number, place: number, offset: number, length: number): void {
    this.offset[slot] = offset;
    this.length[slot] = length;
    this.#place[slot] = place;
    this.#position[slot] = this.#placedCount;
    this.#placed[this.#placedCount++] = slot;
  }

  #displace(slot: number): void {
    this.#place[slot] = NOWHERE;
    const hole = this.#position[slot];
    const moved = this.#placed[--this.#placedCount];
    this.#placed[hole] = moved;
    this.#position[moved] = hole;
  }
}
