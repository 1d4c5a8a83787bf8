// The life of a device: handshake, reconnect, hot-unplug, force-close, loss of the guest, guests that write
// nonsense, growth, and a second server that takes over. Each with real workers, and nothing left at the end.
import { afterEach, beforeEach, describe, expect, spyOn, test } from "bun:test";
import { readdirSync, rmSync, truncateSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { backendDir, frontendDir, type DeviceAddress } from "../../src/blkback/address.ts";
import { BlkbackDevice, type DeviceOptions } from "../../src/blkback/device/device.ts";
import { serveImage } from "../../src/blkback/serve.ts";
import { resizeDevice } from "../../src/blkback/device/resize.ts";
import { listDevices } from "../../src/blkback/device/device-list.ts";
import { readStats } from "../../src/blkback/stats/stats.ts";
import {
  closeDevice,
  createDevice,
  destroyDevice,
  forceCloseDevice,
  waitUntilClosed,
} from "../../src/blkback/toolstack.ts";
import type { Image } from "../../src/block/image.ts";
import { configureLogging } from "../../src/core/log.ts";
import { toDomid } from "../../src/core/types.ts";
import type { SimPlatform } from "../../src/platform/sim.ts";
import type { SimHost } from "../../src/sim/host.ts";
import { Xenstore } from "../../src/xenstore/client.ts";
import { pattern } from "./blk-harness.ts";
import type { HandmadeGuest } from "./blk-guest.ts";
import { chosenSeed, Random } from "../support/random.ts";
import { DiskWorld, diskAddress, expectPage, IMAGE_BYTES, spawnWorker } from "./disk-world.ts";

let world: DiskWorld;
let host: SimHost;
let dom0: SimPlatform;
let xenstore: Xenstore;
let dir: string;
let image: Image;
let options: DeviceOptions;

async function serve(at: DeviceAddress, create = true, spawn = spawnWorker): Promise<BlkbackDevice> {
  if (create) await world.create(at);
  return world.serve(at, {}, spawn);
}

const guestOf = (at: DeviceAddress): Promise<HandmadeGuest> => world.guest(at);

beforeEach(async () => {
  // C xenstored: a transaction of ours fails when a guest changes the same nodes meanwhile.
  world = await DiskWorld.start({ domains: 3, personality: "xenstored-4.22" });
  ({ host, dom0, xenstore, dir, image, options } = world);
});

afterEach(() => world.close());

describe("the handshake", () => {
  test("offers, connects, serves; keys are in place before the states that promise them", async () => {
    const at = diskAddress(1);
    await serve(at);
    const guest = await guestOf(at);
    await guest.untilBackend(2);
    expect(await guest.backendKey("max-ring-page-order")).toBe("4");
    expect(await guest.backendKey("feature-max-indirect-segments")).toBe("256");
    const disk = {
      sectors: String(IMAGE_BYTES / 512),
      "sector-size": "512",
      info: "0",
      "feature-flush-cache": "1",
      "feature-barrier": "1",
      "feature-discard": "1",
      "discard-alignment": "0",
      "feature-persistent": "0",
    };
    const keys = (): Promise<(string | null)[]> =>
      Promise.all(Object.keys(disk).map((key) => guest.backendKey(key)));
    expect(await keys()).toEqual(Object.values(disk));
    await guest.connect();
    expect(await keys()).toEqual(Object.values(disk));
    expectPage(await guest.read(16), 16);
    const stats = readStats(options.statsDir, 1, 51728);
    expect([stats.requests, stats.ok, stats.readBytes, stats.pid]).toEqual([1, 1, 4096, process.pid]);
    expect(
      (await listDevices(xenstore, toDomid(0), [])).map((it) => [
        it.vdev,
        it.frontend,
        it.backendState,
        it.sectors512,
      ]),
    ).toEqual([["xvdb", toDomid(1), "Connected", IMAGE_BYTES / 512]]);
  });

  test("a guest that comes back is served although somebody removed the statistics", async () => {
    const at = diskAddress(1);
    await serve(at);
    const guest = await guestOf(at);
    await guest.connect();
    for (const name of readdirSync(options.statsDir))
      if (name.endsWith(".stats")) rmSync(join(options.statsDir, name));
    await guest.setState(6);
    await guest.untilBackend(6);
    await guest.setState(1);
    await guest.connect();
    expectPage(await guest.read(8), 8);
    expect(readStats(options.statsDir, 1, 51728).requests).toBe(1);
  });

  test("a guest that closes and comes back, as after kexec", async () => {
    const at = diskAddress(1);
    await serve(at);
    const guest = await guestOf(at);
    for (let round = 0; round < 3; round++) {
      await guest.connect();
      expectPage(await guest.read(8), 8);
      await guest.setState(5);
      await guest.untilBackend(5);
      await guest.setState(6);
      await guest.untilBackend(6);
      await guest.setState(1);
    }
    await guest.untilBackend(2);
  });

  test("other spellings: ring-ref0, ring-page-order, no protocol", async () => {
    const at = diskAddress(1);
    await serve(at);
    const guest = await guestOf(at);
    await guest.untilBackend(2);
    await guest.offerRing();
    await guest.untilBackend(4);
    const ref = await guest.xenstore.read(`${frontendDir(at)}/ring-ref`);
    await guest.setState(6);
    await guest.untilBackend(6);
    await guest.setState(1);
    await guest.untilBackend(2);
    await guest.offerRing({ "ring-ref": null, "ring-ref0": ref, "ring-page-order": "0" });
    await guest.untilBackend(4);
    expectPage(await guest.read(8), 8);
  });
});

describe("the end", () => {
  test("hot-unplug: asked to close, the guest lets go", async () => {
    const at = diskAddress(1);
    const device = await serve(at);
    const guest = await guestOf(at);
    await guest.connect();
    await closeDevice(xenstore, at);
    await guest.untilBackend(5);
    expectPage(await guest.read(8), 8);
    await guest.setState(5);
    await guest.setState(6);
    expect(await device.ended).toBe("closed");
    await guest.untilBackend(6);
    await destroyDevice(xenstore, at);
    expect([await xenstore.exists(backendDir(at)), await xenstore.exists(frontendDir(at))]).toEqual([
      false,
      false,
    ]);
    await destroyDevice(xenstore, at);
  });

  test("detach waits for nobody when the second signal has come before it", async () => {
    const at = diskAddress(1);
    const device = await serve(at);
    const guest = await guestOf(at);
    await guest.connect();
    expect(await device.detach(60_000, AbortSignal.abort())).toBe(false);
    await device.abandon();
  });

  test("hot-unplug of a disk that the guest has let go of by itself", async () => {
    const at = diskAddress(1);
    const device = await serve(at);
    const guest = await guestOf(at);
    await guest.connect();
    await guest.setState(6);
    await guest.untilBackend(6);
    await closeDevice(xenstore, at);
    await waitUntilClosed(xenstore, at, 10_000, new AbortController().signal);
    expect(await device.ended).toBe("closed");
    await destroyDevice(xenstore, at);
  });

  test("detach gives up on a guest that holds on, and the device goes on", async () => {
    const at = diskAddress(1);
    const device = await serve(at);
    const guest = await guestOf(at);
    await guest.connect();
    expect(await device.detach(50)).toBe(false);
    expectPage(await guest.read(8), 8);
    await guest.setState(6);
    expect(await device.ended).toBe("closed");
  });

  test("force-close does not ask the guest", async () => {
    const at = diskAddress(1);
    const device = await serve(at);
    const guest = await guestOf(at);
    await guest.connect();
    await forceCloseDevice(xenstore, at);
    expect(await device.ended).toBe("closed");
  });

  test.each([
    ["force-close", forceCloseDevice, "closed"],
    ["destroy", destroyDevice, "removed"],
  ] as const)("%s wins against a guest that writes all the time", async (_name, step, end) => {
    const at = diskAddress(1);
    const device = await serve(at);
    const guest = await guestOf(at);
    await guest.connect();
    let resisting = true;
    const resists = async (): Promise<void> => {
      while (resisting) await guest.setState(4).catch(() => {});
    };
    const writers = [resists(), resists()];
    try {
      await step(xenstore, at);
      expect(await device.ended).toBe(end);
    } finally {
      resisting = false;
      await Promise.all(writers);
    }
  });

  test("a device that nobody used", async () => {
    const at = diskAddress(1);
    const device = await serve(at);
    expect(await device.detach(5000)).toBe(true);
    expect(await device.ended).toBe("closed");
  });

  test("a device that nobody used, and the second signal has come: there is nobody to wait for", async () => {
    const at = diskAddress(1);
    const device = await serve(at);
    expect(await device.detach(60_000, AbortSignal.abort())).toBe(true);
    expect(await device.ended).toBe("closed");
  });

  test("the guest dies", async () => {
    const at = diskAddress(2);
    const device = await serve(at);
    const guest = await guestOf(at);
    await guest.connect();
    guest.close();
    await host.destroyDomain(2);
    expect(await device.ended).toBe("frontend-gone");
  });

  test("the toolstack removes the directories", async () => {
    const at = diskAddress(1);
    const device = await serve(at);
    const guest = await guestOf(at);
    await guest.connect();
    await destroyDevice(xenstore, at);
    expect(await device.ended).toBe("removed");
  });

  test("xenstored goes away", async () => {
    const at = diskAddress(1);
    const lost = await Xenstore.connect(dom0);
    await createDevice(xenstore, { address: at, readOnly: false, deviceType: "disk", params: image.path });
    const device = await BlkbackDevice.start(dom0, lost, at, image, options, spawnWorker);
    lost.close();
    await device.abandon();
  });

  test("xenstored goes away from a server: it ends, and tries no more to tidy up there", async () => {
    const lost = await Xenstore.connect(dom0);
    const connection = [...(host.server.domains.get(0)?.connections ?? [])].at(-1);
    const stderr = spyOn(process.stderr, "write").mockImplementation(() => true);
    configureLogging(0);
    try {
      const { signal } = new AbortController();
      const path = join(dir, "other.img");
      writeFileSync(path, pattern(IMAGE_BYTES));
      const server = {
        ...options,
        path,
        address: diskAddress(2),
        readOnly: false,
        shared: false,
        direct: false,
      };
      const whole = { ...server, detachTimeoutMs: 1000 };
      const end = serveImage(dom0, lost, whole, spawnWorker, signal, signal, () => connection?.close());
      expect(await end.catch(String)).toContain("went away");
      expect(stderr.mock.calls).toEqual([]);
    } finally {
      stderr.mockRestore();
    }
  });
});

describe("nonsense", () => {
  test.each([
    ["ring-ref", "abc"],
    ["ring-ref", "99999999999999999999"],
    ["ring-ref", "4294967295"],
    ["ring-ref", ""],
    ["ring-ref", null],
    ["event-channel", "-1"],
    ["event-channel", "4000000000"],
    ["event-channel", null],
    ["protocol", "mips-abi"],
    ["protocol", "\x1b[2J"],
    ["ring-page-order", "5"],
    ["ring-page-order", "1e3"],
    ["multi-queue-num-queues", "4"],
  ])("%s = %p is refused, and a guest that starts over is served", async (key, value) => {
    const at = diskAddress(1);
    await serve(at);
    const guest = await guestOf(at);
    await guest.untilBackend(2);
    await guest.offerRing({ [key]: value });
    await guest.untilBackend(5);
    const reason = await xenstore.read(`/local/domain/0/error/backend/qdisk/1/51728/error`);
    expect(reason).toMatch(/^[\x20-\x7e…]{10,}$/);
    await guest.setState(6);
    await guest.untilBackend(6);
    await guest.setState(1);
    await guest.untilBackend(2);
    await guest.offerRing({ "multi-queue-num-queues": null, "ring-page-order": null });
    await guest.untilBackend(4);
    expectPage(await guest.read(24), 24);
    expect(await xenstore.exists("/local/domain/0/error/backend/qdisk/1")).toBe(false);
  });

  test("a ring that lies stops its device; the neighbour does not notice", async () => {
    const [bad, good] = [diskAddress(1), diskAddress(2)];
    await serve(bad);
    await serve(good);
    const liar = await guestOf(bad);
    const neighbour = await guestOf(good);
    await liar.connect();
    await neighbour.connect();
    liar.lie(5000);
    await liar.untilBackend(5);
    expect(await xenstore.read("/local/domain/0/error/backend/qdisk/1/51728/error")).toContain(
      "indices cannot be true",
    );
    expectPage(await neighbour.read(40), 40);
  });

  test("a ring that lies at once, so that the data plane is gone before we say Connected", async () => {
    const at = diskAddress(1);
    const stopped = Promise.withResolvers<void>();
    await serve(at, true, () => {
      const worker = spawnWorker();
      worker.addEventListener("message", ({ data }) => {
        if (data.type === "done") stopped.resolve();
      });
      return worker;
    });
    const liar = await guestOf(at);
    await liar.untilBackend(2);
    const transaction = xenstore.transaction.bind(xenstore);
    xenstore.transaction = (body) => stopped.promise.then(() => transaction(body));
    await liar.offerRing({}, 5000);
    await liar.untilBackend(5);
    await liar.setState(6);
    await liar.untilBackend(6);
    await liar.setState(1);
    await liar.connect();
    expectPage(await liar.read(8), 8);
  });

  test("a server that leaves while a guest that flaps has to wait leaves for good", async () => {
    const at = diskAddress(1);
    let workers = 0;
    const device = await serve(at, true, () => {
      workers++;
      return spawnWorker();
    });
    const guest = await guestOf(at);
    await guest.connect();
    await guest.setState(1);
    await guest.untilBackend(2);
    await guest.offerRing();
    await xenstore.read(`${frontendDir(at)}/state`);
    await device.abandon();
    // The pause between two connections, which must not end in one that nobody waits for.
    await Bun.sleep(200);
    expect(workers).toBe(1);
  });

  test("a device that is over is forgotten by its xenstore connection", async () => {
    const onClose = xenstore.onClose.bind(xenstore);
    let listeners = 0;
    xenstore.onClose = (listener) => {
      const stop = onClose(listener);
      listeners++;
      return () => {
        listeners--;
        stop();
      };
    };
    const device = await serve(diskAddress(1));
    expect(listeners).toBe(1);
    await device.abandon();
    expect(listeners).toBe(0);
  });

  test("a grant that is none: the neighbour it was merged with is not forgotten", async () => {
    const at = diskAddress(1);
    await serve(at);
    const guest = await guestOf(at);
    await guest.connect();
    for (let round = 0; round < 8; round++) {
      const statuses = await guest.submit([
        { operation: 1, sector: 16 },
        { operation: 1, sector: 24, gref: 9999 },
      ]);
      expect(statuses).toEqual([0, -1]);
    }
  });

  test("states that flap, and states that are none", async () => {
    const seed = chosenSeed();
    console.log(`flapping: SEED=${seed}`);
    const random = new Random(seed);
    const at = diskAddress(1);
    const device = await serve(at);
    const neighbourAt = diskAddress(2);
    await serve(neighbourAt);
    const neighbour = await guestOf(neighbourAt);
    await neighbour.connect();
    const guest = await guestOf(at);
    await guest.untilBackend(2);
    await guest.offerRing();
    for (let i = 0; i < 200; i++) {
      await guest.setState(1 + random.below(8));
    }
    expectPage(await neighbour.read(8), 8);
    await guest.setState(6);
    await guest.untilBackend(6);
    await guest.setState(1);
    await guest.connect();
    expectPage(await guest.read(8), 8);
    await guest.setState("garbage \x1b[31m".repeat(3));
    expect(await device.ended).toBe("frontend-gone");
  });
});

describe("while it runs", () => {
  test("an image that grew is announced", async () => {
    const at = diskAddress(1);
    await serve(at);
    const guest = await guestOf(at);
    await guest.connect();
    expect(await guest.read(IMAGE_BYTES / 512)).toBe(-1);
    truncateSync(image.path, IMAGE_BYTES * 2);
    await resizeDevice(xenstore, at);
    const path = `${backendDir(at)}/sectors`;
    await guest.xenstore.waitFor(path, (value) => value === String(IMAGE_BYTES / 256), { timeoutMs: 5000 });
    expect((await guest.read(IMAGE_BYTES / 512)) as Uint8Array).toEqual(new Uint8Array(4096));
  });

  test("another server takes over where the first one stopped", async () => {
    const at = diskAddress(1);
    const first = await serve(at);
    const guest = await guestOf(at);
    await guest.connect();
    expectPage(await guest.read(8), 8);
    await first.abandon();
    const pending = guest.read(16);
    await serve(at, false);
    expectPage(await pending, 16);
    expectPage(await guest.read(24), 24);
  });

  test("also where the first one waited for the guest to let go: it goes on waiting", async () => {
    const at = diskAddress(1);
    const first = await serve(at);
    const guest = await guestOf(at);
    await guest.connect();
    expect(await first.detach(50)).toBe(false);
    await first.abandon();
    const pending = guest.read(16);
    const next = await serve(at, false);
    expectPage(await pending, 16);
    expectPage(await guest.read(24), 24);
    expect(await guest.backendKey("state")).toBe("5");
    await guest.setState(6);
    expect(await next.ended).toBe("closed");
    expect(await guest.backendKey("state")).toBe("6");
  });

  test.each([
    ["asked to, as Linux before 5.15 does when the disk is mounted", true],
    ["by itself", false],
  ])("also from a guest that says Closing and goes on, %s", async (_name, isAsked) => {
    const at = diskAddress(1);
    const first = await serve(at);
    const guest = await guestOf(at);
    await guest.connect();
    if (isAsked) expect(await first.detach(50)).toBe(false);
    await guest.setState(5);
    await guest.untilBackend(5);
    expectPage(await guest.read(8), 8);
    await first.abandon();
    const pending = guest.read(16);
    const next = await serve(at, false);
    expectPage(await pending, 16);
    expectPage(await guest.read(24), 24);
    expect(await guest.backendKey("state")).toBe("5");
    await guest.setState(6);
    await guest.untilBackend(6);
    if (isAsked) expect(await next.ended).toBe("closed");
  });

  test("also from one that has let go of its ring, and has yet to say Closed", async () => {
    const at = diskAddress(1);
    const first = await serve(at);
    const guest = await guestOf(at);
    await guest.connect();
    expect(await first.detach(50)).toBe(false);
    await guest.setState(5);
    await first.abandon();
    await guest.writeTogether({ "ring-ref": "4000" });
    const next = await serve(at, false);
    await xenstore.waitFor("/local/domain/0/error/backend/qdisk/1/51728/error", (it) => it !== null);
    expect(await guest.backendKey("state")).toBe("5");
    await guest.setState(6);
    expect(await next.ended).toBe("closed");
    expect(await guest.backendKey("state")).toBe("6");
  });

  test.each(["a successor", "a server of a guest that connects"])(
    "%s that is asked to close while its data plane starts does not say Connected any more",
    async (which) => {
      const at = diskAddress(1);
      // The size shows when the server has written what belongs to Connected.
      const detach = { online: "0", state: "5", sectors: "" };
      const spawn = (): Worker => {
        void xenstore.transaction(async (tx) => {
          for (const [key, value] of Object.entries(detach))
            await tx.write(`${backendDir(at)}/${key}`, value);
        });
        return spawnWorker();
      };
      const guest = await guestOf(at);
      let device: BlkbackDevice;
      if (which === "a successor") {
        const first = await serve(at);
        await guest.connect();
        await first.abandon();
        device = await serve(at, false, spawn);
      } else {
        device = await serve(at, true, spawn);
        await guest.untilBackend(2);
        await guest.offerRing();
      }
      const seen: (string | null)[] = [];
      await xenstore.watch(`${backendDir(at)}/state`, async () => {
        seen.push(await xenstore.tryRead(`${backendDir(at)}/state`));
      });
      await guest.untilBackend(5);
      await xenstore.waitFor(`${backendDir(at)}/sectors`, (it) => it !== "", { timeoutMs: 10_000 });
      await guest.setState(6);
      expect(await device.ended).toBe("closed");
      expect(seen.slice(seen.indexOf("5"))).not.toContain("4");
    },
  );

  test("a server that fails while it takes over leaves no data plane behind", async () => {
    const at = diskAddress(1);
    const first = await serve(at);
    const guest = await guestOf(at);
    await guest.connect();
    await first.abandon();
    const pending = guest.read(16);
    const watch = xenstore.watch.bind(xenstore);
    xenstore.watch = async (path, callback, rest) => {
      if (path !== "@releaseDomain") return watch(path, callback, rest);
      expectPage(await pending, 16);
      throw new Error("no more watches");
    };
    const stopped = Promise.withResolvers<void>();
    const starting = serve(at, false, () => {
      const worker = spawnWorker();
      worker.addEventListener("message", ({ data }) => {
        if (data.type === "done") stopped.resolve();
      });
      return worker;
    });
    expect(await starting.catch(String)).toContain("no more watches");
    await stopped.promise;
  });
});
