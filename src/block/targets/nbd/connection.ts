// One connection to an NBD server, on the reactor: negotiates, sends requests in the order they came, reads replies. It
// never waits. Whatever goes wrong ends it, with a reason; its owner decides what becomes of its requests.
import { closeSync } from "node:fs";
import { describeError } from "../../../core/errors.ts";
import { allocateMemory, type Mapping } from "../../../native/memory.ts";
import { POLLIN, POLLOUT, type Reactor } from "../../../native/reactor.ts";
import { errnoText, shim, type Pointer } from "../../../native/shim.ts";
import { NBD_CMD_DISC, NBD_CMD_WRITE, NBD_REQUEST, writeRequest } from "../../../protocol/nbd.ts";
import { NbdClientHandshake, type SeenExport } from "./handshake.ts";
import { ReplyReader } from "./replies.ts";
import type { NbdRequests } from "./requests.ts";

const EAGAIN = -11;
/** One option's reply of the greatest size that the handshake takes. */
const NEGOTIATION_BYTES = 128 * 1024;

export interface ConnectionOwner {
  /** A request has its whole reply. */
  replied(slot: number): void;
  /** The server has described the export; returns why it is not the one that is being served. */
  accept(seen: SeenExport): string | undefined;
  /** The server takes requests. */
  ready(connection: NbdConnection): void;
  /** The connection is over; called once, never from within `send`. */
  lost(connection: NbdConnection, why: string): void;
}

export class NbdConnection {
  /** Requests that it carries. */
  inFlight = 0;
  /** It has replied to changes of the export since it was last sent a flush. */
  hasChanges = false;
  /** When bytes came last, or when there began to be something to wait for. */
  heardMs: number;
  readonly #number: number;
  readonly #reactor: Reactor;
  readonly #requests: NbdRequests;
  readonly #owner: ConnectionOwner;
  readonly #fd: number;
  readonly #watch: number;
  readonly #handshake: NbdClientHandshake;
  readonly #header: Mapping = allocateMemory(NBD_REQUEST.bytes);
  readonly #headerView: DataView;
  /** The requests that are not wholly sent, from `#first` on, in a circle. */
  readonly #queue: Int32Array;
  #first = 0;
  #queued = 0;
  /** Bytes of the first one that have been sent. */
  #sentBytes = 0;
  #wantsToSend = false;
  #negotiation: Mapping | undefined = allocateMemory(NEGOTIATION_BYTES);
  #negotiated = 0;
  #replies: ReplyReader | undefined;
  #isOver = false;

  /** Takes over `fd`, a stream socket that is connected or about to be. */
  constructor(
    number: number,
    fd: number,
    exportName: string,
    reactor: Reactor,
    requests: NbdRequests,
    owner: ConnectionOwner,
  ) {
    this.#number = number;
    this.#reactor = reactor;
    this.#requests = requests;
    this.#owner = owner;
    this.#handshake = new NbdClientHandshake(exportName);
    this.#headerView = new DataView(this.#header.bytes.buffer);
    this.#queue = new Int32Array(requests.slots);
    this.heardMs = reactor.nowMs;
    this.#fd = fd;
    this.#watch = reactor.watch(fd, (events) => this.#ready(events));
  }

  /** Sends the request in `slot` after those before it, as soon as the server takes it. */
  send(slot: number): void {
    if (this.inFlight++ === 0) this.heardMs = this.#reactor.nowMs;
    this.#requests.connection[slot] = this.#number;
    this.#queue[(this.#first + this.#queued++) % this.#queue.length] = slot;
    // Whoever waits for room in the socket is told when there is some.
    if (!this.#wantsToSend) this.#wantSending(true);
  }

  /** Sends nothing more of its requests. What has been sent may still be replied to. */
  sendNoMore(): void {
    if (this.#isOver) return;
    this.#queued = 0;
    this.#wantSending(false);
  }

  /** Whether the server may yet carry out a change that was sent here: it has all of it, and has not replied. */
  get mayChange(): boolean {
    const requests = this.#requests;
    const isOurs = (number: number, slot: number): boolean =>
      number === this.#number && requests.sent[slot] === 1 && requests.changes(slot);
    return this.#replies !== undefined && requests.connection.some(isOurs);
  }

  /** Ends it. What is under way is not waited for. */
  close(): void {
    if (this.#isOver) return;
    this.#isOver = true;
    if (this.#replies !== undefined && this.#sentBytes === 0) {
      writeRequest(this.#headerView, 0, NBD_CMD_DISC, 0, 0, 0, 0);
      shim.xt_socket_send(this.#fd, this.#header.address as Pointer, NBD_REQUEST.bytes, null, 0);
    }
    this.#reactor.unwatch(this.#watch);
    closeSync(this.#fd);
    this.#header.close();
    this.#negotiation?.close();
    this.#replies?.close();
  }

  #ready(events: number): void {
    if (this.#isOver) return;
    const isReadable = (events & ~POLLOUT) !== 0;
    let failure: string | undefined;
    if (isReadable) failure = this.#replies === undefined ? this.#negotiate() : this.#read(this.#replies);
    if (failure === undefined && this.#replies !== undefined && !this.#isOver)
      failure = this.#sendQueued(this.#replies);
    if (failure !== undefined) this.#owner.lost(this, failure);
  }

  #read(replies: ReplyReader): string | undefined {
    this.heardMs = this.#reactor.nowMs;
    replies.read(this.#fd);
    return replies.failure;
  }

  #negotiate(): string | undefined {
    const memory = this.#negotiation;
    if (memory === undefined) return undefined;
    const to = (memory.address + this.#negotiated) as Pointer;
    const received = shim.xt_socket_receive(this.#fd, to, memory.sizeBytes - this.#negotiated);
    if (received === EAGAIN) return undefined;
    if (received <= 0) return received === 0 ? "the server closed the connection" : errnoText(received);
    this.#negotiated += received;
    try {
      return this.#negotiateWith(memory);
    } catch (error) {
      return describeError(error);
    }
  }

  #negotiateWith(memory: Mapping): string | undefined {
    for (;;) {
      const step = this.#handshake.step(memory.bytes.subarray(0, this.#negotiated));
      if (step.reply.length > 0) {
        const sent = shim.xt_socket_send(this.#fd, step.reply, step.reply.length, null, 0);
        if (sent !== step.reply.length) return "the server does not take an option";
      }
      if (step.consumed === 0) return undefined;
      memory.bytes.copyWithin(0, step.consumed, this.#negotiated);
      this.#negotiated -= step.consumed;
      if (step.seen !== undefined) return this.#begin(step.seen);
    }
  }

  #begin(seen: SeenExport): string | undefined {
    if (this.#negotiated > 0) return "the server sends what was not asked for";
    const refusal = this.#owner.accept(seen);
    if (refusal !== undefined) return refusal;
    this.#negotiation?.close();
    this.#negotiation = undefined;
    this.heardMs = this.#reactor.nowMs;
    const replies = new ReplyReader(this.#requests, this.#number, seen.structured, (slot) => {
      this.inFlight--;
      if (this.#requests.changes(slot)) this.hasChanges = true;
      this.#owner.replied(slot);
    });
    this.#replies = replies;
    this.#owner.ready(this);
    return undefined;
  }

  #sendQueued(replies: ReplyReader): string | undefined {
    while (this.#queued > 0) {
      const slot = this.#queue[this.#first];
      if (this.#sentBytes === 0) this.#writeHeader(replies, slot);
      const sent = this.#sendPart(slot);
      if (sent === EAGAIN) break;
      if (sent < 0) return errnoText(sent);
      this.#sentBytes += sent;
      if (this.#sentBytes < this.#sizeOf(slot)) continue;
      this.#requests.sent[slot] = 1;
      this.#sentBytes = 0;
      this.#first = (this.#first + 1) % this.#queue.length;
      this.#queued--;
    }
    this.#wantSending(this.#queued > 0);
    return undefined;
  }

  #writeHeader(replies: ReplyReader, slot: number): void {
    const { command, generation, offset, length } = this.#requests;
    replies.begin(slot);
    const view = this.#headerView;
    writeRequest(view, 0, command[slot], generation[slot], slot, offset[slot], length[slot]);
  }

  #sizeOf(slot: number): number {
    const { command, length } = this.#requests;
    return NBD_REQUEST.bytes + (command[slot] === NBD_CMD_WRITE ? length[slot] : 0);
  }

  #sendPart(slot: number): number {
    const requests = this.#requests;
    const from = Math.min(this.#sentBytes, NBD_REQUEST.bytes);
    const hasData = requests.command[slot] === NBD_CMD_WRITE;
    if (hasData) requests.locate(slot, this.#sentBytes - from);
    return shim.xt_socket_send(
      this.#fd,
      (this.#header.address + from) as Pointer,
      NBD_REQUEST.bytes - from,
      hasData ? (requests.address as Pointer) : null,
      hasData ? requests.room : 0,
    );
  }

  /** Before the server can take requests, only its answers are waited for. */
  #wantSending(wants: boolean): void {
    if (wants === this.#wantsToSend || this.#replies === undefined) return;
    this.#wantsToSend = wants;
    this.#reactor.rewatch(this.#watch, wants ? POLLIN | POLLOUT : POLLIN);
  }
}
