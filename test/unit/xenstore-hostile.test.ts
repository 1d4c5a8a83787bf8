// Clients that mean harm, on real sockets: fragments, lengths that lie, floods, replies left unread, quotas
// used up, garbage. The server stays up, stays bounded, and goes on serving everyone else.
import { afterEach, beforeEach, describe, expect, test } from "bun:test";
import { readdirSync } from "node:fs";
import { join } from "node:path";
import fc from "fast-check";
import * as xs from "../../src/protocol/xs-wire.ts";
import { Xenstore } from "../../src/xenstore/client.ts";
import type { Connection } from "../../src/xenstore/server/connection.ts";
import { PERSONALITY_NAMES, type PersonalityName } from "../../src/xenstore/server/personality.ts";
import { XenstoreServer } from "../../src/xenstore/server/server.ts";
import { openTransport } from "../../src/xenstore/open.ts";
import { RawClient } from "./xenstore-harness.ts";
import { removeDirectory, temporaryDirectory } from "../support/temporary.ts";
import { chosenSeed } from "../support/random.ts";

const seed = chosenSeed();

let dir: string;
let server: XenstoreServer;
let opened: { close(): void }[];

async function start(personality: PersonalityName): Promise<void> {
  server = new XenstoreServer({ personality, now: () => nowMs });
  server.createDomain(1, "guest");
  for (const domid of [0, 1]) await server.listen(join(dir, `${domid}`), domid);
}

let nowMs = 0;

async function raw(domid = 1): Promise<RawClient> {
  const client = new RawClient(await openTransport({ kind: "socket", path: join(dir, `${domid}`) }, 1000));
  opened.push(client);
  return client;
}

async function dom0(): Promise<Xenstore> {
  const client = await Xenstore.connect({ kind: "socket", path: join(dir, "0") });
  opened.push(client);
  return client;
}

/** A guest's socket that never reads, and what the server took of what it wrote. */
async function deaf(): Promise<Bun.Socket> {
  const socket = await Bun.connect({ unix: join(dir, "1"), socket: { data: () => {} } });
  socket.pause();
  opened.push({ close: () => socket.terminate() });
  return socket;
}

async function turns(count: number): Promise<void> {
  for (let i = 0; i < count; i++) await new Promise(setImmediate);
}

const w = (path: string, value: string | Uint8Array): Uint8Array =>
  xs.encodePathAndValue(path, typeof value === "string" ? xs.encodeText(value) : value);

beforeEach(() => {
  nowMs = 0;
  opened = [];
  dir = temporaryDirectory();
});
afterEach(async () => {
  for (const each of opened) each.close();
  while (server.statistics.connections > 0) await new Promise(setImmediate);
  expect(server.statistics).toMatchObject({ connections: 0, watches: 0, transactions: 0 });
  server.close();
  expect(readdirSync(dir)).toEqual([]);
  removeDirectory(dir);
});

describe("the packet format", () => {
  test("requests may come byte by byte, and many at once", async () => {
    await start("oxenstored");
    const client = await raw();
    for (const byte of xs.encodePacket(xs.XS_READ, 1, 0, xs.encodeStrings("name"))) {
      client.send(Uint8Array.of(byte));
      await turns(1);
    }
    expect(xs.decodeText((await client.nextReply()).payload)).toBe("guest");
    const many = Array.from({ length: 1000 }, (_, i) =>
      xs.encodePacket(xs.XS_READ, i, 0, xs.encodeStrings("name")),
    );
    client.send(Buffer.concat(many));
    for (let i = 0; i < 1000; i++) expect((await client.nextReply()).reqId).toBe(i);
  });

  test.each(["xenstored-4.17", "xenstored-4.22"] as const)(
    "an overlong packet ends the connection (%s)",
    async (name) => {
      await start(name);
      const client = await raw();
      await client.ask(xs.XS_WATCH, ["data", "t"]);
      const packet = xs.encodePacket(xs.XS_READ, 1, 0);
      new DataView(packet.buffer).setUint32(12, 4097, true);
      client.send(packet);
      expect(await client.nextReply().catch((error: unknown) => String(error))).toContain("closed");
      expect(server.statistics).toMatchObject({ connections: 0, watches: 0 });
    },
  );

  test("half a packet, then nothing: the rest of the world goes on", async () => {
    await start("oxenstored");
    (await raw()).send(xs.encodePacket(xs.XS_WRITE, 1, 0, w("data/x", "1")).subarray(0, 20));
    expect(await (await dom0()).read("/local/domain/1/name")).toBe("guest");
  });

  test.each([...PERSONALITY_NAMES])(
    `random requests of every type get one reply each (%s, SEED=${seed})`,
    async (name) => {
      await start(name);
      const text = fc.constantFrom(
        "data",
        "data/a",
        "data/a/b",
        "/",
        "@releaseDomain",
        "1",
        "0",
        "T",
        "F",
        "n1",
        "r0",
        "",
        "é",
        "a".repeat(3000),
      );
      const payload = fc.oneof(
        fc.uint8Array({ maxLength: 64 }),
        fc.array(text, { maxLength: 5 }).map((parts) => xs.encodeStrings(...parts).subarray(0, 4096)),
      );
      const request = fc.record({ type: fc.nat(30), txId: fc.constantFrom(0, 0, 1, 2, 77), payload });
      await fc.assert(
        fc.asyncProperty(
          fc.constantFrom(0, 1),
          fc.array(request, { maxLength: 40, size: "max" }),
          async (domid, requests) => {
            // dom0 may release a domain, and here everybody: that is not what this is about.
            const harmless = requests.filter(
              ({ type }) => type !== xs.XS_RELEASE && type !== xs.XS_INTRODUCE,
            );
            const client = await raw(domid);
            for (const [id, { type, txId, payload: bytes }] of harmless.entries())
              client.send(xs.encodePacket(type, id, txId, bytes));
            for (const [id, { type }] of harmless.entries()) {
              const reply = await client.nextReply();
              expect(reply.reqId).toBe(id);
              expect([type, xs.XS_ERROR]).toContain(reply.type);
            }
            client.close();
          },
        ),
        { seed, numRuns: 60 },
      );
    },
  );
});

describe("floods", () => {
  test("a guest that reads no replies is read no further, and stops nobody", async () => {
    await start("xenstored-4.22");
    const socket = await deaf();
    const flood = Buffer.concat(
      Array.from({ length: 4000 }, () => xs.encodePacket(xs.XS_READ, 1, 0, xs.encodeStrings("name"))),
    );
    let handled = 0;
    const handle = server.handle.bind(server);
    server.handle = (connection, packet) => {
      handled++;
      handle(connection, packet);
    };
    let taken = 0;
    for (let idle = 0; idle < 20;) {
      const count = socket.write(flood);
      taken += Math.max(0, count);
      idle = count > 0 ? 0 : idle + 1;
      await turns(5);
      if (taken > 64 * 1024 * 1024) break;
    }
    expect(taken).toBeLessThan(16 * 1024 * 1024);
    const before = handled;
    const client = await dom0();
    for (let i = 0; i < 20; i++) expect(await client.read("/local/domain/1/name")).toBe("guest");
    expect(handled - before).toBe(21); // 20 reads and the greeting of connect
    const [connection] = server.domains.get(1)?.connections ?? [];
    expect(connection?.unreadReplies).toBe(20);
  });

  test("a busy guest leaves others their turn", async () => {
    await start("oxenstored");
    const busy = await raw();
    const packets = Array.from({ length: 20_000 }, (_, i) =>
      xs.encodePacket(xs.XS_READ, i, 0, xs.encodeStrings("name")),
    );
    busy.send(Buffer.concat(packets));
    const client = await dom0();
    await client.read("/local/domain/1/name");
    expect(busy.waitingReplies).toBeLessThan(packets.length);
    for (let i = 0; i < packets.length; i++) expect((await busy.nextReply()).reqId).toBe(i);
  });

  test("unread watch events are bounded, merged, and dropped when they are old", async () => {
    await start("xenstored-4.22");
    server.destroyDomain(1);
    server.quotas = { ...server.quotas, watchEvents: 50 };
    server.createDomain(1, "guest");
    await server.listen(join(dir, "1"), 1);
    const socket = await deaf();
    socket.write(xs.encodePacket(xs.XS_WATCH, 1, 0, xs.encodeStrings("data", "t")));
    while (server.statistics.watches === 0) await turns(1);
    const client = await dom0();
    const [connection] = server.domains.get(1)?.connections ?? [];
    const change = (name: string) => client.write(`/local/domain/1/data/${name}`, "x");
    // The socket's own buffer takes the first of them; from then on they stay here.
    for (let i = 0; connection?.droppedEvents === 0; i++) await change(`n${i % 4000}-${"long".repeat(50)}`);
    expect(connection?.unreadEvents).toBe(50);
    const dropped = connection?.droppedEvents ?? 0;
    await change("fresh");
    expect(connection?.droppedEvents).toBe(dropped + 1);
    nowMs += 20_001;
    await change("fresh");
    expect(connection?.unreadEvents).toBeLessThanOrEqual(2); // the fresh one, and one that is half sent
    for (let i = 0; i < 100; i++) await change("fresh");
    expect(connection?.unreadEvents).toBeLessThanOrEqual(2);
  });

  test("what a transaction does to one node again and again takes no more memory than once", async () => {
    await start("xenstored-4.22");
    const client = await raw();
    const id = Number.parseInt(await client.ask(xs.XS_TRANSACTION_START, [""]), 10);
    const connection = [...(server.domains.get(1)?.connections ?? [])][0] as Connection;
    const transaction = connection.session.transaction(id);
    for (let i = 0; i < 200; i++) {
      expect(await client.ask(xs.XS_WRITE, w("data/a", String(i)), id)).toBe("OK|");
      expect(await client.ask(xs.XS_RM, ["data/a"], id)).toBe("OK|");
    }
    expect(transaction.changes.length).toBe(1);
    expect(await client.ask(xs.XS_WATCH, ["data", "t"])).toBe("OK|");
    expect(await client.ask(xs.XS_TRANSACTION_END, ["T"], id)).toBe("OK|");
    await turns(5);
    // To C xenstored, the node never was.
    expect(client.takeEvents()).toEqual(["data t"]);
  });

  test("connections of a guest are limited", async () => {
    await start("oxenstored");
    const limit = server.quotas.connections;
    const clients = await Promise.all(Array.from({ length: limit }, () => raw()));
    expect(await clients[0].ask(xs.XS_READ, ["name"])).toBe("guest");
    expect(await (await raw()).ask(xs.XS_READ, ["name"]).catch((error: unknown) => String(error))).toContain(
      "closed",
    );
    expect(await (await dom0()).read("/local/domain/1/name")).toBe("guest");
  });
});

describe("quotas of a guest", () => {
  const errors = {
    "xenstored-4.17": {
      nodes: "ENOSPC",
      watches: "E2BIG",
      transactions: "ENOSPC",
      size: "ENOSPC",
      perms: "ENOSPC",
      tx: "ENOSPC",
    },
    "xenstored-4.22": {
      nodes: "ENOSPC",
      watches: "ENOSPC",
      transactions: "ENOSPC",
      size: "ENOSPC",
      perms: "ENOSPC",
      tx: "ENOSPC",
    },
    oxenstored: {
      nodes: "EQUOTA",
      watches: "EQUOTA",
      transactions: "EQUOTA",
      size: "E2BIG",
      perms: "EINVAL",
      tx: "EQUOTA",
    },
    "rfc-2014": {
      nodes: "EQUOTA",
      watches: "EQUOTA",
      transactions: "EQUOTA",
      size: "E2BIG",
      perms: "EINVAL",
      tx: "EQUOTA",
    },
  };

  /** How often `request` succeeds before it fails, and how it fails. */
  async function until(
    client: RawClient,
    request: (i: number) => [type: number, strings: string[] | Uint8Array, txId?: number],
  ) {
    for (let i = 0; ; i++) {
      const reply = await client.ask(...request(i));
      if (/^E[A-Z0-9]+$/.test(reply)) return { count: i, errno: reply };
    }
  }

  test.each([...PERSONALITY_NAMES])("are enforced (%s)", async (name) => {
    await start(name);
    const expected = errors[name];
    const client = await raw();
    const { quotas } = server;
    const seeded = server.tree.ownedBy(1);
    // In a directory of its own for each: C xenstored counts the names towards the directory's size.
    const nodes = await until(client, (i) => [xs.XS_WRITE, w(`data/${i % 100}/${i}`, "")]);
    expect(nodes.errno).toBe(expected.nodes);
    expect(server.tree.ownedBy(1)).toBe(quotas.nodes);
    expect(nodes.count + 100 + seeded).toBe(quotas.nodes);
    await client.ask(xs.XS_RM, ["data/0"]);
    expect(await client.ask(xs.XS_WRITE, w("data/again", ""))).toBe("OK|");

    expect(await until(client, (i) => [xs.XS_WATCH, ["data", `${i}`]])).toEqual({
      count: quotas.watches,
      errno: expected.watches,
    });
    expect(await until(client, () => [xs.XS_TRANSACTION_START, [""]])).toEqual({
      count: quotas.transactions,
      errno: expected.transactions,
    });
    expect(await client.ask(xs.XS_WRITE, w("data/again", new Uint8Array(2049)))).toBe(expected.size);
    const access = ["n1", "r2", "r3", "r4", "r5"];
    expect(await client.ask(xs.XS_SET_PERMS, ["data/again", ...access, "r6"])).toBe(expected.perms);
    expect(await client.ask(xs.XS_SET_PERMS, ["data/again", ...access])).toBe("OK|");
    const reads = await until(client, (i) => [xs.XS_READ, [`data/again${i === 0 ? "" : `/${i}`}`], 1]);
    expect(reads).toEqual({ count: 1, errno: "ENOENT" });
    const other = await raw();
    expect(await until(other, () => [xs.XS_TRANSACTION_START, [""]])).toEqual({
      count: 0,
      errno: expected.transactions,
    });
  });

  test.each([...PERSONALITY_NAMES])("limit what a transaction does (%s)", async (name) => {
    await start(name);
    server.destroyDomain(1);
    server.quotas = { ...server.quotas, transactionNodes: 10 };
    server.createDomain(1, "guest");
    await server.listen(join(dir, "1"), 1);
    const client = await raw();
    const id = Number.parseInt(await client.ask(xs.XS_TRANSACTION_START, [""]), 10);
    expect((await until(client, (i) => [xs.XS_MKDIR, [`data/${i}`], id])).errno).toBe(errors[name].tx);
    expect(await client.ask(xs.XS_TRANSACTION_END, ["T"], id)).toBe("OK|");
  });

  test.each(["xenstored-4.22", "oxenstored"] as const)(
    "hold across transactions that meet (%s)",
    async (name) => {
      await start(name);
      const client = await raw();
      const begin = async () => Number.parseInt(await client.ask(xs.XS_TRANSACTION_START, [""]), 10);
      await client.ask(xs.XS_MKDIR, ["data/a"]);
      await client.ask(xs.XS_MKDIR, ["data/b"]);
      const ids = [await begin(), await begin()] as const;
      for (const [at, id] of ids.entries())
        for (let i = 0; i < 600; i++) {
          const made = await client.ask(xs.XS_MKDIR, [`data/${"ab"[at]}/${i % 30}/${i}`], id);
          expect(made).toBe("OK|");
        }
      expect(await client.ask(xs.XS_TRANSACTION_END, ["T"], ids[0])).toBe("OK|");
      expect(await client.ask(xs.XS_TRANSACTION_END, ["T"], ids[1])).toBe(
        name === "oxenstored" ? "EAGAIN" : "ENOSPC",
      );
      expect(server.tree.ownedBy(1)).toBeLessThanOrEqual(server.quotas.nodes);
    },
  );

  test("do not bind dom0", async () => {
    await start("oxenstored");
    const client = await dom0();
    await Promise.all(Array.from({ length: 1500 }, (_, i) => client.write(`/n/${i}`, "x".repeat(2500))));
    expect(await client.directory("/n")).toHaveLength(1500);
  });
});
