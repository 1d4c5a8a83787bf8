// A disk whose queues are served by several threads: how many there are, what they count together, and that they end
// together, whatever one of them meets. What all disks with several queues do is in blkback-queues.test.ts.
import { afterEach, beforeEach, expect, test } from "bun:test";
import { truncateSync } from "node:fs";
import { join } from "node:path";
import type { BlkbackDevice } from "../../src/blkback/device/device.ts";
import { DEFAULT_OFFER } from "../../src/blkback/device/features.ts";
import { resizeDevice } from "../../src/blkback/device/resize.ts";
import { readStats, type DeviceStats } from "../../src/blkback/stats/stats.ts";
import type { HandmadeGuest } from "./blk-guest.ts";
import { DiskWorld, diskAddress, expectPage, IMAGE_BYTES, spawnWorker } from "./disk-world.ts";

const at = diskAddress(1);

let world: DiskWorld;
let guest: HandmadeGuest;
let spawned: Worker[] = [];

function spawn(): Worker {
  const worker = spawnWorker();
  spawned.push(worker);
  return worker;
}

const serve = (
  threads: number,
  filters: readonly string[] = [],
  spawnPlane = spawn,
): Promise<BlkbackDevice> =>
  world.serve(at, { offer: { ...DEFAULT_OFFER, maxQueues: 16 }, threads, filters }, spawnPlane);

const stats = (): DeviceStats => readStats(join(world.dir, "stats"), 1, at.devid);

beforeEach(async () => {
  spawned = [];
  world = await DiskWorld.start({ domains: 2, personality: "xenstored-4.22" });
  await world.create(at);
  guest = await world.guest(at);
});

afterEach(() => world.close());

/** Writes through each queue what the next one then reads. */
async function expectQueues(count: number, byte: number): Promise<void> {
  for (let queue = 0; queue < count; queue++) {
    const sector = (byte + queue) * 8;
    expect(await guest.write(sector, byte, queue)).toBe(0);
    expect(await guest.flush(queue)).toBe(0);
    expect(await guest.read(sector, (queue + 1) % count)).toEqual(new Uint8Array(4096).fill(byte));
  }
}

test.each([
  [2, 3, 2],
  [4, 4, 4],
  [8, 2, 2],
  [4, 1, 1],
])("%i threads for %i queues are %i, and each queue is counted", async (threads, queues, expected) => {
  await serve(threads);
  await guest.connect(queues);
  await expectQueues(queues, 3);
  expect(spawned).toHaveLength(expected);
  expect(stats().queues.map((it) => [it.reads, it.writes, it.flushes])).toEqual(
    Array.from({ length: queues }, () => [1, 1, 1]),
  );
});

test("other numbers of threads go on with the rings that the guest has", async () => {
  for (const threads of [2, 1, 3]) {
    const device = await serve(threads);
    if (threads === 2) await guest.connect(4);
    await expectQueues(4, threads);
    await device.abandon();
  }
  const pending = [0, 1, 2, 3].map((queue) => guest.flush(queue));
  await serve(4);
  expect(await Promise.all(pending)).toEqual([0, 0, 0, 0]);
  expect(spawned).toHaveLength(2 + 1 + 3 + 4);
});

test("one thread serves a guest that may mean one of two sets of rings", async () => {
  await serve(2);
  await guest.untilBackend(2);
  const rings = guest.makeRings(2);
  await guest.offerRing({ ...rings, "ring-ref": "4000", "event-channel": "4000" });
  await guest.untilBackend(4);
  await expectQueues(2, 3);
  expect(spawned).toHaveLength(1);
});

test("a flush that failed on one thread is tried on no other, and is said once", async () => {
  await serve(2, ["error:op=flush,times=1"]);
  await guest.connect(2);
  expect(await guest.flush(1)).toBe(-1);
  // This thread's filter would fail a flush of its own.
  expect([await guest.write(8, 1, 0), await guest.flush(0)]).toEqual([-1, -1]);
  expectPage(await guest.read(8, 0), 8);
  const { flushErrors, flushFailure, lastIoError, queues } = stats();
  expect([flushErrors, flushFailure, lastIoError]).toEqual([1, "EIO", "EIO"]);
  expect(queues.map(({ errors }) => errors)).toEqual([2, 1]);
});

test("flushes and barriers on all threads at once take turns, and all are answered", async () => {
  await serve(4);
  await guest.connect(4);
  const load = Array.from(
    { length: 30 },
    (_, i) => ({ operation: i % 3 === 0 ? 2 : 3, sector: 8 * i }) as const,
  );
  for (let round = 0; round < 10; round++) {
    const answers = await Promise.all([0, 1, 2, 3].map((queue) => guest.submit(load, queue)));
    expect(answers.flat().every((status) => status === 0)).toBe(true);
  }
  expect(stats().barriers).toBe(4 * 10 * 10);
});

test("every thread knows of a new size", async () => {
  await serve(2);
  await guest.connect(2);
  const end = IMAGE_BYTES / 512;
  expect([await guest.read(end, 0), await guest.read(end, 1)]).toEqual([-1, -1]);
  truncateSync(join(world.dir, "disk.img"), 2 * IMAGE_BYTES);
  await resizeDevice(world.xenstore, at);
  const zeros = new Uint8Array(4096);
  expect([await guest.read(end, 0), await guest.read(end, 1)]).toEqual([zeros, zeros]);
});

test("a thread that dies takes the others with it, and the disk goes on", async () => {
  const dies = new Blob(["self.onmessage = () => { throw new Error('of no use'); };"]);
  const url = URL.createObjectURL(dies);
  let count = 0;
  await serve(3, [], () => (count++ === 1 ? new Worker(url) : spawn()));
  await guest.connect(3);
  URL.revokeObjectURL(url);
  await expectQueues(3, 5);
  expect(spawned).toHaveLength(2 + 3);
});
