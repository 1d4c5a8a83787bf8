// What a disk has promised: after a flush that failed nothing says OK that builds on lost data, until the guest has a
// new ring, whoever serves it; and what a guest wrote is on the disk when it has let go. With faults from filters.
import { afterEach, beforeEach, describe, expect, spyOn, test, type Mock } from "bun:test";
import { truncateSync } from "node:fs";
import { backendDir } from "../../src/blkback/address.ts";
import type { BlkbackDevice } from "../../src/blkback/device/device.ts";
import { type DeviceOptions } from "../../src/blkback/device/device.ts";
import { resizeDevice } from "../../src/blkback/device/resize.ts";
import { readStats, STAT } from "../../src/blkback/stats/stats.ts";
import { closeDevice, destroyDevice } from "../../src/blkback/toolstack.ts";
import type { Image } from "../../src/block/image.ts";
import { configureLogging } from "../../src/core/log.ts";
import type { Xenstore } from "../../src/xenstore/client.ts";
import type { HandmadeGuest } from "./blk-guest.ts";
import { pattern, RingHarness, type HarnessOptions } from "./blk-harness.ts";
import { DiskWorld, diskAddress, IMAGE_BYTES } from "./disk-world.ts";

const READ = 0;
const WRITE = 1;
const BARRIER = 2;
const FLUSH = 3;
const OKAY = 0;
const ERROR = -1;

describe.each([
  ["copy", { grantMode: "copy" }],
  ["map", { grantMode: "map" }],
  ["persistent", { grantMode: "persistent" }],
  ["pread/pwrite", { engine: "sync" }],
] as [string, HarnessOptions][])("on the ring, %s", (_name, variant) => {
  let harness: RingHarness | undefined;
  let stderr: Mock<typeof process.stderr.write>;

  beforeEach(() => {
    stderr = spyOn(process.stderr, "write").mockImplementation(() => true);
    configureLogging(0);
  });
  afterEach(async () => {
    stderr.mockRestore();
    await harness?.close();
    harness = undefined;
  });

  async function start(...filters: string[]): Promise<RingHarness> {
    harness = await RingHarness.start({ ...variant, filters });
    return harness;
  }

  function lines(): string[] {
    return stderr.mock.calls.map(([text]) => String(text));
  }

  /** The statuses of one request each, put and served one by one. */
  function each(h: RingHarness, ...puts: (() => void)[]): (number | undefined)[] {
    return puts.map((put) => {
      put();
      return h.serve()[0]?.status;
    });
  }

  /** What a disk that lost data still does, in this order: two flushes, a write, two barriers, a discard, a read. */
  function afterwards(h: RingHarness): (number | undefined)[] {
    return each(
      h,
      () => h.put({ op: FLUSH }),
      () => h.put({ op: FLUSH }),
      () => h.put({ op: WRITE, sector: 0, segments: h.pages(0, 1) }),
      () => h.put({ op: BARRIER }),
      () => h.put({ op: BARRIER, sector: 8, segments: h.pages(0, 1) }),
      () => h.putDiscard(16, 8),
      () => h.put({ op: READ, sector: 0, segments: h.pages(1, 1) }),
    );
  }

  test.each(["EIO", "ENOSPC"])("a flush that failed with %s stays failed", async (errno) => {
    const h = await start(`error:times=1,op=flush,errno=${errno}`);
    h.page(0).fill(7);
    h.put({ op: WRITE, sector: 0, segments: h.pages(0, 1) });
    expect(h.serve()[0]?.status).toBe(OKAY);
    h.page(0).fill(8);
    expect(afterwards(h)).toEqual([ERROR, ERROR, ERROR, ERROR, ERROR, ERROR, OKAY]);
    expect(h.page(1).every((byte) => byte === 7)).toBe(true);
    expect(h.readImage(16 * 512, 4096)).toEqual(new Uint8Array(pattern(1 << 20).slice(8192, 12288)));
    expect([h.counters[STAT.flushErrors], h.counters[STAT.writeErrors]]).toEqual([1, 0]);
    expect(lines()).toEqual([expect.stringContaining(`a flush failed (${errno}`)]);
    expect(h.plane.flush()).toBe(errno === "EIO" ? -5 : -28);
  });

  test("so does that of a barrier", async () => {
    const h = await start("error:times=1,op=flush");
    expect(
      each(
        h,
        () => h.put({ op: WRITE, sector: 0, segments: h.pages(0, 1) }),
        () => h.put({ op: BARRIER, sector: 8, segments: h.pages(0, 1) }),
      ),
    ).toEqual([OKAY, ERROR]);
    expect(afterwards(h)).toEqual([ERROR, ERROR, ERROR, ERROR, ERROR, ERROR, OKAY]);
    expect(h.readImage(8 * 512, 4096)).toEqual(new Uint8Array(pattern(1 << 20).slice(4096, 8192)));
  });

  test("flushes at once: the kernel tells one of them of lost data, the others do not say OK", async () => {
    const h = await start("error:times=1,op=flush");
    for (let i = 0; i < 4; i++) h.put({ op: FLUSH, id: BigInt(i) });
    expect(h.serve().map((it) => it.status)).toEqual([ERROR, ERROR, ERROR, ERROR]);
  });

  test("a write that failed is only that: flushes go on", async () => {
    const h = await start("error:times=1,op=write");
    expect(
      each(
        h,
        () => h.put({ op: WRITE, sector: 24, segments: h.pages(0, 1) }),
        () => h.put({ op: FLUSH }),
        () => h.put({ op: WRITE, sector: 24, segments: h.pages(0, 1) }),
      ),
    ).toEqual([ERROR, OKAY, OKAY]);
    expect(lines()).toEqual([
      expect.stringContaining("write of 8 sectors at sector 24 failed: EIO: i/o error"),
    ]);
    expect(h.plane.flush()).toBe(0);
  });

  test("failures are counted by operation, and each errno has one line at first", async () => {
    const h = await start("error:op=read,times=50", "error:op=write,errno=ENOSPC,times=60");
    for (let i = 0; i < 50; i++) {
      h.put({ op: READ, sector: i * 16, segments: h.pages(0, 1) });
      h.put({ op: WRITE, sector: i * 16 + 8, segments: h.pages(1, 1) });
      expect(h.serve().map((it) => it.status)).toEqual([ERROR, ERROR]);
    }
    expect([h.counters[STAT.readErrors], h.counters[STAT.writeErrors], h.counters[STAT.ioErrno]]).toEqual([
      50, 50, 28,
    ]);
    expect(lines().map((line) => /(read|write) of .*/.exec(line)?.[0])).toEqual([
      "read of 8 sectors at sector 0 failed: EIO: i/o error",
      "write of 8 sectors at sector 8 failed: ENOSPC: no space left on device",
    ]);
  });

  test("of requests that were merged, those that fail by themselves are named", async () => {
    const h = await start("error:times=2,op=write");
    for (let i = 0; i < 4; i++) h.put({ op: WRITE, id: BigInt(i), sector: i * 8, segments: h.pages(i, 1) });
    const failed = h.serve().filter((it) => it.status === ERROR).length;
    expect(h.counters[STAT.writeErrors]).toBe(failed);
    expect(failed).toBe(variant.grantMode === "map" ? 2 : 1);
    expect(lines()).toHaveLength(1);
    expect(lines()[0]).toContain("write of 8 sectors at sector 0 failed");
  });
});

describe("over the life of a device", () => {
  const AT = diskAddress(1);
  let world: DiskWorld;
  let xenstore: Xenstore;
  let image: Image;
  let options: DeviceOptions;
  let guest: HandmadeGuest;

  beforeEach(async () => {
    world = await DiskWorld.start({ domains: 2 });
    ({ xenstore, image, options } = world);
    await world.create(AT);
    guest = await world.guest(AT);
  });

  afterEach(() => world.close());

  const serve = (...filters: string[]): Promise<BlkbackDevice> => world.serve(AT, { filters });

  test("a guest that reconnects starts anew", async () => {
    const device = await serve("error:times=1,op=flush");
    await guest.connect();
    expect([await guest.write(8, 1), await guest.flush(), await guest.flush()]).toEqual([OKAY, ERROR, ERROR]);
    expect(readStats(options.statsDir, 1, AT.devid)).toMatchObject({
      flushErrors: 1,
      lastIoError: "EIO",
      flushFailure: "EIO",
    });
    await guest.setState(6);
    await guest.untilBackend(6);
    await guest.setState(1);
    await guest.connect();
    expect(await guest.write(8, 2)).toBe(OKAY);
    expect(readStats(options.statsDir, 1, AT.devid)).toMatchObject({
      flushErrors: 1,
      lastIoError: "EIO",
      flushFailure: null,
    });
    // What was lost before is not on the disk for that.
    expect(device.lost).toContain("EIO");
  });

  test("a successor of the server that saw it says no OK either, and neither does the next one", async () => {
    const first = await serve("error:times=1,op=flush,errno=ENOSPC");
    await guest.connect();
    expect([await guest.write(8, 1), await guest.flush()]).toEqual([OKAY, ERROR]);
    await first.abandon();
    const successors: BlkbackDevice[] = [];
    for (let successor = 0; successor < 2; successor++) {
      const device = await serve();
      successors.push(device);
      const page = (await guest.read(8)) as Uint8Array;
      expect([await guest.flush(), await guest.write(8, 9), page[0]]).toEqual([ERROR, ERROR, 1]);
      expect(readStats(options.statsDir, 1, AT.devid).flushFailure).toBe("ENOSPC");
      expect(device.lost).toBeUndefined();
      if (successor === 0) await device.abandon();
    }
    await guest.setState(6);
    await guest.untilBackend(6);
    expect(successors.at(-1)?.lost).toContain("ENOSPC");
    await guest.setState(1);
    await guest.connect();
    expect(await guest.flush()).toBe(OKAY);
  });

  test.each([
    ["the guest's Closed", () => guest.setState(6), undefined],
    ["a guest that starts over", () => guest.setState(1), undefined],
    ["hot-unplug", () => closeDevice(xenstore, AT).then(() => guest.setState(6)), "closed"],
    ["removal by the toolstack", () => destroyDevice(xenstore, AT), "removed"],
  ])("%s: what was written is flushed, and when that fails it is known", async (_name, close, end) => {
    const device = await serve("error:times=1,op=flush");
    await guest.connect();
    expect(await guest.write(8, 1)).toBe(OKAY);
    await close();
    if (end === undefined) await guest.untilBackend((await guest.frontendState()) === "1" ? 2 : 6);
    else expect(await device.ended).toBe(end as "closed" | "removed");
    expect(device.lost).toBe("EIO: i/o error");
  });

  test("a server that leaves the guest to another one does not flush, and says nothing is lost", async () => {
    const device = await serve("error:times=1,op=flush");
    await guest.connect();
    expect(await guest.write(8, 1)).toBe(OKAY);
    await device.abandon();
    expect(device.lost).toBeUndefined();
  });

  test("hot-unplug waits for the flush of a guest that has let go, for longer than for the guest", async () => {
    const device = await serve("delay:ms=300,op=flush");
    await guest.connect();
    expect(await guest.write(8, 1)).toBe(OKAY);
    const detached = device.detach(100);
    await guest.untilBackend(5);
    await guest.setState(6);
    expect([await detached, await device.ended]).toEqual([true, "closed"]);
    await guest.untilBackend(6);
  });

  test("resize tells what it did: grown, shrunk, unchanged, emptied", async () => {
    await serve();
    await guest.connect();
    const sectors = IMAGE_BYTES / 512;
    const wait = { timeoutMs: 10_000 };
    expect(await resizeDevice(xenstore, AT, wait)).toEqual({ before: sectors, after: sectors });
    truncateSync(image.path, IMAGE_BYTES * 2);
    expect(await resizeDevice(xenstore, AT, wait)).toEqual({ before: sectors, after: 2 * sectors });
    expect(await xenstore.read(`${backendDir(AT)}/sectors`)).toBe(String(2 * sectors));
    truncateSync(image.path, 4096);
    expect(await resizeDevice(xenstore, AT, wait)).toEqual({ before: 2 * sectors, after: 8 });
    expect(await guest.read(8)).toBe(ERROR);
    truncateSync(image.path, 0);
    expect(await resizeDevice(xenstore, AT, wait)).toEqual({ before: 8, after: 0 });
    expect(await xenstore.read(`${backendDir(AT)}/sectors`)).toBe("8");
  });

  test("resize of a device that nobody serves says so", async () => {
    expect(await resizeDevice(xenstore, AT, { timeoutMs: 50 }).catch(String)).toContain(
      "seems not to be served",
    );
  });
});
