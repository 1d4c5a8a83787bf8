// One client of the NBD server: its socket, received bytes that have not been parsed yet, and replies that it has not
// taken yet. Both buffers are bounded. Room for a reply is promised before its request is started, so a client that
// does not read, or stops in the middle of a message, holds nothing but its own buffers.
import { closeSync } from "node:fs";
import { POLL_GONE, POLLIN, POLLOUT, type Reactor } from "../native/reactor.ts";
import { shim, type Pointer } from "../native/shim.ts";
import type { NbdExport } from "../protocol/nbd.ts";
import { DIRECT_BYTES, INPUT_BYTES, MAX_REPLY_BYTES, OUTPUT_BYTES, RECEIVE_BYTES } from "./bounds.ts";
import { ByteQueue } from "./byte-queue.ts";
import { NbdHandshake } from "./nbd-handshake.ts";

const HEADER_BYTES = 32;
const EAGAIN = -11;

export const HANDSHAKE = 0;
export const READY = 1;
/** Nothing new is taken; closes when everything is answered and sent. */
export const FINISHING = 2;
export const DEAD = 3;
export type ConnectionState = typeof HANDSHAKE | typeof READY | typeof FINISHING | typeof DEAD;

export class NbdConnection {
  readonly fd: number;
  readonly sinceMs = performance.now();
  readonly input = new ByteQueue(INPUT_BYTES);
  state: ConnectionState = HANDSHAKE;
  /** The client will not send any more. */
  ended = false;
  /** The command whose I/O is not all started yet, or -1. */
  current = -1;
  /** Commands that were taken but not answered. */
  outstanding = 0;
  /** Payload bytes of a refused write that are still to be discarded. */
  skip = 0;
  readonly #output = new ByteQueue(OUTPUT_BYTES);
  readonly #handshake: NbdHandshake;
  readonly #reactor: Reactor;
  readonly #watch: number;
  #events = POLL_GONE;
  #promised = 0;
  #full = false;
  #closed = false;

  /** Takes ownership of the socket `fd`, which `reactor` watches while it lives, and queues the greeting. */
  constructor(fd: number, reactor: Reactor, exported: () => NbdExport) {
    this.fd = fd;
    this.#reactor = reactor;
    this.#watch = reactor.watch(fd, (seen) => this.#ready(seen), this.#events);
    this.#handshake = new NbdHandshake(exported);
    this.#output.append(this.#handshake.greeting);
  }

  get structured(): boolean {
    return this.#handshake.structured;
  }

  get #wantsToReceive(): boolean {
    return this.state <= READY && !this.ended && this.input.size < this.input.capacity;
  }

  /** The socket takes no more until its buffer has room again. */
  get wantsToSend(): boolean {
    return this.#full && this.state !== DEAD;
  }

  /**
   * Tells the reactor what of the socket to wait for: room where its buffer is full, and data if `receives` and there
   * is room for it. That the client is gone is always noticed.
   */
  watchSocket(receives: boolean): void {
    if (this.state === DEAD) return;
    const events =
      POLL_GONE | (receives && this.#wantsToReceive ? POLLIN : 0) | (this.wantsToSend ? POLLOUT : 0);
    if (events !== this.#events) this.#reactor.rewatch(this.#watch, events);
    this.#events = events;
  }

  #ready(seen: number): void {
    if ((seen & POLLOUT) !== 0) this.#full = false;
    if ((seen & POLLIN) !== 0) this.#receive();
    else if ((seen & POLL_GONE) !== 0) this.kill();
  }

  /** Receives what the socket has, once. */
  #receive(): void {
    const { input } = this;
    if (!input.makeRoom(RECEIVE_BYTES) && input.tail === input.capacity) return;
    const room = input.capacity - input.tail;
    const received = shim.xt_socket_receive(this.fd, input.tailAddress as Pointer, room);
    if (received > 0) input.produce(received);
    else if (received === 0) this.ended = true;
    else if (received !== EAGAIN) this.kill();
  }

  /**
   * Sends waiting bytes to the socket, once, then closes it if that was the end. True when this made room for replies
   * to what was received before, be it the rest of a long read.
   */
  send(): boolean {
    const output = this.#output;
    let sent = 0;
    if (output.size > 0 && !this.#full && this.state !== DEAD) {
      sent = shim.xt_socket_send(this.fd, output.headAddress as Pointer, output.size, null, 0);
      if (sent > 0) output.consume(sent);
      else if (sent !== EAGAIN) this.kill();
      this.#full = output.size > 0;
    }
    if (this.state === FINISHING && this.outstanding === 0 && output.size === 0) this.kill();
    return sent > 0 && (this.input.size > 0 || this.current >= 0);
  }

  /** Handles the options that have arrived. */
  negotiate(): void {
    while (this.state === HANDSHAKE && this.#hasRoom(MAX_REPLY_BYTES)) {
      const { input } = this;
      const step = this.#handshake.step(input.memory.bytes.subarray(input.head, input.tail));
      this.#output.makeRoom(step.reply.length);
      this.#output.append(step.reply);
      input.consume(step.consumed);
      if (step.outcome === "transmission") this.state = READY;
      else if (step.outcome === "end" || (step.consumed === 0 && this.ended)) this.state = FINISHING;
      else if (step.consumed === 0) return;
    }
  }

  /** Promises room for `bytes` of replies. False when the client must read some first. */
  promise(bytes: number): boolean {
    if (!this.#hasRoom(bytes)) return false;
    this.#promised += bytes;
    return true;
  }

  /** Releases promised room, because the reply takes it now or will never come. */
  redeem(bytes: number): void {
    this.#promised -= bytes;
  }

  /** Where in `outputView` to write the next header. There is room for any header that was promised. */
  headerAt(): number {
    this.#output.makeRoom(HEADER_BYTES);
    return this.#output.tail;
  }

  get outputView(): DataView {
    return this.#output.view;
  }

  /**
   * Sends the header written last, of `headerBytes`, and `bytes` of data at `address`. What the socket does not take
   * is queued.
   */
  reply(headerBytes: number, address: number, bytes: number): void {
    const output = this.#output;
    if (this.state === DEAD) return;
    let sent = 0;
    if (output.size === 0 && bytes >= DIRECT_BYTES) {
      const header = output.tailAddress as Pointer;
      sent = shim.xt_socket_send(this.fd, header, headerBytes, address as Pointer, bytes);
      if (sent < 0 && sent !== EAGAIN) return this.kill();
      sent = Math.max(0, sent);
    }
    this.#full ||= sent > 0 && sent < headerBytes + bytes;
    output.produce(headerBytes);
    const sentOfHeader = Math.min(sent, headerBytes);
    if (sentOfHeader > 0) output.consume(sentOfHeader);
    const left = bytes - (sent - sentOfHeader);
    if (left === 0) return;
    output.makeRoom(left);
    shim.xt_memory_copy(output.tailAddress as Pointer, (address + bytes - left) as Pointer, left);
    output.produce(left);
  }

  /** Ends the connection now. Its buffers stay until `close`. */
  kill(): void {
    if (this.state === DEAD) return;
    this.state = DEAD;
    this.#reactor.unwatch(this.#watch);
    closeSync(this.fd);
  }

  /** Frees everything. */
  close(): void {
    this.kill();
    if (this.#closed) return;
    this.#closed = true;
    this.input.close();
    this.#output.close();
  }

  #hasRoom(bytes: number): boolean {
    return this.#output.size + this.#promised + bytes <= this.#output.capacity;
  }
}
