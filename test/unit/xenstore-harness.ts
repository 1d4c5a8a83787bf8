// A raw client of the xenstore server for tests: it sends any packet, right or wrong, and keeps what comes.
import { expect } from "bun:test";
import {
  decodeText,
  encodePacket,
  encodeStrings,
  joinPath,
  XS_ERROR,
  XS_WATCH_EVENT,
  XsPacketParser,
  type XsPacket,
} from "../../src/protocol/xs-wire.ts";
import type { PersonalityName } from "../../src/xenstore/server/personality.ts";
import { XenstoreServer, type XenstoreServerOptions } from "../../src/xenstore/server/server.ts";
import type { StoreNode } from "../../src/xenstore/server/store.ts";
import type { XenstoreTransport } from "../../src/xenstore/transport.ts";

export class RawClient {
  /** Watch events, each as `path token`. */
  events: string[] = [];
  lost = false;
  readonly #transport: XenstoreTransport;
  readonly #parser = new XsPacketParser();
  readonly #replies: XsPacket[] = [];
  #notice = (): void => {};
  #lastId = 0;

  constructor(transport: XenstoreTransport) {
    this.#transport = transport;
    transport.onData = (bytes) => this.#take(bytes);
    transport.onClose = () => {
      this.lost = true;
      this.#notice();
    };
  }

  /** Replies that came and that nobody asked for yet. */
  get waitingReplies(): number {
    return this.#replies.length;
  }

  send(bytes: Uint8Array): void {
    this.#transport.write(bytes);
  }

  /** The reply's payload as text with `|` for each NUL; for an error its name. `strings` each get a NUL. */
  async ask(type: number, strings: readonly string[] | Uint8Array = [], txId = 0): Promise<string> {
    const payload = strings instanceof Uint8Array ? strings : encodeStrings(...strings);
    const id = ++this.#lastId;
    this.send(encodePacket(type, id, txId, payload));
    const reply = await this.nextReply();
    expect({ id: reply.reqId, txId: reply.txId }).toEqual({ id, txId });
    if (reply.type === XS_ERROR) return decodeText(reply.payload).slice(0, -1);
    expect(reply.type).toBe(type);
    return decodeText(reply.payload).replaceAll("\0", "|");
  }

  async nextReply(): Promise<XsPacket> {
    for (;;) {
      const reply = this.#replies.shift();
      if (reply !== undefined) return reply;
      if (this.lost) throw new Error("the server closed the connection");
      await new Promise<void>((resolve) => (this.#notice = resolve));
    }
  }

  /** The events since the last call. */
  takeEvents(): string[] {
    return this.events.splice(0);
  }

  close(): void {
    this.#transport.close();
  }

  #take(bytes: Uint8Array): void {
    this.#parser.push(bytes);
    for (let packet = this.#parser.next(); packet !== undefined; packet = this.#parser.next())
      if (packet.type === XS_WATCH_EVENT)
        this.events.push(decodeText(packet.payload).slice(0, -1).replace("\0", " "));
      else this.#replies.push(packet);
    this.#notice();
  }
}

/** A server with the domains 0, 1 and 2, and raw clients in this process. */
export class ServerFixture {
  readonly server: XenstoreServer;
  readonly #clients: RawClient[] = [];

  constructor(personality: PersonalityName, options: Omit<XenstoreServerOptions, "personality"> = {}) {
    this.server = new XenstoreServer({ personality, ...options });
    this.server.createDomain(1, "one");
    this.server.createDomain(2, "two");
  }

  client(domid: number): RawClient {
    const client = new RawClient(this.server.connectDirectly(domid));
    this.#clients.push(client);
    return client;
  }

  /** `close`, and waits until what transactions held is free: their events may take some turns. */
  async settle(): Promise<void> {
    this.close();
    const { domains, snapshots } = this.server;
    const held = (): number => domains.values().reduce((sum, domain) => sum + domain.transactionBytes, 0);
    while (held() + snapshots.count > 0) await new Promise(setImmediate);
  }

  /** Closes all and checks that the server holds nothing of them. */
  close(): void {
    for (const client of this.#clients) client.close();
    const { connections, watches, transactions } = this.server.statistics;
    expect({ connections, watches, transactions }).toEqual({ connections: 0, watches: 0, transactions: 0 });
    this.server.close();
  }
}

/** `node`, which is at `path`, and everything below it, parents before children. */
export function* descendants(path: string, node: StoreNode): Generator<[path: string, node: StoreNode]> {
  const waiting: [string, StoreNode][] = [[path, node]];
  for (let entry = waiting.pop(); entry !== undefined; entry = waiting.pop()) {
    yield entry;
    for (const [name, child] of entry[1].children) waiting.push([joinPath(entry[0], name), child]);
  }
}
