// A disk with several queues, from the keys to the data: what a frontend may write and what it may not, keys that
// another kernel left, queues that lie, and servers that take over. Whatever one guest does, its neighbour goes on.
import { afterEach, beforeEach, describe, expect, test } from "bun:test";
import { readdirSync, rmSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import type { BlkbackDevice } from "../../src/blkback/device/device.ts";
import { type DeviceOptions } from "../../src/blkback/device/device.ts";
import { DEFAULT_OFFER } from "../../src/blkback/device/features.ts";
import { readStats } from "../../src/blkback/stats/stats.ts";
import type { Xenstore } from "../../src/xenstore/client.ts";
import { formatStats } from "../../cmd/lib/stats-report.ts";
import type { HandmadeGuest } from "./blk-guest.ts";
import { type Keys } from "./blk-guest.ts";
import { pattern } from "./blk-harness.ts";
import { DiskWorld, diskAddress, IMAGE_BYTES } from "./disk-world.ts";

const ERROR_KEY = "/local/domain/0/error/backend/qdisk/1/51728/error";
const at = diskAddress(1);

let world: DiskWorld;
let xenstore: Xenstore;
let dir: string;
let guest: HandmadeGuest;
/** By how many the queues are served. */
let threads = 1;

const serve = (maxQueues: number, change: Partial<DeviceOptions> = {}, to = at): Promise<BlkbackDevice> =>
  world.serve(to, { offer: { ...DEFAULT_OFFER, maxQueues }, threads, ...change });

beforeEach(async () => {
  world = await DiskWorld.start({ domains: 3, personality: "xenstored-4.22" });
  ({ xenstore, dir } = world);
  await world.create(at);
  guest = await world.guest(at);
});

afterEach(() => {
  threads = 1;
  return world.close();
});

/** Writes a page through each queue, and reads it through the next one. */
async function expectQueues(count: number, byte: number): Promise<void> {
  for (let queue = 0; queue < count; queue++) {
    const sector = (byte + queue) * 8;
    expect(await guest.write(sector, byte + queue, queue)).toBe(0);
    const read = await guest.read(sector, (queue + 1) % count);
    expect(read).toEqual(new Uint8Array(4096).fill(byte + queue));
    expect(await guest.flush(queue)).toBe(0);
  }
}

const journals = (): string[] => readdirSync(join(dir, "stats")).filter((name) => name.includes(".journal"));

test.each([1, 2, 4, 16])("%i queues: offered, connected, counted one by one", async (count) => {
  await serve(count);
  await guest.connect(count);
  expect(await guest.backendKey("multi-queue-max-queues")).toBe(String(count));
  await expectQueues(count, 1);
  const stats = readStats(join(dir, "stats"), 1, 51728);
  expect(stats.queues.map((it) => [it.requests, it.reads, it.writes, it.flushes])).toEqual(
    Array.from({ length: count }, () => [3, 1, 1, 1]),
  );
  expect([stats.requests, stats.writeBytes, stats.ringSlots]).toEqual([3 * count, 4096 * count, 32]);
  const line = /^ {2}queue 1: 3 requests/m;
  expect(line.test(formatStats(stats))).toBe(count > 1);
  expect(journals()).toHaveLength(count);
  await guest.setState(6);
  await guest.untilBackend(6);
  expect(journals()).toEqual([]);
});

test("fewer queues than before, more than before, and one again: what was counted stays", async () => {
  await serve(4);
  let total = 0;
  for (const count of [2, 4, 1]) {
    await guest.untilBackend(2);
    const keys =
      count === 1 ? { ...guest.makeRing(), "multi-queue-num-queues": null } : guest.makeRings(count);
    await guest.writeTogether(keys);
    await guest.setState(3);
    await guest.untilBackend(4);
    await guest.setState(4);
    await expectQueues(count, count);
    total += 3 * count;
    const stats = readStats(join(dir, "stats"), 1, 51728);
    expect([stats.queues.length, stats.requests, stats.inFlight]).toEqual([count, total, 0]);
    await guest.setState(5);
    await guest.setState(6);
    await guest.setState(1);
  }
});

describe("keys that cannot be served", () => {
  const cases: [string, (keys: Keys) => Keys, string][] = [
    ["no queue", () => ({ "multi-queue-num-queues": "0" }), '"0" to multi-queue-num-queues: 1 to 4'],
    ["one too many", () => ({ "multi-queue-num-queues": "5" }), '"5" to multi-queue-num-queues: 1 to 4'],
    ["very many", () => ({ "multi-queue-num-queues": "4294967295" }), "multi-queue-num-queues"],
    ["as many as no number holds", () => ({ "multi-queue-num-queues": "9".repeat(400) }), "num-queues"],
    ["a fraction", () => ({ "multi-queue-num-queues": "1.5" }), '"1.5" to multi-queue-num-queues'],
    ["nothing", () => ({ "multi-queue-num-queues": "" }), '"" to multi-queue-num-queues'],
    ["more queues than it wrote", () => ({ "multi-queue-num-queues": "3" }), "queue-2/ring-ref0"],
    ["no port", () => ({ "queue-1/event-channel": null }), "queue-1/event-channel"],
    ["a port that is none", () => ({ "queue-1/event-channel": "4000000000" }), "event channel 4000000000"],
    ["another queue's port", (keys) => ({ "queue-1/event-channel": keys["queue-0/event-channel"] }), "bind"],
    ["another queue's page", (keys) => ({ "queue-1/ring-ref": keys["queue-0/ring-ref"] }), "page of queue-0"],
    ["a page that is none", () => ({ "queue-1/ring-ref": "4000" }), "cannot map"],
    ["one page where there should be two", () => ({ "ring-page-order": "1" }), "queue-0/ring-ref0"],
  ];
  test.each(cases)("%s", async (_name, change, message) => {
    await serve(4);
    await guest.untilBackend(2);
    const keys = guest.makeRings(2);
    await guest.writeTogether({ ...keys, ...change(keys) });
    await guest.setState(3);
    await guest.untilBackend(5);
    expect(await xenstore.read(ERROR_KEY)).toContain(message);
    await guest.setState(6);
    await guest.untilBackend(6);
    await guest.setState(1);
    await guest.untilBackend(2);
    await guest.writeTogether({ ...guest.makeRings(2), "ring-page-order": null });
    await guest.setState(3);
    await guest.untilBackend(4);
    await expectQueues(2, 3);
  });

  test("more than one queue, where one was offered", async () => {
    await serve(1);
    await guest.untilBackend(2);
    await guest.offerRing(guest.makeRings(2));
    await guest.untilBackend(5);
    expect(await xenstore.read(ERROR_KEY)).toContain('"2" to multi-queue-num-queues: 1 was offered');
  });

  test("a number that changes all the time: refused or served, and served in the end", async () => {
    await serve(4);
    await guest.untilBackend(2);
    await guest.offerRing(guest.makeRings(4));
    for (let i = 0; i < 60; i++)
      await guest.writeTogether({ "multi-queue-num-queues": String([0, 1, 2, 9, 3, 4][i % 6]) });
    await guest.setState(6);
    await guest.untilBackend(6);
    await guest.setState(1);
    await guest.untilBackend(2);
    await guest.offerRing(guest.makeRings(4));
    await guest.untilBackend(4);
    await expectQueues(4, 1);
  });
});

describe("keys that another kernel left", () => {
  async function restart(): Promise<void> {
    await guest.setState(6);
    await guest.untilBackend(6);
    await guest.setState(1);
    await guest.untilBackend(2);
  }

  test("four queues, where the successor has one and says so with the plain keys only", async () => {
    await serve(4);
    await guest.connect(4);
    await expectQueues(4, 1);
    await restart();
    // The ports of the former kernel are gone, and the numbers of its pages stand for nothing.
    const former = guest.makeRings(4);
    const plain = guest.makeRing(0, true);
    await guest.writeTogether({ ...former, "queue-0/ring-ref": "4000", ...plain });
    await guest.setState(3);
    await guest.untilBackend(4);
    await expectQueues(1, 7);
    expect(readStats(join(dir, "stats"), 1, 51728).queues).toHaveLength(1);
  });

  test("of four queues, some keys only", async () => {
    await serve(4);
    await guest.untilBackend(2);
    await guest.writeTogether({ "multi-queue-num-queues": "4", "queue-0/ring-ref": "1" });
    await guest.offerRing();
    await guest.untilBackend(4);
    await expectQueues(1, 7);
  });

  test("one ring, where the successor has two queues", async () => {
    await serve(4);
    await guest.connect();
    await expectQueues(1, 1);
    await restart();
    const rings = guest.makeRings(2);
    await guest.writeTogether({ ...rings, "ring-ref": "4000", "event-channel": "4000" });
    await guest.setState(3);
    await guest.untilBackend(4);
    await expectQueues(2, 3);
  });
});

test("new rings while both ends are Connected, as Linux offers them after s2idle", async () => {
  await serve(4);
  await guest.connect(4);
  await expectQueues(4, 1);
  for (const count of [4, 2, 3]) {
    await guest.writeTogether(guest.makeRings(count));
    await guest.setState(3);
    await guest.setState(4);
    await expectQueues(count, count);
  }
});

describe.each([1, 3])(
  "one queue of %i threads misbehaves, others work, and the neighbour goes on",
  (count) => {
    let neighbour: HandmadeGuest;

    beforeEach(async () => {
      threads = count;
      const other = diskAddress(2);
      await world.create(other);
      neighbour = await world.guest(other);
      await serve(4);
      await serve(4, {}, other);
      await guest.connect(4);
      await neighbour.connect(4);
    });

    /** While `misbehave` runs, the neighbour writes on three queues. */
    async function beside(misbehave: () => Promise<void> | void): Promise<void> {
      const busy = Promise.all([0, 1, 2].map((queue) => neighbour.write(8 * queue, 5, queue)));
      await misbehave();
      expect(await busy).toEqual([0, 0, 0]);
      expect(await neighbour.read(16, 3)).toEqual(new Uint8Array(4096).fill(5));
    }

    async function startOver(): Promise<void> {
      await guest.setState(6);
      await guest.untilBackend(6);
      await guest.setState(1);
      await guest.untilBackend(2);
      await guest.offerRing(guest.makeRings(4));
      await guest.untilBackend(4);
      await expectQueues(4, 3);
    }

    test.each([0, 1, 3])(
      "queue %i lies: its device is closed, with the number in the message",
      async (liar) => {
        await beside(async () => {
          guest.lie(5000, liar);
          await guest.untilBackend(5);
        });
        expect(await xenstore.read(ERROR_KEY)).toContain(`queue ${liar}: the ring's indices cannot be true`);
        await startOver();
      },
    );

    test.each([
      ["a page of another queue", (keys: Keys) => keys["queue-3/ring-ref"], "queue-0/ring-ref"],
      ["a port that is none", () => "4000000000", "queue-0/event-channel"],
      ["no queue", () => "0", "multi-queue-num-queues"],
    ] as const)("keys rewritten while Connected, with %s: refused, and served when right", async (...how) => {
      const [, value, key] = how;
      const keys = guest.makeRings(4);
      await beside(async () => {
        await guest.writeTogether({ ...keys, [key]: value(keys) ?? "" });
        await guest.untilBackend(5);
      });
      await startOver();
    });

    test("a port that the guest has closed: its queue hears nothing, the others work, and all of it goes", async () => {
      await beside(() => guest.dropPort(1));
      for (const queue of [0, 2, 3]) expect(await guest.write(800 + 8 * queue, queue, queue)).toBe(0);
      await startOver();
    });

    test("a bell that rings for nothing, and requests without sense: the others are answered", async () => {
      await beside(async () => {
        for (let times = 0; times < 3000; times++) guest.ring(1);
        const bad = Array.from({ length: 24 }, () => ({ operation: 0, sector: 2 ** 40 }) as const);
        const answers = guest.submit(bad, 2);
        for (let times = 0; times < 20; times++) expect(await guest.write(80, times, 3)).toBe(0);
        expect(await answers).toEqual(bad.map(() => -1));
      });
      await expectQueues(4, 20);
      const { queues } = readStats(join(dir, "stats"), 1, 51728);
      expect(queues.map((it) => it.errors)).toEqual([0, 0, 24, 0]);
    });
  },
);

test("keys that a kernel left, and that now name another disk's ring, are no queue of this one for a successor", async () => {
  const otherAt = diskAddress(1, 51744);
  await world.create(otherAt);
  const other = await world.guest(otherAt);
  await serve(2);
  await serve(2, {}, otherAt);
  await Promise.all([guest.untilBackend(2), other.untilBackend(2)]);
  const mine = guest.makeRing();
  const theirs = other.makeRing();
  const queue = (number: number, keys: Keys): Keys => ({
    [`queue-${number}/ring-ref`]: keys["ring-ref"] as string,
    [`queue-${number}/event-channel`]: keys["event-channel"] as string,
  });
  const gone = { "ring-ref": "9999", "event-channel": "99" };
  const left = { "multi-queue-num-queues": "2", ...queue(0, mine), ...queue(1, gone) };
  await guest.writeTogether({ ...mine, ...left, state: "3" });
  await other.writeTogether({ ...theirs, state: "3" });
  await Promise.all([guest.untilBackend(4), other.untilBackend(4)]);
  expect([await guest.write(8, 1), await other.write(16, 2)]).toEqual([0, 0]);

  await guest.writeTogether(queue(1, theirs));
  await world.abandonAll();
  await serve(2);
  // Answered, so it has its rings before the other disk's successor comes.
  expect(await guest.read(8)).toEqual(new Uint8Array(4096).fill(1));
  await serve(2, {}, otherAt);
  expect(await other.read(16)).toEqual(new Uint8Array(4096).fill(2));
  const counts = [51728, 51744].map((devid) => readStats(join(dir, "stats"), 1, devid).queues.length);
  expect(counts).toEqual([1, 1]);
});

describe.each([1, 2])("a successor with %i threads", (count) => {
  beforeEach(() => void (threads = count));

  test.each([1, 2, 4])("that offers %i goes on with the four that the guest has", async (offered) => {
    const first = await serve(4);
    await guest.connect(4);
    await expectQueues(4, 1);
    await first.abandon();
    const pending = [0, 1, 2, 3].map((queue) => guest.flush(queue));
    await serve(offered);
    expect(await Promise.all(pending)).toEqual([0, 0, 0, 0]);
    await expectQueues(4, 9);
    await guest.setState(6);
    await guest.untilBackend(6);
    await guest.setState(1);
    await guest.untilBackend(2);
    expect(await guest.backendKey("multi-queue-max-queues")).toBe(String(offered));
  });

  test("that offers one serves a guest that has chosen from what a dead server offered", async () => {
    const first = await serve(4);
    await guest.untilBackend(2);
    await first.abandon();
    await guest.offerRing(guest.makeRings(4));
    await serve(1);
    await guest.untilBackend(4);
    await expectQueues(4, 1);
    await guest.setState(6);
    await guest.untilBackend(6);
    await guest.setState(1);
    await guest.untilBackend(2);
    expect(await guest.backendKey("multi-queue-max-queues")).toBe("1");
  });

  test("knows of the flush that failed on another queue", async () => {
    const first = await serve(2, { filters: ["error:op=flush,times=1"] });
    await guest.connect(2);
    expect(await guest.flush(1)).toBe(-1);
    expect(await guest.write(8, 1, 0)).toBe(-1);
    await first.abandon();
    await serve(2);
    expect([await guest.write(8, 1, 0), await guest.flush(0), await guest.flush(1)]).toEqual([-1, -1, -1]);
    expect(await guest.read(8, 0)).toEqual(pattern(IMAGE_BYTES).slice(4096, 8192));
  });

  test("waits while one queue's journal is missing, and goes on when it is back", async () => {
    const first = await serve(2);
    await guest.connect(2);
    await expectQueues(2, 1);
    await first.abandon();
    const pending = guest.read(8, 1);
    const journal = join(dir, "stats", "1-51728.journal.1");
    const kept = await Bun.file(journal).bytes();
    rmSync(journal);
    await serve(2);
    await xenstore.waitFor(ERROR_KEY, (text) => text?.includes("left no journal") === true);
    expect(await guest.backendKey("state")).toBe("4");
    writeFileSync(journal, kept);
    expect(await pending).toEqual(new Uint8Array(4096).fill(1));
  });
});
