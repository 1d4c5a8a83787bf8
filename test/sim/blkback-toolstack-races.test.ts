// Toolstacks that are quick: a device is removed while its guest connects, made again under the same name for another
// image, or written key by key. No late write makes half a device, each device is served, and with its own image.
import { afterEach, beforeEach, describe, expect, spyOn, test } from "bun:test";
import { writeFileSync } from "node:fs";
import { join } from "node:path";
import { backendDir, frontendDir, type DeviceAddress } from "../../src/blkback/address.ts";
import { BlkbackDevice } from "../../src/blkback/device/device.ts";
import { DEFAULT_OFFER } from "../../src/blkback/device/features.ts";
import { serveImage } from "../../src/blkback/serve.ts";
import {
  closeDevice,
  createDevice,
  destroyDevice,
  forceCloseDevice,
  SERVE_KEY,
} from "../../src/blkback/toolstack.ts";
import { BackendWatch } from "../../src/blkback/watch/watch.ts";
import { closeImage, openImage } from "../../src/block/image.ts";
import { toDomid } from "../../src/core/types.ts";
import type { SimPlatform } from "../../src/platform/sim.ts";
import { SimHost } from "../../src/sim/host.ts";
import { Xenstore } from "../../src/xenstore/client.ts";
import { replyError } from "../../src/xenstore/errors.ts";
import { HandmadeGuest } from "./blk-guest.ts";
import { removeDirectory, temporaryDirectory } from "../support/temporary.ts";
import { chosenSeed, Random } from "../support/random.ts";
import { spawnWorker } from "./disk-world.ts";

const options = { grantMode: "copy", engine: "uring", filters: [], verbosity: 0 } as const;
const WAIT = { timeoutMs: 20_000 };

let host: SimHost;
let dom0: SimPlatform;
let xenstore: Xenstore;
let dir: string;
let random: Random;
const closing: (() => void | Promise<void>)[] = [];

beforeEach(async () => {
  host = await SimHost.start({ domains: 3, personality: "xenstored-4.22" });
  dom0 = host.platform(0);
  xenstore = await Xenstore.connect(dom0);
  dir = temporaryDirectory();
  for (const byte of [1, 2]) writeFileSync(image(byte), new Uint8Array(1 << 16).fill(byte));
  const seed = chosenSeed();
  console.log(`SEED=${seed}`);
  random = new Random(seed);
});

afterEach(async () => {
  for (const close of closing.splice(0)) await close();
  removeDirectory(dir);
  xenstore.close();
  dom0.close();
  expect(await host.settle()).toEqual([]);
  await host.stop();
});

/** The image that is full of `byte`. */
function image(byte: number): string {
  return join(dir, `${byte}.img`);
}

function address(backend = 0): DeviceAddress {
  return { backend: toDomid(backend), kind: "vbd", frontend: toDomid(2), devid: 51728 };
}

async function startWatch(domid = 0): Promise<BackendWatch> {
  const platform = domid === 0 ? dom0 : host.platform(domid);
  const store = domid === 0 ? xenstore : await Xenstore.connect(platform);
  const { deviceType: _, ...offer } = DEFAULT_OFFER;
  const whole = {
    ...options,
    kind: "vbd",
    offer,
    direct: false,
    anyScript: true,
    statsDir: join(dir, "stats"),
  };
  const watch = await BackendWatch.start(platform, store, whole, spawnWorker);
  closing.push(async () => {
    await watch.stop();
    if (domid === 0) return;
    store.close();
    platform.close();
  });
  return watch;
}

async function guestOf(at: DeviceAddress): Promise<HandmadeGuest> {
  const guest = await HandmadeGuest.start(host, at);
  closing.push(() => guest.close());
  return guest;
}

function attach(at: DeviceAddress, byte: number): Promise<void> {
  return createDevice(xenstore, { address: at, readOnly: false, deviceType: "disk", params: image(byte) });
}

/** What is left of the device, and of directories that only it needed. */
async function leftovers(at: DeviceAddress): Promise<string[]> {
  const paths = [backendDir(at), frontendDir(at), backendDir(at).replace(/\/[^/]*$/, "")];
  const exist = await Promise.all(paths.map((path) => xenstore.exists(path)));
  return paths.filter((_, index) => exist[index]);
}

describe("removed", () => {
  test("while the guest connects: no late word makes half a device", async () => {
    const at = address();
    const guest = await guestOf(at);
    const disk = openImage(image(1), { readOnly: false, direct: false, sectorSizeBytes: 512 });
    closing.push(() => closeImage(disk));
    for (let round = 0; round < 24; round++) {
      await attach(at, 1);
      const whole = { ...options, offer: DEFAULT_OFFER, statsDir: join(dir, "stats") };
      const device = await BlkbackDevice.start(dom0, xenstore, at, disk, whole, spawnWorker);
      await guest.offerRing();
      await Bun.sleep(random.next() * 60);
      await destroyDevice(xenstore, at);
      expect(await device.ended).toBe("removed");
      expect(await leftovers(at)).toEqual([]);
    }
  });

  test("while its server looks at it: the guest's keys that go with it are no offer", async () => {
    const at = address();
    const guest = await guestOf(at);
    const toolstack = await Xenstore.connect(dom0);
    const disk = openImage(image(1), { readOnly: false, direct: false, sectorSizeBytes: 512 });
    closing.push(
      () => closeImage(disk),
      () => toolstack.close(),
    );
    await attach(at, 1);
    const whole = { ...options, offer: DEFAULT_OFFER, statsDir: join(dir, "stats") };
    const device = await BlkbackDevice.start(dom0, xenstore, at, disk, whole, spawnWorker);
    await guest.connect();
    let removed: Promise<void> | undefined;
    const readAfterwards: string[] = [];
    const tryRead = xenstore.tryRead.bind(xenstore);
    using _ = spyOn(xenstore, "tryRead").mockImplementation(async (path) => {
      // What a look asks for when it has seen the states of both ends.
      if (path === `${backendDir(at)}/xentool-resize`) removed ??= destroyDevice(toolstack, at);
      if (removed !== undefined) readAfterwards.push(path);
      await removed;
      return tryRead(path);
    });
    await toolstack.write(`${backendDir(at)}/online`, "1");
    expect(await device.ended).toBe("removed");
    expect(readAfterwards).toContain(`${frontendDir(at)}/state`);
    expect(readAfterwards).not.toContain(`${frontendDir(at)}/event-channel`);
  });

  test("while it is resized, closed or forced off: nothing is made there", async () => {
    const at = address();
    for (let round = 0; round < 20; round++) {
      await attach(at, 1);
      const steps = [closeDevice, forceCloseDevice].map((step) => step(xenstore, at).catch(String));
      await destroyDevice(xenstore, at);
      await Promise.all(steps);
      expect(await leftovers(at)).toEqual([]);
    }
  });

  test("what a late write has left is no device, and none is made of it", async () => {
    const at = address();
    await xenstore.write(`${backendDir(at)}/state`, "6");
    expect(await closeDevice(xenstore, at).catch(String)).toContain("there is no xvdb of domain 2");
    await attach(at, 1);
    expect(await xenstore.read(`${backendDir(at)}/state`)).toBe("1");
  });
});

test("asked to go while the guest connects: the word is not lost to our Connected", async () => {
  const at = address();
  const guest = await guestOf(at);
  const disk = openImage(image(1), { readOnly: false, direct: false, sectorSizeBytes: 512 });
  closing.push(() => closeImage(disk));
  await attach(at, 1);
  const whole = { ...options, offer: DEFAULT_OFFER, statsDir: join(dir, "stats") };
  let asked: Promise<void> | undefined;
  const device = await BlkbackDevice.start(dom0, xenstore, at, disk, whole, () => {
    const worker = spawnWorker();
    const transaction = xenstore.transaction.bind(xenstore);
    // After the ring is served, and before Connected is written.
    xenstore.transaction = async (body) => {
      xenstore.transaction = transaction;
      await (asked ??= closeDevice(xenstore, at));
      return transaction(body);
    };
    return worker;
  });
  await guest.untilBackend(2);
  await guest.offerRing();
  await guest.untilBackend(5);
  await guest.setState(6);
  expect(await device.ended).toBe("closed");
  expect(asked).toBeDefined();
});

describe("serve", () => {
  const whole = {
    ...options,
    offer: DEFAULT_OFFER,
    address: address(),
    readOnly: false,
    shared: false,
    direct: false,
    format: "raw",
    detachTimeoutMs: 5000,
  } as const;

  function serve(onOffered: () => void, stop = new AbortController().signal): Promise<unknown> {
    const disk = { ...whole, statsDir: join(dir, "stats"), path: image(1) };
    return serveImage(dom0, xenstore, disk, spawnWorker, stop, new AbortController().signal, onOffered);
  }

  test("says why a device that has no guest cannot be served", async () => {
    const at = address();
    await attach(at, 1);
    await xenstore.rm(frontendDir(at));
    expect(await serve(() => {}).catch(String)).toContain("remove it first");
  });

  test("replaces one that a killed serve has left to a guest that is gone", async () => {
    const at = address();
    await attach(at, 2);
    await xenstore.write(`${backendDir(at)}/${SERVE_KEY}`, "1");
    await xenstore.rm(frontendDir(at));
    const stop = new AbortController();
    const guest = await guestOf(at);
    const offered = Promise.withResolvers<void>();
    const end = serve(offered.resolve, stop.signal);
    await offered.promise;
    await guest.connect();
    expect(await guest.read(0)).toEqual(new Uint8Array(4096).fill(1));
    stop.abort();
    await guest.untilBackend(5);
    await guest.setState(6);
    expect(await end).toBe("closed");
    expect(await leftovers(at)).toEqual([]);
  });

  test("leaves another device alone that has come in place of its own", async () => {
    const at = address();
    const offered = Promise.withResolvers<void>();
    const end = serve(offered.resolve);
    await offered.promise;
    await destroyDevice(xenstore, at);
    await attach(at, 2);
    expect(await end).toBe("removed");
    expect(await xenstore.read(`${backendDir(at)}/params`)).toBe(image(2));
  });
});

describe("made again within milliseconds", () => {
  test.each([
    ["the guest lets go before", true],
    ["the guest is not asked", false],
  ])("%s: it is served, with its own image", async (_name, asks) => {
    const at = address();
    const watch = await startWatch();
    const guest = await guestOf(at);
    await attach(at, 1);
    for (let round = 1; round <= 60; round++) {
      const byte = 1 + (round % 2);
      await Bun.sleep(random.next() * 4);
      if (asks) {
        await closeDevice(xenstore, at);
        await guest.setState(6);
        await guest.untilBackend(6);
      }
      await destroyDevice(xenstore, at);
      await attach(at, byte);
      // Now and then the next one comes before this one is served, or while its guest is connected.
      if (asks || random.chance(0.7))
        await xenstore.waitFor(`${backendDir(at)}/state`, (state) => state === "2", WAIT);
      if (round % 6 !== 0) continue;
      await guest.connect();
      expect(await guest.read(0)).toEqual(new Uint8Array(4096).fill(byte));
    }
    expect(watch.deviceCount).toBe(1);
  });

  test("after one that was refused: the reason is not told of the next", async () => {
    const at = address();
    await startWatch();
    const guest = await guestOf(at);
    for (let round = 0; round < 20; round++) {
      await attach(at, 3);
      await Bun.sleep(random.next() * 4);
      await destroyDevice(xenstore, at);
      await attach(at, 1);
      await guest.untilBackend(2);
      expect(await xenstore.tryRead(`${backendDir(at)}/hotplug-error`)).toBeNull();
      await destroyDevice(xenstore, at);
    }
  });
});

test("refused where our script does not run: libxl, which asks for no reason, is not told that the disk is there", async () => {
  const at = address();
  await startWatch();
  await attach(at, 3);
  await xenstore.waitFor(`${backendDir(at)}/hotplug-status`, (status) => status === "error", WAIT);
  expect(await xenstore.read(`${backendDir(at)}/hotplug-error`)).toContain("3.img");
  expect(await xenstore.read(`${backendDir(at)}/state`)).toBe("1");
  await closeDevice(xenstore, at);
  await xenstore.waitFor(`${backendDir(at)}/state`, (state) => state === "6", WAIT);
  await destroyDevice(xenstore, at);
});

test("keys that are written one by one, in any order: it is served when they are there", async () => {
  const at = address();
  await startWatch();
  const guest = await guestOf(at);
  await attach(at, 2);
  const back = backendDir(at);
  const names = (await xenstore.directory(back)).filter((key) => key !== "hotplug-status");
  const keys = await Promise.all(
    names.map(async (key) => [key, await xenstore.read(`${back}/${key}`)] as const),
  );
  for (let round = 0; round < 12; round++) {
    await destroyDevice(xenstore, at);
    await attach(at, 2);
    await xenstore.rm(back);
    await xenstore.mkdir(back);
    await xenstore.setPerms(back, [
      { domid: 0, access: "none" },
      { domid: 2, access: "read" },
    ]);
    const shuffled = keys.map((key) => [random.next(), key] as const).toSorted((a, b) => a[0] - b[0]);
    for (const [, [key, value]] of shuffled) {
      const isOurs = key.startsWith("xentool-") || /^(feature|discard|sector|max|physical)/.test(key);
      if (!isOurs) await xenstore.write(`${back}/${key}`, key === "state" ? "1" : value);
    }
    await guest.connect();
    expect(await guest.write(0, 2)).toBe(0);
    await guest.setState(1);
  }
});

describe("a driver domain", () => {
  const parent = backendDir(address(1)).replace(/\/[^/]*$/, "");
  const owned = (domid: number): Promise<void> => xenstore.setPerms(parent, [{ domid, access: "none" }]);

  test("removes what a device leaves empty, and no more", async () => {
    const [first, second] = [address(1), { ...address(1), devid: 51744 }];
    await startWatch(1);
    await attach(first, 1);
    await attach(second, 2);
    await owned(1);
    for (const at of [first, second]) {
      const guest = await guestOf(at);
      await guest.connect();
      await closeDevice(xenstore, at);
      await guest.setState(6);
      await xenstore.waitFor(backendDir(at), (value) => value === null, WAIT);
      if (at === first) expect(await xenstore.directory(parent)).toEqual(["51744"]);
    }
    await xenstore.waitFor(parent, (value) => value === null, WAIT);
    expect(await xenstore.exists("/local/domain/1/backend/vbd")).toBe(true);
  });

  // libxl's are dom0's (QubesOS/qubes-issues#5369; xen-devel 2020-11-08, "libxl: cleanup remaining backend xs dirs
  // after driver domain").
  test("leaves the toolstack's own directory to the toolstack", async () => {
    const at = address(1);
    await startWatch(1);
    const guest = await guestOf(at);
    for (let round = 0; round < 2; round++) {
      await attach(at, 1);
      await owned(0);
      await guest.connect();
      await closeDevice(xenstore, at);
      await guest.setState(6);
      await xenstore.waitFor(backendDir(at), (value) => value === null, WAIT);
      await destroyDevice(xenstore, at);
      expect(await leftovers(at)).toEqual([]);
    }
  });

  test("also when the toolstack has removed the device", async () => {
    const at = address(1);
    await startWatch(1);
    await attach(at, 1);
    await owned(1);
    await xenstore.waitFor(`${backendDir(at)}/state`, (state) => state === "2", WAIT);
    for (const path of [backendDir(at), frontendDir(at)]) await xenstore.rm(path);
    await xenstore.waitFor(parent, (value) => value === null, WAIT);
  });
});

describe("a device that cannot be served", () => {
  const at = address();
  let toolstack: Xenstore;
  let watch: BackendWatch;

  beforeEach(async () => {
    toolstack = await Xenstore.connect(dom0);
    closing.push(() => toolstack.close());
    watch = await startWatch();
  });

  /** Runs `first` before the watch's next transaction about the device that it has claimed; dispose to end this. */
  function beforeNextWord(first: () => Promise<void>): Disposable {
    const transaction = xenstore.transaction.bind(xenstore);
    let isDone = false;
    return spyOn(xenstore, "transaction").mockImplementation(async (body) => {
      if (!isDone && (await toolstack.exists(`${backendDir(at)}/xentool-served-by`))) {
        isDone = true;
        await first();
      }
      return transaction(body);
    });
  }

  test.each(["refused", "offered to a guest that arrives"])(
    "is %s while the toolstack asks to close it: that stands, and is answered",
    async (what) => {
      const isArriving = what !== "refused";
      if (isArriving) {
        await toolstack.write("/local/domain/2/name", "g--incoming");
        const image1 = openImage(image(1), { readOnly: false, direct: false, sectorSizeBytes: 512 });
        closing.push(() => closeImage(image1));
      }
      using _ = beforeNextWord(() => closeDevice(toolstack, at));
      await createDevice(toolstack, {
        address: at,
        readOnly: false,
        deviceType: "disk",
        params: isArriving ? image(1) : join(dir, "none.img"),
      });
      await toolstack.waitFor(`${backendDir(at)}/state`, (it) => it === "6", WAIT);
    },
  );

  test.each(["before", "while"])(
    "and cannot be told of either, %s the watch stops: it lets go of all others",
    async (when) => {
      const others = { ...at, devid: 51744 };
      await createDevice(toolstack, {
        address: others,
        readOnly: false,
        deviceType: "disk",
        params: image(1),
      });
      const guest = await guestOf(others);
      await guest.connect();
      const [asked, answer] = [Promise.withResolvers<void>(), Promise.withResolvers<void>()];
      using _ = beforeNextWord(() => {
        asked.resolve();
        return answer.promise;
      });
      await createDevice(toolstack, {
        address: at,
        readOnly: false,
        deviceType: "disk",
        params: join(dir, "none.img"),
      });
      await asked.promise;
      const stopped = when === "while" ? watch.stop() : undefined;
      answer.reject(replyError("write", backendDir(at), "ENOSPC"));
      await toolstack.read(`${backendDir(at)}/state`);
      await (stopped ?? watch.stop());
      expect(watch.deviceCount).toBe(0);
      const pending = guest.read(8);
      await startWatch();
      expect(await pending).toBeInstanceOf(Uint8Array);
    },
  );
});
