// One client connection. Requests are sent with unique ids, many at a time if the transport allows it; replies go back
// to their requesters and events to their watches. When the server goes away, everything that waits fails.
import { XentoolError } from "../core/errors.ts";
import { escapeText } from "../core/log.ts";
import {
  decodeStrings,
  decodeText,
  encodePacket,
  XS_ERROR,
  XS_PAYLOAD_MAX,
  XS_WATCH_EVENT,
  XsPacketParser,
  xsTypeName,
  type XsPacket,
} from "../protocol/xs-wire.ts";
import { connectionClosed, replyError } from "./errors.ts";
import type { XenstoreTransport } from "./transport.ts";

interface Pending {
  readonly type: number;
  readonly subject: string;
  readonly resolve: (payload: Uint8Array) => void;
  readonly reject: (error: XentoolError) => void;
}

export class XenstoreConnection {
  /** Receives each watch event: the path that changed and the watch's token. */
  onWatchEvent: (path: string, token: string) => void = () => {};
  readonly #transport: XenstoreTransport;
  readonly #parser = new XsPacketParser();
  readonly #pending = new Map<number, Pending>();
  /** Requests that the transport is not ready for yet. */
  #unsent: Uint8Array[] = [];
  readonly #closeListeners = new Set<(error: XentoolError) => void>();
  #failure: XentoolError | undefined;
  #nextId = Math.floor(Math.random() * 0x8000_0000);

  constructor(transport: XenstoreTransport) {
    this.#transport = transport;
    transport.onData = (bytes) => this.#receive(bytes);
    transport.onClose = (error) => this.#fail(error);
  }

  /** Why the connection is unusable, or undefined while it is alive. */
  get failure(): XentoolError | undefined {
    return this.#failure;
  }

  /** Number of requests waiting for their replies. */
  get pendingCount(): number {
    return this.#pending.size;
  }

  request(type: number, txId: number, payload: Uint8Array, subject: string): Promise<Uint8Array> {
    if (this.#failure !== undefined) return Promise.reject(this.#failure);
    const { payloadBytesMax } = this.#transport;
    if (payload.length > payloadBytesMax)
      return Promise.reject(tooLong(type, subject, payload.length, payloadBytesMax));
    return new Promise((resolve, reject) => {
      const id = this.#takeId();
      const packet = encodePacket(type, id, txId, payload);
      const mustWait = this.#transport.oneAtATime === true && this.#pending.size > 0;
      this.#pending.set(id, { type, subject, resolve, reject });
      if (mustWait) this.#unsent.push(packet);
      else this.#transport.write(packet);
    });
  }

  /** Runs `listener` once when the server goes away or breaks the protocol, but not after `close`. */
  onClose(listener: (error: XentoolError) => void): () => void {
    this.#closeListeners.add(listener);
    return () => this.#closeListeners.delete(listener);
  }

  /** Closes the connection. Requests that wait for a reply fail with `cancelled`. */
  close(): void {
    this.#closeListeners.clear();
    this.#transport.close();
    this.#fail(connectionClosed());
  }

  #takeId(): number {
    do this.#nextId = (this.#nextId + 1) >>> 0;
    while (this.#pending.has(this.#nextId));
    return this.#nextId;
  }

  #receive(bytes: Uint8Array): void {
    if (this.#failure !== undefined) return;
    this.#parser.push(bytes);
    for (let packet = this.#parser.next(); packet !== undefined; packet = this.#parser.next()) {
      const complaint = packet.type === XS_WATCH_EVENT ? this.#takeEvent(packet) : this.#takeReply(packet);
      if (complaint !== undefined) return this.#breakOff(complaint);
    }
    if (this.#parser.violation !== undefined)
      this.#breakOff(`announced a packet of ${this.#parser.violation} bytes, more than ${XS_PAYLOAD_MAX}`);
  }

  #takeEvent(packet: XsPacket): string | undefined {
    const [path, token] = decodeStrings(packet.payload) ?? [];
    if (path === undefined || token === undefined) return "sent a malformed watch event";
    this.onWatchEvent(path, token);
    return undefined;
  }

  #takeReply(packet: XsPacket): string | undefined {
    const pending = this.#pending.get(packet.reqId);
    if (pending === undefined) return `replied to a request that was not made (id ${packet.reqId})`;
    this.#pending.delete(packet.reqId);
    const next = this.#unsent.shift();
    if (next !== undefined) this.#transport.write(next);
    const operation = xsTypeName(pending.type) ?? String(pending.type);
    if (packet.type === XS_ERROR) {
      const errno = decodeText(packet.payload).replace(/\0.*$/s, "");
      pending.reject(replyError(operation, pending.subject, errno));
    } else if (packet.type === pending.type) {
      pending.resolve(packet.payload);
    } else {
      const complaint = `replied to ${operation} with a packet of type ${packet.type}`;
      pending.reject(new XentoolError("protocol", `xenstored ${complaint}`));
      return complaint;
    }
    return undefined;
  }

  #breakOff(complaint: string): void {
    this.#transport.close();
    this.#fail(
      new XentoolError("protocol", `xenstored at ${this.#transport.name} ${complaint}; connection closed`),
    );
  }

  #fail(error: XentoolError): void {
    if (this.#failure !== undefined) return;
    this.#failure = error;
    const waiting = [...this.#pending.values()];
    this.#pending.clear();
    this.#unsent = [];
    this.#parser.reset();
    for (const pending of waiting) pending.reject(error);
    const listeners = [...this.#closeListeners];
    this.#closeListeners.clear();
    for (const listener of listeners) listener(error);
  }
}

function tooLong(type: number, subject: string, length: number, max: number): XentoolError {
  const operation = xsTypeName(type) ?? String(type);
  const message = `xenstore ${operation} ${escapeText(subject)}: ${length} bytes do not fit, at most ${max} do`;
  return new XentoolError("usage", message, { errno: "E2BIG", path: subject, operation });
}
