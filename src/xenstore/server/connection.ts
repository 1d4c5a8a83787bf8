// One connection to the server, over any channel: takes in bytes, has each complete request answered, and keeps the
// output that the client has not read. A client that does not read its replies is not read from either, and no
// connection is served for long before the others get their turn.
import {
  encodePacket,
  isSpecialPath,
  XS_PAYLOAD_MAX,
  XS_WATCH_EVENT,
  XsPacketParser,
  type OverlongPolicy,
  type XsPacket,
} from "../../protocol/xs-wire.ts";
import type { Domain, DomainClient } from "./domain.ts";
import { OutputQueue } from "./output-queue.ts";
import { Session, type SessionHost, type SessionOutput } from "./session.ts";
import type { Waiter } from "./turns.ts";

/** The carrier of a connection: a socket, a ring page, or calls within this process. */
export interface Channel {
  /** Sends what it can and returns how many bytes it took. When it can take more, it calls `Connection.writable`. */
  write(bytes: Uint8Array): number;
  /** Whether more input is wanted now. */
  setReading(wanted: boolean): void;
  /** The client violated the packet format, so packet boundaries are lost. */
  violation(): void;
  /** The server ended the connection. */
  close(): void;
}

/** The server as a connection needs it. */
export interface ConnectionOwner extends SessionHost {
  /** Answers one request through `connection.session`, now or in one of the domain's next turns. */
  handle(connection: Connection, packet: XsPacket): void;
  now(): number;
}

export class Connection implements Waiter, DomainClient, SessionOutput {
  readonly domain: Domain;
  readonly #owner: ConnectionOwner;
  readonly #channel: Channel;
  readonly #parser: XsPacketParser;
  readonly #output: OutputQueue;
  #session: Session;
  /** This connection's share of the domain's intake. */
  #inputBytes = 0;
  #closed = false;
  #pumping = false;

  constructor(owner: ConnectionOwner, domain: Domain, channel: Channel, overlong: OverlongPolicy) {
    this.#owner = owner;
    this.domain = domain;
    this.#channel = channel;
    this.#parser = new XsPacketParser(overlong);
    this.#output = new OutputQueue(() => owner.now(), domain.backlog);
    this.#session = new Session(domain, owner, this);
    domain.connections.add(this);
  }

  /** The client's state at the server. A reset replaces it. */
  get session(): Session {
    return this.#session;
  }

  get unreadReplies(): number {
    return this.#output.replyCount;
  }

  get unreadEvents(): number {
    return this.#output.eventCount;
  }

  get droppedEvents(): number {
    return this.#output.droppedEvents;
  }

  /** Input from the client, in pieces of any size. */
  receive(bytes: Uint8Array): void {
    if (this.#closed) return;
    this.#parser.push(bytes);
    this.#weighInput();
    const { intake, connections } = this.domain;
    if (intake.full) for (const each of connections) each.stopReading();
    this.#pump();
  }

  /** Stops reading until the domain's intake has room again. */
  stopReading(): void {
    this.domain.intake.wait(this);
    this.#channel.setReading(false);
  }

  /** The channel can take more output. */
  writable(): void {
    this.#pump();
  }

  sendReply(type: number, request: XsPacket, payload: Uint8Array): void {
    if (this.#closed) return;
    this.#output.pushReply(encodePacket(type, request.reqId, request.txId, payload));
    if (!this.#pumping) this.#flush();
  }

  /**
   * Queues a watch event, with one byte per character of its text. An event is dropped if it is too long, and with C
   * xenstored also if it equals a waiting one.
   */
  sendEvent(path: string, token: string): void {
    const payload = Buffer.from(`${path}\0${token}\0`, "latin1");
    if (this.#closed || payload.length > XS_PAYLOAD_MAX) return;
    const { privileged, quotas } = this.domain;
    const merges = this.#owner.personality.mergesEqualEvents && !isSpecialPath(path);
    const key = merges ? `${path}\0${token}` : undefined;
    this.#output.pushEvent(encodePacket(XS_WATCH_EVENT, 0, 0, payload), key, quotas.watchEvents, !privileged);
    if (!this.#pumping) this.#flush();
  }

  /** Returns to the state of a new connection: no partial packets, queued output, watches or transactions are left. */
  reset(): void {
    this.domain.turns.leave(this);
    this.domain.backlog.leave(this);
    this.domain.intake.leave(this);
    this.#parser.reset();
    this.#weighInput();
    this.#output.clear();
    this.#session.close();
    this.#session = new Session(this.domain, this.#owner, this);
  }

  /** Ends the connection and closes its channel. */
  close(): void {
    if (this.#closed) return;
    this.#closed = true;
    this.reset();
    this.domain.connections.delete(this);
    this.#channel.close();
  }

  /** The domain's next turn has come, and within it this connection's. */
  takeTurn(): void {
    this.#pump();
  }

  #pump(): void {
    const { turns, backlog } = this.domain;
    if (this.#closed || this.#pumping || turns.isWaiting(this)) return;
    this.#pumping = true;
    const outcome = this.#serve();
    this.#pumping = false;
    if (this.#closed) return;
    this.#weighInput();
    if (outcome === "turn-over") turns.wait(this);
    if (outcome === "backlog") backlog.wait(this);
    if (outcome === "violation") this.#channel.violation();
    else if (this.domain.intake.full) this.stopReading();
    else this.#channel.setReading(outcome === "idle");
  }

  /** Serves complete requests until there are none or something must happen first. */
  #serve(): "idle" | "turn-over" | "unread-replies" | "backlog" | "violation" {
    const { turns, backlog } = this.domain;
    turns.begin();
    for (;;) {
      this.#flush();
      if (this.#output.replyCount >= this.domain.quotas.outstanding) return "unread-replies";
      if (backlog.full) return "backlog";
      if (turns.over && this.#parser.bufferedBytes > 0) return "turn-over";
      const packet = this.#closed ? undefined : this.#parser.next();
      if (packet === undefined) return this.#parser.violation === undefined ? "idle" : "violation";
      this.#owner.handle(this, packet);
    }
  }

  #weighInput(): void {
    const before = this.#inputBytes;
    this.#inputBytes = this.#parser.bufferedBytes;
    this.domain.intake.change(this.#inputBytes - before);
  }

  #flush(): void {
    if (!this.#output.empty) this.#output.drain((bytes) => this.#channel.write(bytes));
  }
}
