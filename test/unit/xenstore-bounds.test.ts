// What one domain can cost the server, and so all others: memory, time, and its place in the queue.
import { describe, expect, test } from "bun:test";
import * as xs from "../../src/protocol/xs-wire.ts";
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
