// The requests that one connection has to send, in their order. As many as fit leave with one system call: each one by
// itself would wake the server once more.
import { allocateMemory, type Mapping } from "../../../native/memory.ts";
import { shim, type Pointer } from "../../../native/shim.ts";
import {
  DF_BYTES,
  NBD_CMD_FLAG_DF,
  NBD_CMD_READ,
  NBD_CMD_WRITE,
  NBD_REQUEST,
  writeRequest,
} from "../../../protocol/nbd.ts";
import type { ReplyReader } from "./replies.ts";
import type { NbdRequests } from "./requests.ts";

const EAGAIN = -11;
/** Requests in one system call; of the largest size, these are 128 MiB. */
const MOST_AT_ONCE = 32;
const IOVEC_WORDS = 4;
const IOVEC_BYTES = 4 * IOVEC_WORDS;

export class SendQueue {
  /**
   * Whether short reads are asked for in one chunk. Otherwise QEMU's server finds out before each one where the image
   * has holes.
   */
  readsWhole = false;
  readonly #requests: NbdRequests;
  /** The requests that are not wholly sent, from `#first` on, in a circle. */
  readonly #slots: Int32Array;
  #first = 0;
  #count = 0;
  /** Bytes of the first one that have been sent. */
  #sentBytes = 0;
  readonly #headers: Mapping = allocateMemory(MOST_AT_ONCE * NBD_REQUEST.bytes);
  readonly #headerView: DataView;
  /** An iovec for the header of each request, and one for a write's data. */
  readonly #parts: Mapping = allocateMemory(2 * MOST_AT_ONCE * IOVEC_BYTES);
  #partCount = 0;

  constructor(requests: NbdRequests) {
    this.#requests = requests;
    this.#slots = new Int32Array(requests.slots);
    this.#headerView = new DataView(this.#headers.bytes.buffer);
  }

  get isEmpty(): boolean {
    return this.#count === 0;
  }

  /** Whether the server has the beginning of a request and not its end. */
  get isAmidRequest(): boolean {
    return this.#sentBytes > 0;
  }

  add(slot: number): void {
    this.#slots[(this.#first + this.#count++) % this.#slots.length] = slot;
  }

  /** Forgets what is not wholly sent. */
  clear(): void {
    this.#count = 0;
  }

  /** Sends what the socket takes. `replies` learns of each request before any of it leaves. Returns 0 or -errno. */
  send(fd: number, replies: ReplyReader): number {
    while (this.#count > 0) {
      const bytes = this.#gather(replies);
      const sent = shim.xt_socket_send_parts(fd, this.#parts.address as Pointer, this.#partCount);
      if (sent < 0) return sent;
      this.#took(sent);
      // It has no room for more.
      if (sent < bytes) return EAGAIN;
    }
    return 0;
  }

  close(): void {
    this.#headers.close();
    this.#parts.close();
  }

  /** Makes the parts of the next requests; returns their bytes. */
  #gather(replies: ReplyReader): number {
    const requests = this.#requests;
    const { command } = requests;
    const count = Math.min(this.#count, MOST_AT_ONCE);
    let skipped = this.#sentBytes;
    let bytes = 0;
    this.#partCount = 0;
    for (let i = 0; i < count; i++) {
      const slot = this.#slots[(this.#first + i) % this.#slots.length];
      if (skipped === 0) replies.begin(slot);
      const at = i * NBD_REQUEST.bytes;
      this.#writeHeader(at, slot);
      const ofHeader = Math.min(skipped, NBD_REQUEST.bytes);
      bytes += this.#add(this.#headers.address + at + ofHeader, NBD_REQUEST.bytes - ofHeader);
      if (command[slot] === NBD_CMD_WRITE) {
        // In one piece, because it is sent from the log of writes.
        requests.locate(slot, skipped - ofHeader);
        bytes += this.#add(requests.address, requests.room);
      }
      skipped = 0;
    }
    return bytes;
  }

  #writeHeader(at: number, slot: number): void {
    const { command, generation, offset, length } = this.#requests;
    const isWhole = this.readsWhole && command[slot] === NBD_CMD_READ && length[slot] <= DF_BYTES;
    const flags = isWhole ? NBD_CMD_FLAG_DF : 0;
    const view = this.#headerView;
    writeRequest(view, at, flags, command[slot], generation[slot], slot, offset[slot], length[slot]);
  }

  #add(address: number, size: number): number {
    if (size === 0) return 0;
    const { words } = this.#parts;
    const at = this.#partCount++ * IOVEC_WORDS;
    words[at] = address >>> 0;
    words[at + 1] = address / 2 ** 32;
    words[at + 2] = size;
    words[at + 3] = 0;
    return size;
  }

  /** The socket has taken the next `bytes`. */
  #took(bytes: number): void {
    const requests = this.#requests;
    this.#sentBytes += bytes;
    while (this.#count > 0) {
      const slot = this.#slots[this.#first];
      const size = NBD_REQUEST.bytes + (requests.command[slot] === NBD_CMD_WRITE ? requests.length[slot] : 0);
      if (this.#sentBytes < size) return;
      requests.sent[slot] = 1;
      this.#sentBytes -= size;
      this.#first = (this.#first + 1) % this.#slots.length;
      this.#count--;
    }
  }
}
