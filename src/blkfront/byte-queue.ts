// Bytes on their way to or from a socket, in memory that the shim can read and write. They are always contiguous, so
// that no caller has to handle a wrap-around.
import { allocateMemory, type Mapping } from "../native/memory.ts";

export class ByteQueue {
  readonly memory: Mapping;
  readonly view: DataView;
  /** Offsets in `memory` of the first used byte and of the first free byte after it. */
  head = 0;
  tail = 0;

  constructor(capacityBytes: number) {
    this.memory = allocateMemory(capacityBytes);
    this.view = new DataView(this.memory.bytes.buffer);
  }

  get capacity(): number {
    return this.memory.sizeBytes;
  }

  get size(): number {
    return this.tail - this.head;
  }

  get headAddress(): number {
    return this.memory.address + this.head;
  }

  get tailAddress(): number {
    return this.memory.address + this.tail;
  }

  /** Makes `bytes` free at the tail, moving the content to the start if necessary. False when they do not fit. */
  makeRoom(bytes: number): boolean {
    if (this.capacity - this.tail >= bytes) return true;
    this.memory.bytes.copyWithin(0, this.head, this.tail);
    this.tail -= this.head;
    this.head = 0;
    return this.capacity - this.tail >= bytes;
  }

  produce(bytes: number): void {
    this.tail += bytes;
  }

  consume(bytes: number): void {
    this.head += bytes;
    if (this.head === this.tail) this.head = this.tail = 0;
  }

  /** Appends a copy; there must be room. */
  append(bytes: Uint8Array): void {
    this.memory.bytes.set(bytes, this.tail);
    this.tail += bytes.length;
  }

  close(): void {
    this.memory.close();
  }
}
