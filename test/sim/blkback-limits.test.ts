// Limits of a disk in use, from its keys in xenstore to the ring: they are obeyed, change while requests wait for them,
// and neither a stop nor a takeover loses what was held back.
import { afterEach, beforeEach, describe, expect, test } from "bun:test";
import { backendDir } from "../../src/blkback/address.ts";
import type { BlkbackDevice } from "../../src/blkback/device/device.ts";
import { type DeviceOptions } from "../../src/blkback/device/device.ts";
import { limitDevice, readRates } from "../../src/blkback/limits/rate-keys.ts";
import { parseRate, UNLIMITED, UNLIMITED_DISK } from "../../src/blkback/limits/rates.ts";
import { readAllStats, readStats, type DeviceStats } from "../../src/blkback/stats/stats.ts";
import type { Xenstore } from "../../src/xenstore/client.ts";
import type { HandmadeGuest } from "./blk-guest.ts";
import { type PageRequest } from "./blk-guest.ts";
import { DiskWorld, diskAddress } from "./disk-world.ts";

const ADDRESS = diskAddress(1);
const READS: readonly PageRequest[] = Array.from({ length: 31 }, (_, i) => ({
  operation: 0,
  sector: i * 16,
}));
const WAIT = { timeoutMs: 20_000 };

let world: DiskWorld;
let xenstore: Xenstore;
let options: DeviceOptions;
let guest: HandmadeGuest;

beforeEach(async () => {
  world = await DiskWorld.start({ domains: 2 }, new Uint8Array(1 << 20).fill(7));
  ({ xenstore, options } = world);
  await world.create(ADDRESS);
  guest = await world.guest(ADDRESS);
});

afterEach(() => world.close());

const serve = (rates = UNLIMITED_DISK): Promise<BlkbackDevice> => world.serve(ADDRESS, { rates });

const stats = (): DeviceStats => readStats(options.statsDir, 1, 51728);
const iops = (text: string) => parseRate("iops", "", text);

/** Waits until the plane shows what the test waits for. */
async function until(isSo: (now: DeviceStats) => boolean): Promise<void> {
  const deadline = performance.now() + WAIT.timeoutMs;
  for (;;) {
    // A server that takes a ring over has statistics only once it has connected.
    const [now] = readAllStats(options.statsDir);
    if (now !== undefined && isSo(now)) return;
    if (performance.now() > deadline) throw new Error(`never: ${JSON.stringify(now)}`);
    await Bun.sleep(1);
  }
}

/** The guest lets go of its ring and offers another one. */
async function reconnect(): Promise<void> {
  await guest.setState(6);
  await guest.untilBackend(6);
  await guest.setState(1);
  await guest.connect();
}

describe("a limit", () => {
  test("changes while requests wait for it, and all of them are answered", async () => {
    await serve();
    await guest.connect();
    await limitDevice(xenstore, ADDRESS, { iops: iops("1") }, WAIT);
    expect(stats().limits).toEqual({ iops: { ...UNLIMITED, total: 1 }, bandwidth: UNLIMITED });
    const answers = guest.submit(READS);
    await until(({ held }) => held > 20);
    expect(stats().inFlight).toBeGreaterThanOrEqual(stats().held);
    expect(await limitDevice(xenstore, ADDRESS, { iops: UNLIMITED }, WAIT)).toEqual(UNLIMITED_DISK);
    expect(await answers).toEqual(READS.map(() => 0));
    const { held, waiting, inFlight, throttled, throttledMs, errors } = stats();
    expect({ held, waiting, inFlight, errors }).toEqual({ held: 0, waiting: 0, inFlight: 0, errors: 0 });
    expect(throttled).toBeGreaterThan(20);
    expect(throttledMs).toBeGreaterThan(0);
  });

  test("of one quantity leaves the other as it is", async () => {
    await serve();
    await limitDevice(xenstore, ADDRESS, { iops: iops("read:70,write:30") }, WAIT);
    const bandwidth = parseRate("bandwidth", "", "3M,burst=9M");
    const both = { iops: iops("read:70,write:30"), bandwidth };
    expect(await limitDevice(xenstore, ADDRESS, { bandwidth }, WAIT)).toEqual(both);
    expect(await readRates(xenstore, ADDRESS)).toEqual(both);
  });

  test("that a toolstack wrote before anybody served the disk counts from the first request", async () => {
    await xenstore.write(`${backendDir(ADDRESS)}/xentool-bandwidth`, "4k");
    await serve({ ...UNLIMITED_DISK, bandwidth: parseRate("bandwidth", "", "1G") });
    await guest.connect();
    const answers = guest.submit(READS);
    await until(({ held }) => held > 20);
    await xenstore.rm(`${backendDir(ADDRESS)}/xentool-bandwidth`);
    expect(await answers).toEqual(READS.map(() => 0));
    expect(stats().limits.bandwidth.total).toBe(2 ** 30);
  });

  test("that means nothing changes nothing, and the next one counts", async () => {
    await serve({ ...UNLIMITED_DISK, iops: iops("500") });
    const key = `${backendDir(ADDRESS)}/xentool-iops`;
    await xenstore.write(key, "fast");
    await limitDevice(xenstore, ADDRESS, { bandwidth: parseRate("bandwidth", "", "1M") }, WAIT);
    expect((await readRates(xenstore, ADDRESS))?.iops).toEqual(iops("500"));
    await limitDevice(xenstore, ADDRESS, { iops: iops("600") }, WAIT);
    expect(stats().limits.iops.total).toBe(600);
  });

  test("stays for the next server, which also gets what was held back", async () => {
    const first = await serve();
    await guest.connect();
    await limitDevice(xenstore, ADDRESS, { iops: iops("1") }, WAIT);
    const answers = guest.submit(READS);
    await until(({ held }) => held > 20);
    await first.abandon();
    await serve();
    await until(({ held }) => held > 20);
    expect(stats().limits.iops.total).toBe(1);
    await limitDevice(xenstore, ADDRESS, { iops: UNLIMITED }, WAIT);
    expect(await answers).toEqual(READS.map(() => 0));
  });

  test("counts what passed before the guest connected anew", async () => {
    // A request takes four seconds of it.
    await serve({ ...UNLIMITED_DISK, bandwidth: parseRate("bandwidth", "", "1k") });
    await guest.connect();
    expect(await guest.submit(READS.slice(0, 1))).toEqual([0]);
    await reconnect();
    const answers = guest.submit(READS.slice(0, 1));
    await until(({ held }) => held === 1);
    // Another limit begins anew.
    await limitDevice(xenstore, ADDRESS, { bandwidth: parseRate("bandwidth", "", "2k") }, WAIT);
    expect(await answers).toEqual([0]);
    await reconnect();
    const more = guest.submit(READS.slice(0, 1));
    await until(({ held }) => held === 1);
    await limitDevice(xenstore, ADDRESS, { bandwidth: UNLIMITED }, WAIT);
    expect(await more).toEqual([0]);
  });

  test("of a disk that nobody serves is kept for its next server", async () => {
    const asked = { iops: iops("5") };
    const late = /seems not to be served: nobody has answered; its next server will obey/;
    expect(limitDevice(xenstore, ADDRESS, asked, { timeoutMs: 20 })).rejects.toThrow(late);
    await serve();
    await limitDevice(xenstore, ADDRESS, asked, WAIT);
    expect(stats().limits.iops.total).toBe(5);
  });
});

test("statistics show the state of the device, its connections and its last answer", async () => {
  await serve();
  await guest.untilBackend(2);
  expect([stats().state, stats().connections]).toEqual(["InitWait", 0]);
  for (let round = 1, last = 0; round < 3; round++) {
    await guest.connect();
    const before = Date.now();
    expect(await guest.read(0)).not.toBe(-1);
    expect([stats().state, stats().connections]).toEqual(["Connected", round]);
    // The time of an answer is written after the answer.
    await until(({ lastAnswerAtMs }) => lastAnswerAtMs > last);
    last = stats().lastAnswerAtMs;
    expect(Math.abs(last - before)).toBeLessThan(60_000);
    await guest.setState(6);
    await guest.untilBackend(6);
    await guest.setState(1);
  }
});
