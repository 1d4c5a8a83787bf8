// What takes a guest's xenstore requests long, in turns: the end of a transaction, its events, a domain's death.
// Everyone else is served in between, sees all of a transaction or nothing, and what a guest holds is bounded.
import { afterEach, describe, expect, test } from "bun:test";
import * as xs from "../../src/protocol/xs-wire.ts";
import { Footprint } from "../../src/xenstore/server/footprint.ts";
import { hashBelow, ROOT_HASH } from "../../src/xenstore/server/path-hash.ts";
import {
  PERSONALITIES,
  PERSONALITY_NAMES,
  type PersonalityName,
} from "../../src/xenstore/server/personality.ts";
import { Snapshots } from "../../src/xenstore/server/snapshots.ts";
import { StoreTree } from "../../src/xenstore/server/store.ts";
import { ServerFixture, type RawClient } from "./xenstore-harness.ts";

const TURN = 64;
const DEEP = `data/top${"/a".repeat(480)}`;

let fixture: ServerFixture | undefined;
afterEach(async () => {
  await fixture?.settle();
  fixture = undefined;
});

/** A server for one test, with a clock that stands still unless it is told otherwise. */
function serve(name: PersonalityName, now: () => number = () => 0): ServerFixture {
  fixture = new ServerFixture(name, { now });
  return fixture;
}

async function begin(client: RawClient): Promise<number> {
  return Number.parseInt(await client.ask(xs.XS_TRANSACTION_START, [""]), 10);
}

const w = (path: string, value: string) => xs.encodePathAndValue(path, xs.encodeText(value));

/** Sends many requests at once and returns the replies' texts. */
async function all(
  client: RawClient,
  requests: readonly (readonly [type: number, strings: readonly string[]])[],
  id: number,
) {
  client.send(
    Buffer.concat(requests.map(([type, s]) => xs.encodePacket(type, 0, id, xs.encodeStrings(...s)))),
  );
  const replies: string[] = [];
  for (const _ of requests)
    replies.push(xs.decodeText((await client.nextReply()).payload).replace("\0", "|"));
  return replies;
}

const pairs = (count: number) =>
  Array.from({ length: count }, () => [
    [xs.XS_MKDIR, [DEEP]] as const,
    [xs.XS_RM, ["data/top"]] as const,
  ]).flat();

/** A transaction of domain 1 with `writes` writes to data/n0…, which will have to be done again. Sends no end. */
async function conflicting(writes: number) {
  const fixture = serve("oxenstored");
  const [guest, other] = [fixture.client(1), fixture.client(2)];
  const dom0 = fixture.client(0);
  await guest.ask(xs.XS_MKDIR, ["data/d"]);
  const id = await begin(guest);
  for (let i = 0; i < writes; i++) await guest.ask(xs.XS_WRITE, w(`data/d/n${i}`, "new"), id);
  await guest.ask(xs.XS_WRITE, w("data/d/plain", "x")); // a sibling: oxenstored merges it
  let repeated = 0;
  const repeat = fixture.server.repeat.bind(fixture.server);
  fixture.server.repeat = (...args) => {
    repeated++;
    return repeat(...args);
  };
  const end = () => guest.ask(xs.XS_TRANSACTION_END, ["T"], id);
  return { fixture, guest, other, dom0, end, repeated: () => repeated };
}

describe("a transaction that is done again", () => {
  test("lets others be served after each turn, who see nothing of it until it is whole", async () => {
    const { other, dom0, end, repeated } = await conflicting(500);
    let ended = false;
    const ending = end().then((reply) => {
      ended = true;
      return reply;
    });
    let turns = 0;
    for (let before = 0; !ended; before = repeated(), turns++) {
      expect(await other.ask(xs.XS_READ, ["name"])).toBe("two");
      expect(repeated() - before).toBeLessThanOrEqual(TURN);
      const seen = await dom0.ask(xs.XS_READ, ["/local/domain/1/data/d/n0"]);
      const last = await dom0.ask(xs.XS_READ, ["/local/domain/1/data/d/n499"]);
      expect([seen, last]).toEqual(repeated() < 500 ? ["ENOENT", "ENOENT"] : ["new", "new"]);
    }
    expect(await ending).toBe("OK|");
    expect(turns).toBeGreaterThan(500 / TURN - 1);
    expect(repeated()).toBe(500);
  });

  test("is merged with what others did elsewhere meanwhile", async () => {
    const { other, dom0, end, repeated } = await conflicting(200);
    const ending = end();
    while (repeated() === 0) await new Promise(setImmediate);
    expect(await other.ask(xs.XS_WRITE, w("data/theirs", "1"))).toBe("OK|");
    expect(await ending).toBe("OK|");
    expect(repeated()).toBe(200);
    expect(await other.ask(xs.XS_READ, ["data/theirs"])).toBe("1");
    for (const name of ["n0", "n199", "plain"])
      expect(await dom0.ask(xs.XS_READ, [`/local/domain/1/data/d/${name}`])).not.toStartWith("E");
  });

  test("is given up with EAGAIN when others come in between again and again", async () => {
    const { dom0, end, repeated } = await conflicting(200);
    const ending = end();
    let ended = false;
    void ending.then(() => (ended = true));
    for (let i = 0; !ended; i++) await dom0.ask(xs.XS_MKDIR, [`/local/domain/1/data/d/x${i}`]);
    expect(await ending).toBe("EAGAIN");
    expect(repeated()).toBeLessThanOrEqual(4 * 200);
    expect(await dom0.ask(xs.XS_READ, ["/local/domain/1/data/d/n0"])).toBe("ENOENT");
  });

  test("ends with its connection, and nothing of it is done", async () => {
    const { fixture, guest, dom0, end, repeated } = await conflicting(200);
    void end().catch(() => {});
    while (repeated() === 0) await new Promise(setImmediate);
    guest.close();
    while (fixture.server.snapshots.count > 0) await new Promise(setImmediate);
    expect(await dom0.ask(xs.XS_READ, ["/local/domain/1/data/d/n0"])).toBe("ENOENT");
    expect(repeated()).toBeLessThan(200);
  });

  test.each([...PERSONALITY_NAMES])(
    "512 times a path of 480 levels: what it does is bounded (%s)",
    async (name) => {
      const fixture = serve(name, () => performance.now());
      const [guest, other] = [fixture.client(1), fixture.client(2)];
      const id = await begin(guest);
      const before = fixture.server.tree.turnover;
      const replies = await all(guest, pairs(512), id);
      const refused = replies.find((reply) => reply !== "OK|");
      expect([undefined, PERSONALITIES[name].quotaErrno.transactionBytes + "|"]).toContain(refused);
      await guest.ask(xs.XS_MKDIR, ["data/conflict"]);
      await guest.ask(xs.XS_TRANSACTION_END, ["T"], id);
      expect(fixture.server.tree.turnover - before).toBeLessThan(
        2 * PERSONALITIES[name].quotas.transactionBytes,
      );
      expect(await other.ask(xs.XS_READ, ["name"])).toBe("two");
    },
  );
});

describe("what transactions hold", () => {
  test.each([...PERSONALITY_NAMES])(
    "is bounded for a domain, and free again when they end (%s)",
    async (name) => {
      const fixture = serve(name, () => performance.now());
      const guest = fixture.client(1);
      const domain = fixture.server.domains.get(1);
      const { transactionBytes } = PERSONALITIES[name].quotas;
      const ids: number[] = [];
      for (let i = 0; i < 10; i++) ids.push(await begin(guest));
      let refused = 0;
      for (const id of ids)
        refused += (await all(guest, pairs(100), id)).filter((reply) => reply.startsWith("E")).length;
      expect(refused).toBeGreaterThan(0);
      // No more than one request beyond the limit: a path of 480 levels, each copied, made, marked and removed.
      expect(domain?.transactionBytes).toBeLessThan(transactionBytes + 481 * 4 * 500);
      for (const id of ids) expect(await guest.ask(xs.XS_TRANSACTION_END, ["F"], id)).toBe("OK|");
      expect(domain?.transactionBytes).toBe(0);
      const id = await begin(guest);
      expect(await guest.ask(xs.XS_MKDIR, ["data/again"], id)).toBe("OK|");
      expect(await guest.ask(xs.XS_TRANSACTION_END, ["T"], id)).toBe("OK|");
    },
  );

  test.each([...PERSONALITY_NAMES])("does not bind dom0 (%s)", async (name) => {
    const fixture = serve(name, () => performance.now());
    const dom0 = fixture.client(0);
    const id = await begin(dom0);
    const requests = Array.from({ length: 3000 }, (_, i) => [xs.XS_MKDIR, [`/n/${i % 50}/${i}`]] as const);
    expect(new Set(await all(dom0, requests, id))).toEqual(new Set(["OK|"]));
    await fixture.client(0).ask(xs.XS_MKDIR, ["/tool/elsewhere"]);
    expect(await dom0.ask(xs.XS_TRANSACTION_END, ["T"], id)).toBe("OK|");
    expect(fixture.server.tree.get("/n/49/2999")).toBeDefined();
  });

  test("what it began with is given up when too much was replaced since, the newest of a domain last", async () => {
    const expired: string[] = [];
    const snapshots = new Snapshots();
    const [one, two] = [{}, {}];
    const add = (name: string, domain: object, megabytes: number) =>
      snapshots.add({ domain, turnover: megabytes << 20, expire: () => expired.push(name) });
    add("one's older", one, 0);
    add("one's newer", one, 1);
    add("two's", two, 2);
    snapshots.trim(8 << 20);
    expect(expired).toEqual([]);
    snapshots.trim(9 << 20);
    expect(expired).toEqual(["one's older"]);
    snapshots.trim(33 << 20);
    expect(expired).toEqual(["one's older"]);
    snapshots.trim(34 << 20);
    expect(expired).toEqual(["one's older", "one's newer"]);
    snapshots.trim(99 << 20);
    expect(expired).toEqual(["one's older", "one's newer", "two's"]);
    expect(snapshots.count).toBe(0);
  });

  test.each([...PERSONALITY_NAMES])("the older of two works on, and ends with EAGAIN (%s)", async (name) => {
    const fixture = serve(name, () => performance.now());
    const [guest, busy] = [fixture.client(1), fixture.client(1)];
    for (const name of [..."0123456789", "mine"]) await guest.ask(xs.XS_MKDIR, [`data/${name}`]);
    const ids = [await begin(guest), await begin(guest)];
    for (const id of ids) await guest.ask(xs.XS_READ, ["name"], id);
    const value = new Uint8Array(1900);
    for (let i = 0; i < 10_000; i++)
      busy.send(xs.encodePacket(xs.XS_WRITE, 0, 0, xs.encodePathAndValue(`data/${i % 10}`, value)));
    for (let i = 0; i < 10_000; i++) await busy.nextReply();
    expect(await guest.ask(xs.XS_WRITE, w("data/mine", "2"), ids[1])).toBe("OK|");
    expect(await guest.ask(xs.XS_TRANSACTION_END, ["T"], ids[1])).toBe("OK|");
    expect(await guest.ask(xs.XS_WRITE, w("data/mine", "1"), ids[0])).toBe("OK|");
    expect(await guest.ask(xs.XS_READ, ["data/mine"], ids[0])).toBe("1");
    expect(await guest.ask(xs.XS_TRANSACTION_END, ["T"], ids[0])).toBe("EAGAIN");
    expect(await guest.ask(xs.XS_READ, ["data/mine"])).toBe("2");
  });
});

describe("events", () => {
  /** Domain 2 watches a directory of domain 1 in which a transaction has made many nodes. */
  async function manyEvents() {
    const fixture = serve("oxenstored");
    const [guest, watcher, other] = [fixture.client(1), fixture.client(0), fixture.client(2)];
    await watcher.ask(xs.XS_WATCH, ["/local/domain/1/data", "t"]);
    const id = await begin(guest);
    const requests = Array.from({ length: 600 }, (_, i) => [xs.XS_MKDIR, [`data/${i}`]] as const);
    await all(guest, requests, id);
    watcher.takeEvents();
    const expected = Array.from({ length: 600 }, (_, i) => `/local/domain/1/data/${i} t`);
    const end = () => guest.ask(xs.XS_TRANSACTION_END, ["T"], id);
    return { fixture, guest, watcher, other, end, expected };
  }

  test("of a large commit come in turns and in order, while others are served", async () => {
    const { guest, watcher, other, end, expected } = await manyEvents();
    const ending = end();
    expect(await other.ask(xs.XS_READ, ["name"])).toBe("two");
    expect(watcher.events.length).toBeLessThanOrEqual(2 * TURN);
    // The guest itself goes on when they are out.
    expect(await ending).toBe("OK|");
    await new Promise(setImmediate);
    expect(watcher.events).toEqual(expected);
    expect(await guest.ask(xs.XS_READ, ["name"])).toBe("one");
  });

  test.each(["client", "domain"])("of a commit come although its %s is gone", async (gone) => {
    const { fixture, guest, watcher, end, expected } = await manyEvents();
    end().catch(() => {}); // nobody is there any more to get the reply
    while (watcher.events.length === 0) await new Promise(setImmediate);
    expect(watcher.events.length).toBeLessThan(600);
    if (gone === "client") guest.close();
    else fixture.server.destroyDomain(1);
    while (watcher.events.length < 600) await new Promise(setImmediate);
    expect(watcher.takeEvents().slice(0, 600)).toEqual(expected);
    await new Promise(setImmediate);
  });

  test("of removals are found by what is watched, and cost no search of the tree each", async () => {
    const fixture = serve("oxenstored");
    const [guest, watcher] = [fixture.client(1), fixture.client(0)];
    await guest.ask(xs.XS_MKDIR, [DEEP]);
    for (const levels of [0, 100, 480])
      await watcher.ask(xs.XS_WATCH, [`/local/domain/1/data/top${"/a".repeat(levels)}`, String(levels)]);
    await watcher.ask(xs.XS_WATCH, [`/local/domain/1/data/top/b`, "not there"]);
    watcher.takeEvents();
    let searches = 0;
    const { tree } = fixture.server;
    const get = tree.get.bind(tree);
    tree.get = (path) => {
      searches++;
      return get(path);
    };
    await guest.ask(xs.XS_RM, ["data/top"]);
    await new Promise(setImmediate);
    expect(watcher.takeEvents().map((event) => event.split(" ")[1])).toEqual(["0", "100", "480"]);
    expect(searches).toBeLessThanOrEqual(1); // for the removal itself: dom0 may read everything
  });

  test("of one path do not reach who watches another whose number is the same", async () => {
    const seen = new Map<number, string>();
    let pair: [string, string] | undefined;
    for (let i = 0; pair === undefined; i++) {
      const name = `n${i.toString(36)}`;
      const hash = hashBelow(ROOT_HASH, name);
      const twin = seen.get(hash);
      if (twin !== undefined) pair = [twin, name];
      seen.set(hash, name);
    }
    const fixture = serve("oxenstored");
    const dom0 = fixture.client(0);
    for (const name of pair) await dom0.ask(xs.XS_WATCH, [`/${name}`, name]);
    dom0.takeEvents();
    await dom0.ask(xs.XS_MKDIR, [`/${pair[0]}/x`]);
    await dom0.ask(xs.XS_RM, [`/${pair[0]}`]);
    await new Promise(setImmediate);
    const { length } = dom0.events.filter((event) => event.endsWith(` ${pair[0]}`));
    expect(dom0.events).toHaveLength(length);
    await dom0.ask(xs.XS_UNWATCH, [`/${pair[0]}`, pair[0]]);
    dom0.takeEvents();
    await dom0.ask(xs.XS_MKDIR, [`/${pair[1]}`]);
    await new Promise(setImmediate);
    expect(dom0.takeEvents()).toEqual([`/${pair[1]} ${pair[1]}`]);
  });
});

test("the death of a domain with many nodes is reported in turns, and then that it died", async () => {
  const fixture = serve("oxenstored");
  const [guest, other, dom0] = [fixture.client(1), fixture.client(2), fixture.client(0)];
  // Each in a directory of domain 0, so that each is removed for itself.
  for (let i = 0; i < 300; i++) {
    await dom0.ask(xs.XS_MKDIR, [`/shared/${i}`]);
    await dom0.ask(xs.XS_SET_PERMS, [`/shared/${i}`, "b0"]);
  }
  for (let i = 0; i < 300; i++) await guest.ask(xs.XS_MKDIR, [`/shared/${i}/mine`]);
  await dom0.ask(xs.XS_WATCH, ["/shared", "t"]);
  await dom0.ask(xs.XS_WATCH, ["@releaseDomain", "r"]);
  dom0.takeEvents();
  fixture.server.destroyDomain(1);
  expect(fixture.server.tree.get("/shared/299/mine")).toBeUndefined();
  expect(await other.ask(xs.XS_READ, ["name"])).toBe("two");
  expect(dom0.events.length).toBeLessThanOrEqual(2 * TURN);
  while (!dom0.events.includes("@releaseDomain r")) await new Promise(setImmediate);
  expect(dom0.takeEvents()).toEqual([
    ...Array.from({ length: 300 }, (_, i) => `/shared/${i}/mine t`),
    "@releaseDomain r",
  ]);
});

test("making a path costs its depth", () => {
  const cost = (levels: number): [turnover: number, marks: number] => {
    const tree = StoreTree.empty();
    const footprint = new Footprint(() => {});
    const path = "/a".repeat(levels);
    const before = tree.turnover;
    footprint.touchDown("/", path);
    tree.create(path, [{ domid: 1, access: "none" }]);
    footprint.modifyDown("/", path);
    return [tree.turnover - before, footprint.bytes];
  };
  const [one, hundred] = [cost(1), cost(100)];
  expect(hundred[0]).toBeLessThanOrEqual(100 * one[0]);
  expect(hundred[1]).toBeLessThanOrEqual(100 * one[1]);
});

test("the deepest path there can be is made, compared, merged and removed", () => {
  const path = "/a".repeat(xs.XS_ABS_PATH_MAX / 2);
  const base = StoreTree.empty();
  const [mine, current] = [base.fork(), base.fork()];
  const footprint = new Footprint(() => {});
  footprint.touchDown("/", path);
  mine.create(path, [{ domid: 1, access: "none" }]);
  footprint.modifyDown("/", path);
  expect(base.agreesWith(current, footprint)).toBe(true);
  expect(base.agreesWith(mine, footprint)).toBe(false);
  current.graft(mine, footprint);
  current.setPermissions("/a", [{ domid: 0, access: "none" }]);
  expect([current.size, current.ownedBy(1)]).toEqual([1 + path.length / 2, path.length / 2 - 1]);
  expect(current.removeDomain(1).map((removed) => removed.path)).toEqual(["/a/a"]);
  expect([current.size, current.ownedBy(1)]).toEqual([2, 0]);
});
