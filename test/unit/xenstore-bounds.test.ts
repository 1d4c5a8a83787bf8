// What one domain can cost the server, and so all others: memory, time, and its place in the queue.
import { describe, expect, test } from "bun:test";
import * as xs from "../../src/protocol/xs-wire.ts";
import { Connection } from "../../src/xenstore/server/connection.ts";
import { PERSONALITIES } from "../../src/xenstore/server/personality.ts";
import { ServerFixture } from "./xenstore-harness.ts";

test.each(["xenstored-4.17", "xenstored-4.22"] as const)(
  "a node that a transaction was refused is not remembered (%s)",
  async (name) => {
    const fixture = new ServerFixture(name, {
      quotas: { ...PERSONALITIES[name].quotas, transactionNodes: 10 },
    });
    const client = fixture.client(1);
    const id = Number.parseInt(await client.ask(xs.XS_TRANSACTION_START, [""]), 10);
    const read = (i: number) => client.ask(xs.XS_READ, [`data/${i}`], id);
    for (let i = 0; i < 10; i++) expect(await read(i)).toBe("ENOENT");
    for (let i = 10; i < 20; i++) expect(await read(i)).toBe("ENOSPC");
    // Were the refused ones counted, there would be too many now for those that were admitted too.
    for (let i = 0; i < 10; i++) expect(await read(i)).toBe("ENOENT");
    fixture.close();
  },
);

describe("turns", () => {
  const READ = xs.encodePacket(xs.XS_READ, 1, 0, xs.encodeStrings("name"));

  /** A server that takes `ms` for each request of domain 1, and how many of these it has served. */
  function slowServer(ms: number): { readonly fixture: ServerFixture; readonly served: () => number } {
    let [now, served] = [0, 0];
    const fixture = new ServerFixture("oxenstored", { now: () => now });
    const handle = fixture.server.handle.bind(fixture.server);
    fixture.server.handle = (connection, packet) => {
      if (connection.domain.domid === 1) {
        served++;
        now += ms;
      }
      handle(connection, packet);
    };
    return { fixture, served: () => served };
  }

  test.each([
    [1, 64, 3, 1],
    [1, 64, 0.5, 4],
    [1, 100, 0, 64],
    [16, 10, 3, 1],
    [16, 10, 0, 64],
  ])(
    "%d connections with %d requests each that take %d ms: another domain waits for %d of them",
    async (connections, requests, ms, expected) => {
      const { fixture, served } = slowServer(ms);
      const busy = Array.from({ length: connections }, () => fixture.client(1));
      const other = fixture.client(2);
      const flood = Buffer.concat(Array.from({ length: requests }, () => READ));
      for (const each of busy) each.send(flood);
      expect(await other.ask(xs.XS_READ, ["name"])).toBe("two");
      expect(served()).toBe(expected);
      for (const each of busy) for (let i = 0; i < requests; i++) await each.nextReply();
      expect(served()).toBe(connections * requests);
      fixture.close();
    },
  );

  test("a connection that closes while it waits is served no more, and holds up nobody", async () => {
    const { fixture, served } = slowServer(3);
    const [first, second] = [fixture.client(1), fixture.client(1)];
    first.send(Buffer.concat([READ, READ]));
    second.send(READ);
    await fixture.client(2).ask(xs.XS_READ, ["name"]);
    first.close();
    await second.nextReply();
    expect(served()).toBe(2);
    fixture.close();
  });
});

describe("what a domain sends faster than it is served", () => {
  const WRITE = xs.encodePacket(xs.XS_WRITE, 1, 0, xs.encodePathAndValue("data/x", new Uint8Array(1000)));

  /** A client that sends what it is asked for, as long as it is read. */
  class Sender {
    readonly connection: Connection;
    reading = true;
    replies = 0;
    sent = 0;

    constructor({ server }: ServerFixture, domid: number) {
      const domain = server.domains.get(domid);
      if (domain === undefined) throw new Error("no such domain");
      const parser = new xs.XsPacketParser();
      const write = (bytes: Uint8Array): number => {
        parser.push(bytes);
        while (parser.next() !== undefined) this.replies++;
        return bytes.length;
      };
      const setReading = (wanted: boolean): void => {
        this.reading = wanted;
      };
      const channel = { write, setReading, violation: () => {}, close: () => {} };
      this.connection = new Connection(server, domain, channel, "clamp");
    }

    send(count: number): void {
      if (!this.reading) return;
      this.sent += count;
      this.connection.receive(Buffer.concat(Array.from({ length: count }, () => WRITE)));
    }
  }

  test("is read no further than its limit, in all connections together, and all of it is answered", async () => {
    const inputBytes = 100_000;
    const quotas = { ...PERSONALITIES.oxenstored.quotas, inputBytes };
    const fixture = new ServerFixture("oxenstored", { quotas, now: () => 0 });
    const senders = Array.from({ length: 200 }, () => new Sender(fixture, 1));
    const other = new Sender(fixture, 2);
    let most = 0;
    for (let round = 0; round < 50; round++) {
      for (const each of senders) each.send(20);
      other.send(1);
      const waiting = senders.reduce((sum, { sent, replies }) => sum + sent - replies, 0);
      most = Math.max(most, waiting * WRITE.length);
      await new Promise(setImmediate);
    }
    expect(most).toBeGreaterThan(inputBytes / 2);
    expect(most).toBeLessThan(inputBytes + 20 * WRITE.length);
    expect(other.replies).toBe(50);
    while (senders.some(({ sent, replies }) => replies < sent)) await new Promise(setImmediate);
    expect(senders.every(({ reading }) => reading)).toBe(true);
    for (const { connection } of [...senders, other]) connection.close();
    expect(fixture.server.domains.get(1)?.intake.full).toBe(false);
    fixture.close();
  });
});

test("the tree is searched once for a change, however many watch it", async () => {
  const fixture = new ServerFixture("oxenstored");
  const client = fixture.client(1);
  const searches = async (): Promise<number> => {
    let count = 0;
    const { tree } = fixture.server;
    const get = tree.get.bind(tree);
    tree.get = (path) => {
      count++;
      return get(path);
    };
    await client.ask(xs.XS_MKDIR, ["data/n"]);
    await client.ask(xs.XS_RM, ["data/n"]);
    tree.get = get;
    return count;
  };
  await client.ask(xs.XS_WATCH, ["data", "t"]);
  const alone = await searches();
  for (let i = 0; i < 50; i++) await client.ask(xs.XS_WATCH, ["data", `${i}`]);
  expect(await searches()).toBe(alone);
  fixture.close();
});

describe("what a domain leaves unread in all its connections", () => {
  /** A client that takes nothing until it listens. */
  class Deaf {
    readonly connection: Connection;
    readonly parser = new xs.XsPacketParser();
    reading = true;
    #listening = false;

    constructor({ server }: ServerFixture, domid: number) {
      const domain = server.domains.get(domid);
      if (domain === undefined) throw new Error("no such domain");
      const channel = {
        write: (bytes: Uint8Array): number => {
          if (this.#listening) this.parser.push(bytes);
          return this.#listening ? bytes.length : 0;
        },
        setReading: (wanted: boolean) => (this.reading = wanted),
        violation: () => {},
        close: () => {},
      };
      this.connection = new Connection(server, domain, channel, "clamp");
    }

    ask(type: number, strings: readonly string[], times = 1): void {
      const packet = xs.encodePacket(type, 0, 0, xs.encodeStrings(...strings));
      for (let i = 0; i < times; i++) this.connection.receive(packet);
    }

    /** What waits now and from now on is taken. Gives the number of packets of a type so far. */
    async listen(type: number): Promise<number> {
      this.#listening = true;
      this.connection.writable();
      await turns(20);
      let count = 0;
      for (let packet = this.parser.next(); packet !== undefined; packet = this.parser.next())
        if (packet.type === type) count++;
      return count;
    }
  }

  async function turns(count: number): Promise<void> {
    for (let i = 0; i < count; i++) await new Promise(setImmediate);
  }

  /** A thousand bytes to be read, and eight deaf clients of domain `domid` in a server with this limit. */
  async function world(domid: number, unreadBytes: number) {
    const quotas = { ...PERSONALITIES.oxenstored.quotas, unreadBytes };
    const fixture = new ServerFixture("oxenstored", { quotas, now: () => 0 });
    const dom0 = fixture.client(0);
    const big = `/local/domain/${domid}/data/big`;
    await dom0.ask(xs.XS_WRITE, xs.encodePathAndValue(big, new Uint8Array(1000)));
    const deaf = Array.from({ length: 8 }, () => new Deaf(fixture, domid));
    const unread = () =>
      deaf.reduce((sum, { connection }) => sum + connection.unreadReplies + connection.unreadEvents, 0);
    const end = () => {
      for (const { connection } of deaf) connection.close();
      fixture.close();
    };
    return { fixture, dom0, deaf, unread, end };
  }

  test("is bounded: none of them is served until there is room again", async () => {
    const { fixture, deaf, unread, end } = await world(1, 20_000);
    for (const each of deaf) each.ask(xs.XS_READ, ["data/big"], 10);
    await turns(20);
    expect(unread()).toBeGreaterThan(12);
    expect(unread()).toBeLessThan(20);
    expect(deaf.map(({ reading }) => reading)).toEqual([true, ...Array.from({ length: 7 }, () => false)]);
    expect(await fixture.client(2).ask(xs.XS_READ, ["name"])).toBe("two");
    const [first, second, ...others] = deaf as [Deaf, Deaf, ...Deaf[]];
    expect(await first.listen(xs.XS_READ)).toBe(10);
    second.connection.close();
    await turns(20);
    for (const each of others) expect(await each.listen(xs.XS_READ)).toBe(10);
    expect(unread()).toBe(0);
    expect(others.every(({ reading }) => reading)).toBe(true);
    end();
  });

  test("has room for events no longer, but for those of who reads", async () => {
    const { fixture, dom0, deaf, unread, end } = await world(1, 20_000);
    const watching = fixture.client(1);
    await watching.ask(xs.XS_WATCH, ["data", "t"]);
    for (const each of deaf) each.ask(xs.XS_WATCH, ["data", "t"]);
    for (let i = 0; i < 100; i++) await dom0.ask(xs.XS_MKDIR, [`/local/domain/1/data/${i}`]);
    await turns(5);
    expect(unread()).toBeGreaterThan(20);
    expect(unread()).toBeLessThan(40);
    expect(await watching.ask(xs.XS_READ, ["name"])).toBe("one");
    expect(deaf[0]?.connection.droppedEvents).toBeGreaterThan(80);
    expect(watching.takeEvents()).toHaveLength(101);
    for (const each of deaf) await each.listen(xs.XS_WATCH_EVENT);
    await dom0.ask(xs.XS_MKDIR, ["/local/domain/1/data/again"]);
    for (const each of deaf) expect(await each.listen(xs.XS_WATCH_EVENT)).toBe(1);
    end();
  });

  test("is not bounded for dom0", async () => {
    const { deaf, unread, end } = await world(0, 20_000);
    for (const each of deaf) each.ask(xs.XS_READ, ["data/big"], 10);
    await turns(20);
    expect(unread()).toBe(80);
    end();
  });
});
