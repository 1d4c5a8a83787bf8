// The way of a guest's process to xenstore. It has no connection of its own, because that would have all the rights of
// our domain: `watch` opens one for it, and passes on what the process may ask (store-rules.ts).
import type { XenstoreEndpoint } from "../../platform/platform.ts";
import {
  encodePacket,
  encodeStrings,
  XS_ERROR,
  XS_WATCH_EVENT,
  XsPacketParser,
  type XsPacket,
} from "../../protocol/xs-wire.ts";
import { CONNECT_TIMEOUT_MS } from "../../xenstore/bounds.ts";
import { openTransport } from "../../xenstore/open.ts";
import type { XenstoreTransport } from "../../xenstore/transport.ts";
import { openInherited, type SocketTransport } from "../../xenstore/transports/socket.ts";

/** Requests that wait for their replies at the same time; the next ones wait in the socket. */
const PENDING_MAX = 64;
/** A process that leaves more replies, refusals and events unread than this is given up. */
const UNREAD_BYTES_MAX = 4 << 20;

export class StoreRelay {
  readonly #client: SocketTransport;
  readonly #server: XenstoreTransport;
  readonly #mayAsk: (packet: XsPacket) => boolean;
  readonly #requests = new XsPacketParser();
  readonly #replies = new XsPacketParser();
  /** Requests without a reply yet. */
  #pending = 0;

  private constructor(
    client: SocketTransport,
    server: XenstoreTransport,
    mayAsk: (packet: XsPacket) => boolean,
  ) {
    this.#client = client;
    this.#server = server;
    this.#mayAsk = mayAsk;
    client.onData = (bytes) => this.#hear(bytes);
    client.onClose = () => this.close();
    server.onData = (bytes) => this.#answer(bytes);
    server.onClose = () => this.close();
  }

  /** Between the process at the other end of `socket`, which is ours to close, and the xenstore at `endpoint`. */
  static async open(
    socket: number,
    endpoint: XenstoreEndpoint,
    mayAsk: (packet: XsPacket) => boolean,
  ): Promise<StoreRelay> {
    const early: Uint8Array[] = [];
    const client = await openInherited(socket, "the process of a guest", (bytes) =>
      early.push(bytes.slice()),
    );
    client.setReading(false);
    try {
      const relay = new StoreRelay(client, await openTransport(endpoint, CONNECT_TIMEOUT_MS), mayAsk);
      for (const bytes of early) relay.#hear(bytes);
      client.setReading(true);
      return relay;
    } catch (error) {
      client.close();
      throw error;
    }
  }

  /** The process sees the end of its xenstore. */
  close(): void {
    this.#server.close();
    this.#client.close();
  }

  #hear(bytes: Uint8Array): void {
    this.#requests.push(bytes);
    this.#pump();
  }

  #pump(): void {
    while (this.#pending < PENDING_MAX) {
      const packet = this.#requests.next();
      if (packet === undefined) break;
      this.#take(packet);
    }
    const isTooMuch = this.#client.unsentBytes > UNREAD_BYTES_MAX;
    if (isTooMuch || this.#requests.violation !== undefined) return this.close();
    this.#client.setReading(this.#pending < PENDING_MAX);
  }

  #take(packet: XsPacket): void {
    const { type, reqId, txId, payload } = packet;
    if (!this.#mayAsk(packet)) return this.#client.write(refusalOf(packet));
    this.#pending++;
    this.#server.write(encodePacket(type, reqId, txId, payload));
  }

  #answer(bytes: Uint8Array): void {
    this.#replies.push(bytes);
    for (let packet = this.#replies.next(); packet !== undefined; packet = this.#replies.next())
      if (packet.type !== XS_WATCH_EVENT) this.#pending--;
    this.#client.write(bytes);
    this.#pump();
  }
}

function refusalOf({ reqId, txId }: XsPacket): Uint8Array {
  return encodePacket(XS_ERROR, reqId, txId, encodeStrings("EACCES"));
}
