// Reads the replies of one connection, simple and structured, and puts a read's data where it belongs: from the socket
// straight into the operation's memory, but for what arrived together with a header. The server is not trusted: what
// is not a proper reply to a request under way is named, and ends the connection.
import { allocateMemory, type Mapping } from "../../../native/memory.ts";
import { errnoText, shim, type Pointer } from "../../../native/shim.ts";
import {
  NBD_CMD_READ,
  NBD_EINVAL,
  NBD_EIO,
  NBD_ENOMEM,
  NBD_ENOSPC,
  NBD_ENOTSUP,
  NBD_EOVERFLOW,
  NBD_EPERM,
  NBD_ESHUTDOWN,
  NBD_REPLY_FLAG_DONE,
  NBD_REPLY_TYPE_ERROR_BIT,
  NBD_REPLY_TYPE_NONE,
  NBD_REPLY_TYPE_OFFSET_DATA,
  NBD_REPLY_TYPE_OFFSET_HOLE,
  NBD_SIMPLE_REPLY_MAGIC,
  NBD_STRUCTURED_REPLY_MAGIC,
  SIMPLE_REPLY_BYTES,
  STRUCTURED_HEADER_BYTES,
} from "../../../protocol/nbd.ts";
import { Coverage } from "./coverage.ts";
import type { NbdRequests } from "./requests.ts";

const EAGAIN = -11;
const BUFFER_BYTES = 64 * 1024;
/** A chunk's errno and message, with room for the offset that may follow. */
const MAX_ERROR_BYTES = 6 + 4096 + 8;
/** Of one reply. Their sender would otherwise keep us busy for ever, and never be silent. */
const MOST_ERRORS = 64;
/** Data that is longer goes straight to where it belongs; so no more than this is read together with its header. */
const SHORT_BYTES = 16 * 1024;
const HEADERS_BYTES = 512;
/** Bounds the time that one connection takes from the others. */
const RECEIVES_PER_TURN = 32;
/** These numbers mean the same to Linux. Any other one becomes EIO. */
const KNOWN_ERRORS: ReadonlySet<number> = new Set([
  NBD_EPERM,
  NBD_EIO,
  NBD_ENOMEM,
  NBD_EINVAL,
  NBD_ENOSPC,
  NBD_EOVERFLOW,
  NBD_ENOTSUP,
  NBD_ESHUTDOWN,
]);

export class ReplyReader {
  /** Why the connection cannot go on. */
  failure: string | undefined;
  readonly #requests: NbdRequests;
  readonly #connection: number;
  readonly #structured: boolean;
  readonly #onReply: (slot: number) => boolean;
  readonly #coverage: Coverage;
  /** By slot: the errors of its reply so far. */
  readonly #errors: Uint8Array;
  readonly #buffer: Mapping = allocateMemory(BUFFER_BYTES);
  readonly #zeroes: Mapping = allocateMemory(BUFFER_BYTES);
  readonly #view: DataView;
  #start = 0;
  #end = 0;
  /** Data that is arriving: for which slot, to which byte of it, how many, and whether the reply ends with it. */
  #slot = -1;
  #at = 0;
  #left = 0;
  #isLast = false;
  /** There may be more to read now. */
  #hasMore = false;
  /** How much is read when a header is next: after short data, many replies at once. */
  #aheadBytes = BUFFER_BYTES;

  /** `onReply` is called when a request of `connection` has its whole reply, and returns whether more are awaited. */
  constructor(
    requests: NbdRequests,
    connection: number,
    structured: boolean,
    onReply: (slot: number) => boolean,
  ) {
    this.#requests = requests;
    this.#connection = connection;
    this.#structured = structured;
    this.#onReply = onReply;
    this.#coverage = new Coverage(requests.slots);
    this.#errors = new Uint8Array(requests.slots);
    this.#view = new DataView(this.#buffer.bytes.buffer);
  }

  /** Takes up a request that is about to be sent. */
  begin(slot: number): void {
    this.#coverage.begin(slot);
    this.#errors[slot] = 0;
  }

  /**
   * Reads what there is. Afterwards look at `failure`. Most often one call gets all of it, and a second one, which
   * would find nothing, is spared: what comes later wakes us up.
   */
  read(fd: number): void {
    this.#hasMore = true;
    for (let turns = 0; this.#hasMore && turns < RECEIVES_PER_TURN; turns++) {
      const received = this.#receive(fd);
      if (received === EAGAIN) return;
      if (received <= 0)
        this.failure = received === 0 ? "the server closed the connection" : errnoText(received);
      else while (this.failure === undefined && this.#parse());
      if (this.failure !== undefined) return;
    }
  }

  /** May be called from within `onReply`: what has been read and not looked at is dropped. */
  close(): void {
    this.#start = this.#end = 0;
    this.#hasMore = false;
    this.#buffer.close();
    this.#zeroes.close();
  }

  #receive(fd: number): number {
    const requests = this.#requests;
    if (this.#slot >= 0 && this.#start === this.#end) {
      requests.locate(this.#slot, this.#at);
      const most = Math.min(requests.room, this.#left);
      const received = shim.xt_socket_receive(fd, requests.address as Pointer, most);
      this.#hasMore = received === most;
      if (received > 0) this.#took(received);
      return received;
    }
    if (this.#start > 0) {
      this.#buffer.bytes.copyWithin(0, this.#start, this.#end);
      this.#end -= this.#start;
      this.#start = 0;
    }
    const to = (this.#buffer.address + this.#end) as Pointer;
    const most = Math.min(this.#aheadBytes, BUFFER_BYTES - this.#end);
    const received = shim.xt_socket_receive(fd, to, most);
    this.#hasMore = received === most;
    if (received > 0) this.#end += received;
    return received;
  }

  /** Takes one step with what is in the buffer. Returns whether there may be another. */
  #parse(): boolean {
    if (this.#slot >= 0) return this.#copyData();
    const there = this.#end - this.#start;
    if (there < 4) return false;
    const magic = this.#view.getUint32(this.#start);
    if (magic === NBD_SIMPLE_REPLY_MAGIC) return there >= SIMPLE_REPLY_BYTES && this.#simple();
    if (magic === NBD_STRUCTURED_REPLY_MAGIC && this.#structured)
      return there >= STRUCTURED_HEADER_BYTES && this.#chunk(there);
    return this.#fail("a reply has a wrong magic number");
  }

  #copyData(): boolean {
    const count = Math.min(this.#left, this.#end - this.#start);
    if (count === 0) return false;
    this.#copy(this.#slot, this.#at, this.#buffer.address + this.#start, count);
    this.#start += count;
    this.#took(count);
    return true;
  }

  #copy(slot: number, at: number, from: number, count: number): void {
    const requests = this.#requests;
    for (let done = 0; done < count;) {
      requests.locate(slot, at + done);
      const part = Math.min(requests.room, count - done);
      shim.xt_memory_copy(requests.address as Pointer, (from + done) as Pointer, part);
      done += part;
    }
  }

  #took(count: number): void {
    this.#at += count;
    this.#left -= count;
    if (this.#left > 0) return;
    const slot = this.#slot;
    this.#slot = -1;
    if (this.#isLast) this.#complete(slot);
  }

  #simple(): boolean {
    const requests = this.#requests;
    const slot = this.#slotAt(this.#start + 8);
    if (slot < 0) return false;
    const isRead = requests.command[slot] === NBD_CMD_READ;
    if (isRead && this.#structured) return this.#fail("a read has a simple reply");
    const error = this.#view.getUint32(this.#start + 4);
    requests.error[slot] = errnoOf(error);
    this.#start += SIMPLE_REPLY_BYTES;
    if (isRead && requests.error[slot] === 0) this.#expectData(slot, 0, requests.length[slot], true);
    else this.#replied(slot);
    return true;
  }

  #chunk(there: number): boolean {
    const view = this.#view;
    const start = this.#start;
    const slot = this.#slotAt(start + 8);
    if (slot < 0) return false;
    const isLast = (view.getUint16(start + 4) & NBD_REPLY_FLAG_DONE) !== 0;
    const type = view.getUint16(start + 6);
    const length = view.getUint32(start + 16);
    if ((type & NBD_REPLY_TYPE_ERROR_BIT) !== 0) return this.#error(slot, there, length, isLast);
    if (type === NBD_REPLY_TYPE_NONE) {
      if (length !== 0 || !isLast) return this.#fail("an empty chunk has data or does not end the reply");
      this.#start += STRUCTURED_HEADER_BYTES;
      return this.#complete(slot);
    }
    if (this.#requests.command[slot] !== NBD_CMD_READ) return this.#fail("a chunk of data for no read");
    if (type === NBD_REPLY_TYPE_OFFSET_DATA) return this.#data(slot, there, length, isLast);
    if (type === NBD_REPLY_TYPE_OFFSET_HOLE) return this.#hole(slot, there, length, isLast);
    return this.#fail(`a chunk has the unknown type ${type}`);
  }

  #data(slot: number, there: number, length: number, isLast: boolean): boolean {
    if (length <= 8) return this.#fail("a chunk of data has none");
    if (there < STRUCTURED_HEADER_BYTES + 8) return false;
    const at = this.#cover(slot, length - 8);
    if (at < 0) return false;
    this.#start += STRUCTURED_HEADER_BYTES + 8;
    this.#expectData(slot, at, length - 8, isLast);
    return true;
  }

  #hole(slot: number, there: number, length: number, isLast: boolean): boolean {
    if (length !== 12) return this.#fail("a hole has a wrong length");
    if (there < STRUCTURED_HEADER_BYTES + 12) return false;
    const size = this.#view.getUint32(this.#start + STRUCTURED_HEADER_BYTES + 8);
    if (size === 0) return this.#fail("a hole is empty");
    const at = this.#cover(slot, size);
    if (at < 0) return false;
    for (let done = 0; done < size; done += BUFFER_BYTES)
      this.#copy(slot, at + done, this.#zeroes.address, Math.min(BUFFER_BYTES, size - done));
    this.#start += STRUCTURED_HEADER_BYTES + 12;
    return isLast ? this.#complete(slot) : true;
  }

  #error(slot: number, there: number, length: number, isLast: boolean): boolean {
    if (length < 6 || length > MAX_ERROR_BYTES) return this.#fail("an error has a wrong length");
    if (there < STRUCTURED_HEADER_BYTES + length) return false;
    const error = this.#view.getUint32(this.#start + STRUCTURED_HEADER_BYTES);
    if (error === 0) return this.#fail("an error chunk tells of no error");
    if (++this.#errors[slot] > MOST_ERRORS) return this.#fail("a reply has too many errors");
    if (this.#requests.error[slot] === 0) this.#requests.error[slot] = errnoOf(error);
    this.#start += STRUCTURED_HEADER_BYTES + length;
    return isLast ? this.#complete(slot) : true;
  }

  /** Where in the slot's data the chunk's `size` bytes belong; -1 if they cannot. */
  #cover(slot: number, size: number): number {
    const place = this.#start + STRUCTURED_HEADER_BYTES;
    const offset = this.#view.getUint32(place) * 2 ** 32 + this.#view.getUint32(place + 4);
    const at = offset - this.#requests.offset[slot];
    if (at < 0 || at + size > this.#requests.length[slot])
      this.#fail("a chunk is outside what was asked for");
    else if (!this.#coverage.add(slot, at, at + size))
      this.#fail("chunks overlap, or come in too many parts");
    else return at;
    return -1;
  }

  #expectData(slot: number, at: number, length: number, isLast: boolean): void {
    this.#slot = slot;
    this.#at = at;
    this.#left = length;
    this.#isLast = isLast;
    this.#aheadBytes = length > SHORT_BYTES ? HEADERS_BYTES : BUFFER_BYTES;
  }

  /** Ends a reply in chunks, or a read's data. */
  #complete(slot: number): boolean {
    const requests = this.#requests;
    const isRead = requests.command[slot] === NBD_CMD_READ;
    if (isRead && this.#structured && requests.error[slot] === 0)
      if (!this.#coverage.covers(slot, requests.length[slot])) return this.#fail("a read's data has gaps");
    this.#replied(slot);
    return true;
  }

  #replied(slot: number): void {
    if (!this.#onReply(slot)) this.#hasMore = false;
  }

  /** The slot of the cookie at `at` of the buffer; -1 if it is not under way here. */
  #slotAt(at: number): number {
    const requests = this.#requests;
    const slot = this.#view.getUint32(at + 4);
    if (
      slot < requests.slots &&
      requests.connection[slot] === this.#connection &&
      requests.sent[slot] === 1 &&
      requests.generation[slot] === this.#view.getUint32(at)
    )
      return slot;
    this.#fail("a reply to nothing that was asked");
    return -1;
  }

  #fail(why: string): false {
    this.failure = why;
    return false;
  }
}

function errnoOf(error: number): number {
  return error === 0 ? 0 : -(KNOWN_ERRORS.has(error) ? error : NBD_EIO);
}
