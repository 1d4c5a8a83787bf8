// One connection to an NBD server, on the reactor: negotiates, sends requests in the order they came, reads replies.
// It never waits. Whatever goes wrong ends it, with a reason; its owner decides what becomes of its requests.
import { closeSync } from "node:fs";
import { describeError } from "../../../core/errors.ts";
import { allocateMemory, type Mapping } from "../../../native/memory.ts";
import { POLLIN, POLLOUT, type Reactor } from "../../../native/reactor.ts";
import { errnoText, shim, type Pointer } from "../../../native/shim.ts";
import { NBD_CMD_DISC, NBD_FLAG_SEND_DF, NBD_REQUEST, writeRequest } from "../../../protocol/nbd.ts";
import { NbdClientHandshake, type SeenExport } from "./handshake.ts";
import { ReplyReader } from "./replies.ts";
import type { NbdRequests } from "./requests.ts";
import { SendQueue } from "./send-queue.ts";

const EAGAIN = -11;
/** One option's reply of the greatest size that the handshake takes. */
const NEGOTIATION_BYTES = 128 * 1024;

export interface ConnectionOwner {
  /** Called when a request has its whole reply. */
  replied(slot: number): void;
  /** Called with the export as the server describes it; returns why it is not the one that is being served. */
  accept(seen: SeenExport): string | undefined;
  /** Called when the server takes requests. */
  ready(connection: NbdConnection): void;
  /** Called once when the connection is over, never from within `send`. */
  lost(connection: NbdConnection, why: string): void;
}

export class NbdConnection {
  /** Requests that it carries. */
  inFlight = 0;
  /** Whether it has replied to changes of the export since it was last sent a flush. */
  hasChanges = false;
  /** When bytes came last, or when there began to be something to wait for. */
  heardMs: number;
  /** When the latest of those requests was sent that have been replied to. */
  answeredSinceMs = -Infinity;
  readonly #number: number;
  readonly #reactor: Reactor;
  readonly #requests: NbdRequests;
  readonly #owner: ConnectionOwner;
  readonly #fd: number;
  readonly #watch: number;
  readonly #handshake: NbdClientHandshake;
  readonly #queue: SendQueue;
  #isSendingSoon = false;
  /** Whether the socket has yet to take some of what it was given. */
  #awaitsRoom = false;
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
    this.#queue = new SendQueue(requests);
    this.heardMs = reactor.nowMs;
    this.#fd = fd;
    this.#watch = reactor.watch(fd, (events) => this.#ready(events));
  }

  /** Sends the request in `slot` after those before it, with the reactor's next wait or when there is room. */
  send(slot: number): void {
    const { nowMs } = this.#reactor;
    if (this.inFlight++ === 0) this.heardMs = nowMs;
    this.#requests.connection[slot] = this.#number;
    this.#requests.sinceMs[slot] = nowMs;
    this.#queue.add(slot);
    if (this.#awaitsRoom || this.#isSendingSoon) return;
    this.#isSendingSoon = true;
    this.#reactor.beforeWait(this.#sendSoon);
  }

  /** Sends nothing more of its requests. What has been sent may still be replied to. */
  sendNoMore(): void {
    if (this.#isOver) return;
    this.#queue.clear();
    this.#awaitRoom(false);
  }

  /** Whether the server may yet carry out a change that was sent here: it has all of it, and has not replied. */
  get mayChange(): boolean {
    const requests = this.#requests;
    const isOurs = (number: number, slot: number): boolean =>
      number === this.#number && requests.sent[slot] === 1 && requests.changes(slot);
    return this.#replies !== undefined && requests.connection.some(isOurs);
  }

  /** The slot of the request that has been under way for longest; -1 if none is. */
  get oldest(): number {
    const { connection, sinceMs, slots } = this.#requests;
    let oldest = -1;
    for (let slot = 0; slot < slots; slot++)
      if (connection[slot] === this.#number && (oldest < 0 || sinceMs[slot] < sinceMs[oldest])) oldest = slot;
    return oldest;
  }

  /** Ends the connection without waiting for what is under way. */
  close(): void {
    if (this.#isOver) return;
    this.#isOver = true;
    if (this.#replies !== undefined && !this.#queue.isAmidRequest) {
      const farewell = new Uint8Array(NBD_REQUEST.bytes);
      writeRequest(new DataView(farewell.buffer), 0, 0, NBD_CMD_DISC, 0, 0, 0, 0);
      shim.xt_socket_send(this.#fd, farewell, farewell.length, null, 0);
    }
    this.#reactor.unwatch(this.#watch);
    closeSync(this.#fd);
    this.#queue.close();
    this.#negotiation?.close();
    this.#replies?.close();
  }

  #ready(events: number): void {
    if (this.#isOver) return;
    const isReadable = (events & ~POLLOUT) !== 0;
    let failure: string | undefined;
    if (isReadable) failure = this.#replies === undefined ? this.#negotiate() : this.#read(this.#replies);
    if (failure === undefined && this.#replies !== undefined && this.#awaitsRoom && !this.#isOver)
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
      this.answeredSinceMs = Math.max(this.answeredSinceMs, this.#requests.sinceMs[slot]);
      if (this.#requests.changes(slot)) this.hasChanges = true;
      this.#owner.replied(slot);
      return this.inFlight > 0;
    });
    this.#replies = replies;
    this.#queue.readsWhole = seen.structured && (seen.flags & NBD_FLAG_SEND_DF) !== 0;
    this.#owner.ready(this);
    return undefined;
  }

  /** When the reactor is about to wait, with all that it was asked to send by then. */
  readonly #sendSoon = (): void => {
    this.#isSendingSoon = false;
    if (this.#isOver || this.#replies === undefined) return;
    const failure = this.#sendQueued(this.#replies);
    if (failure !== undefined) this.#owner.lost(this, failure);
  };

  #sendQueued(replies: ReplyReader): string | undefined {
    const error = this.#queue.send(this.#fd, replies);
    if (error < 0 && error !== EAGAIN) return errnoText(error);
    this.#awaitRoom(!this.#queue.isEmpty);
    return undefined;
  }

  #awaitRoom(awaits: boolean): void {
    if (awaits === this.#awaitsRoom) return;
    this.#awaitsRoom = awaits;
    this.#reactor.rewatch(this.#watch, awaits ? POLLIN | POLLOUT : POLLIN);
  }
}
