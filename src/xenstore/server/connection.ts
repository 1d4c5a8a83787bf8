// One connection to the server, whatever carries it: takes bytes in, has each complete request answered,
// and keeps what the client has not taken. A client that does not read its replies is not read either, and
// none is served for long without letting the others have their turn.
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

/** What carries a connection: a socket, a ring page, or a call in this process. */
export interface Channel {
  /** Sends what it can; answers how many bytes it took. When it can take more it calls `writable`. */
  write(bytes: Uint8Array): number;
  /** Whether more input is wanted now. */
  setReading(wanted: boolean): void;
  /** The client broke the packet format: no boundary is known any more. */
  violation(): void;
  /** The connection ended on the server's side. */
  close(): void;
}

/** What a connection needs of its server. */
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
  /** This connection's part of the domain's intake. */
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

  /** What the client has with the server. Another one after a reset. */
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

  /** Until the domain's intake has room again. */
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
   * Queues a watch event, each character of its text a byte. One that says the same as a waiting one, or is
   * too long, is left out.
   */
  sendEvent(path: string, token: string): void {
    const payload = Buffer.from(`${path}\0${token}\0`, "latin1");
    if (this.#closed || payload.length > XS_PAYLOAD_MAX) return;
    const { privileged, quotas } = this.domain;
    const key = isSpecialPath(path) ? undefined : `${path}\0${token}`;
    this.#output.pushEvent(encodePacket(XS_WATCH_EVENT, 0, 0, payload), key, quotas.watchEvents, !privileged);
    if (!this.#pumping) this.#flush();
  }

  /** As if it had just been opened: no partial packets, queued output, watches or transactions are left. */
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

  /** Ends the connection. The channel is closed too. */
  close(): void {
    if (this.#closed) return;
    this.#closed = true;
    this.reset();
    this.domain.connections.delete(this);
    this.#channel.close();
  }

  /** The domain's next turn has come, and in it this connection's. */
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

  /** Serves what is complete, until that is done or something else has to happen first. */
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
