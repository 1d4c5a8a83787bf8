// The daemon: devices appear as a toolstack makes them, are served, refused with a reason, closed and left to the
// next daemon.
import { afterEach, beforeEach, describe, expect, spyOn, test } from "bun:test";
import { spawnSync } from "node:child_process";
import { mkdirSync, readFileSync, renameSync, rmSync, truncateSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { backendDir, errorDir, frontendDir, type DeviceAddress } from "../../src/blkback/address.ts";
import { listDevices } from "../../src/blkback/device/device-list.ts";
import { DEFAULT_OFFER } from "../../src/blkback/device/features.ts";
import { closeDevice, createDevice, destroyDevice } from "../../src/blkback/toolstack.ts";
import { BackendWatch } from "../../src/blkback/watch/watch.ts";
import { configureLogging } from "../../src/core/log.ts";
import { toDomid } from "../../src/core/types.ts";
import type { SimPlatform } from "../../src/platform/sim.ts";
import { SimHost } from "../../src/sim/host.ts";
import { Xenstore } from "../../src/xenstore/client.ts";
import { HandmadeGuest } from "./blk-guest.ts";
import { HostDevices } from "../e2e/host-devices.ts";
import { nbdkit } from "../support/nbd-servers.ts";
import { pattern } from "./blk-harness.ts";
import { removeDirectory, temporaryDirectory } from "../support/temporary.ts";
import { spawnWorker } from "./disk-world.ts";

let host: SimHost;
let dom0: SimPlatform;
let xenstore: Xenstore;
let dir: string;
let watch: BackendWatch | undefined;
const guests: HandmadeGuest[] = [];

beforeEach(async () => {
  host = await SimHost.start({ domains: 3 });
  dom0 = host.platform(0);
  xenstore = await Xenstore.connect(dom0);
  dir = temporaryDirectory();
  writeFileSync(join(dir, "a.img"), pattern(1 << 20));
  writeFileSync(join(dir, "b.img"), pattern(1 << 19));
});

afterEach(async () => {
  await watch?.stop();
  watch = undefined;
  for (const guest of guests.splice(0)) guest.close();
  removeDirectory(dir);
  xenstore.close();
  dom0.close();
  expect(await host.settle()).toEqual([]);
  await host.stop();
});

function address(domid: number, devid = 51728): DeviceAddress {
  return { backend: toDomid(0), kind: "vbd", frontend: toDomid(domid), devid };
}

/** What libxl writes for a disk line with `script=`. */
async function attach(at: DeviceAddress, target: string, script = "block-xentool"): Promise<void> {
  await createDevice(xenstore, { address: at, readOnly: false, deviceType: "disk", params: target });
  const back = backendDir(at);
  await xenstore.rm(`${back}/hotplug-status`);
  await xenstore.write(`${back}/script`, `/etc/xen/scripts/${script}`);
}

async function startWatch(anyScript = false, sysfs = "/sys"): Promise<BackendWatch> {
  const { deviceType: _, ...offer } = DEFAULT_OFFER;
  const options = {
    kind: "vbd",
    offer,
    direct: false,
    anyScript,
    sysfs,
    grantMode: "copy",
    engine: "uring",
    filters: [],
    statsDir: join(dir, "stats"),
    verbosity: 0,
  } as const;
  watch = await BackendWatch.start(dom0, xenstore, options, spawnWorker);
  return watch;
}

async function guestOf(at: DeviceAddress): Promise<HandmadeGuest> {
  const guest = await HandmadeGuest.start(host, at);
  guests.push(guest);
  return guest;
}

async function until(at: DeviceAddress, key: string, value: string | null): Promise<void> {
  await xenstore.waitFor(`${backendDir(at)}/${key}`, (it) => it === value, { timeoutMs: 25_000 });
}

/** A device counts from the first look at it until it is let go. */
async function untilDevices(count: number): Promise<void> {
  const deadline = performance.now() + 25_000;
  while (watch?.deviceCount !== count && performance.now() < deadline) await Bun.sleep(5);
  expect(watch?.deviceCount).toBe(count);
}

test("devices that were there and devices that come are served, those of others are not", async () => {
  const [early, late, others] = [address(1), address(2), address(2, 51744)];
  await attach(early, join(dir, "a.img"));
  await startWatch();
  await attach(late, `aio:${join(dir, "b.img")}`);
  await attach(others, join(dir, "a.img"), "block");
  for (const at of [early, late]) {
    await until(at, "hotplug-status", "connected");
    const guest = await guestOf(at);
    await guest.connect();
    expect(
      Buffer.from((await guest.read(8)) as Uint8Array).equals(
        Buffer.from(pattern(1 << 19)).subarray(4096, 8192),
      ),
    ).toBe(true);
  }
  expect(watch?.deviceCount).toBe(2);
  expect(await xenstore.read(`${backendDir(others)}/state`)).toBe("1");
});

test("the kernel's blkback is relieved of what it only found first, and keeps what a guest uses", async () => {
  const [found, used] = [address(1), address(2)];
  const driver = join(dir, "bus/xen-backend/drivers/vbd");
  for (const at of [found, used]) {
    await attach(at, join(dir, at === found ? "a.img" : "b.img"), "block");
    mkdirSync(join(driver, `vbd-${at.frontend}-${at.devid}`), { recursive: true });
  }
  for (const end of [backendDir(used), frontendDir(used)]) await xenstore.write(`${end}/state`, "4");
  await startWatch(true, dir);
  await until(found, "hotplug-status", "connected");
  await untilDevices(1);
  expect(readFileSync(join(driver, "unbind"), "utf8")).toBe(`vbd-${found.frontend}-${found.devid}`);
  for (const end of [backendDir(used), frontendDir(used)])
    expect(await xenstore.read(`${end}/state`)).toBe("4");
});

test.each([
  ["none.img", /cannot open .*none\.img/],
  [".", /neither a file nor a block device/],
  ["../relative", /not an absolute path|cannot open/],
])(
  "target %s: the reason stands where libxl prints it from, and closing is answered",
  async (name, reason) => {
    const at = address(1);
    await startWatch();
    await attach(at, name.startsWith("..") ? name : join(dir, name));
    await until(at, "hotplug-status", "error");
    await until(at, "state", "2");
    expect(await xenstore.read(`${backendDir(at)}/hotplug-error`)).toMatch(reason);
    await closeDevice(xenstore, at);
    await until(at, "state", "6");
    await destroyDevice(xenstore, at);
    await attach(at, join(dir, "a.img"));
    await until(at, "hotplug-status", "connected");
  },
);

describe("a guest with a ring keeps its device", () => {
  const at = address(1);
  let guest: HandmadeGuest;
  beforeEach(async () => {
    await attach(at, join(dir, "a.img"));
    await startWatch();
    await until(at, "hotplug-status", "connected");
    guest = await guestOf(at);
    await guest.connect();
  });

  async function expectUntouched(): Promise<void> {
    const keys = ["state", "hotplug-status", "online"].map((key) =>
      xenstore.tryRead(`${backendDir(at)}/${key}`),
    );
    expect(await Promise.all(keys)).toEqual(["4", "connected", "1"]);
  }

  test("from a second watch", async () => {
    const first = watch;
    const second = await startWatch();
    await Bun.sleep(100);
    await expectUntouched();
    expect(await guest.read(8)).toBeInstanceOf(Uint8Array);
    await first?.stop();
    const pending = guest.read(16); // whom the second serves when it tries again
    expect(await pending).toBeInstanceOf(Uint8Array);
    expect(second.deviceCount).toBe(1);
  });

  /** What lists and scripts show of it. */
  async function untilProblem(isIt: (problem: string | null) => boolean): Promise<void> {
    await xenstore.waitFor(`${errorDir(at)}/error`, isIt, { timeoutMs: 25_000 });
  }

  test("while its image is not there, which is said where its troubles are", async () => {
    await watch?.stop();
    renameSync(join(dir, "a.img"), join(dir, "away.img"));
    await startWatch();
    const pending = guest.read(8);
    await untilProblem((it) => it?.includes("a.img: ENOENT") === true);
    await expectUntouched();
    const [device] = await listDevices(xenstore, at.backend, []);
    expect(device?.problem).toContain("a.img: ENOENT");
    renameSync(join(dir, "away.img"), join(dir, "a.img"));
    expect(await pending).toBeInstanceOf(Uint8Array);
    await untilProblem((it) => it === null);
  });

  test("while its image is not there, until it is taken away; then nothing of it stays", async () => {
    await watch?.stop();
    rmSync(join(dir, "a.img"));
    await startWatch();
    await untilProblem((it) => it !== null);
    // As libxl does, which leaves the error node.
    for (const path of [backendDir(at), frontendDir(at)]) await xenstore.rm(path);
    await untilProblem((it) => it === null);
    expect(await xenstore.exists(errorDir(at))).toBe(false);
  });

  test.each([5, 6])(
    "and comes back, when it was at %i and its server died while it closed",
    async (state) => {
      await watch?.stop();
      // What the server has said as its last word.
      await xenstore.write(`${backendDir(at)}/state`, String(state));
      await guest.setState(6);
      await startWatch();
      await until(at, "state", "6");
      await guest.setState(1);
      await guest.connect();
      expect(await guest.read(8)).toBeInstanceOf(Uint8Array);
    },
  );

  test("when a server has offered it, and it was about to connect while its image was not there", async () => {
    await guest.setState(6);
    await until(at, "state", "6");
    await guest.setState(1);
    await until(at, "state", "2");
    await watch?.stop();
    await guest.offerRing();
    renameSync(join(dir, "a.img"), join(dir, "away.img"));
    await startWatch();
    await untilProblem((it) => it?.includes("a.img: ENOENT") === true);
    expect(await xenstore.tryRead(`${backendDir(at)}/hotplug-status`)).toBe("connected");
    renameSync(join(dir, "away.img"), join(dir, "a.img"));
    await until(at, "state", "4");
    expect(await guest.read(8)).toBeInstanceOf(Uint8Array);
  });

  test("while another file has its image's name, and gets it back grown", async () => {
    await watch?.stop();
    renameSync(join(dir, "a.img"), join(dir, "away.img"));
    writeFileSync(join(dir, "a.img"), new Uint8Array(1 << 20));
    const identity = await xenstore.read(`${backendDir(at)}/xentool-raw`);
    const refused = Promise.withResolvers<void>();
    configureLogging(0);
    const stderr = spyOn(process.stderr, "write").mockImplementation((text) => {
      if (String(text).includes("is in use with another image than")) refused.resolve();
      return true;
    });
    await startWatch();
    await refused.promise;
    stderr.mockRestore();
    await expectUntouched();
    expect(await xenstore.read(`${backendDir(at)}/xentool-raw`)).toBe(identity);
    const pending = guest.read(8);
    truncateSync(join(dir, "away.img"), 1 << 21);
    renameSync(join(dir, "away.img"), join(dir, "a.img"));
    expect(await pending).toEqual(new Uint8Array(pattern(1 << 20).slice(4096, 8192)));
  });

  test.each(["4", "5"])("until it lets go, asked to before a watch begins, at %s", async (state) => {
    await watch?.stop();
    await closeDevice(xenstore, at);
    await guest.setState(state);
    await startWatch();
    expect(await guest.read(8)).toBeInstanceOf(Uint8Array);
    await until(at, "state", "5");
    await guest.setState(6);
    await until(at, "state", "6");
  });
});

test("an image that another device writes is refused, at once because that one keeps it", async () => {
  configureLogging(0);
  let said = "";
  const stderr = spyOn(process.stderr, "write").mockImplementation((text) => {
    said += String(text);
    return true;
  });
  await startWatch();
  await attach(address(1), join(dir, "a.img"));
  await until(address(1), "hotplug-status", "connected");
  await (await guestOf(address(1))).connect();
  await attach(address(2), join(dir, "a.img"));
  await until(address(2), "hotplug-status", "error");
  stderr.mockRestore();
  expect(await xenstore.read(`${backendDir(address(2))}/hotplug-error`)).toContain("in use");
  expect(said).not.toContain("it is tried again");
});

test("an image whose disk is just being detached is waited for", async () => {
  await startWatch();
  const [one, two] = [address(1), address(2)];
  await attach(one, join(dir, "a.img"));
  await until(one, "hotplug-status", "connected");
  const guest = await guestOf(one);
  await guest.connect();
  await closeDevice(xenstore, one);
  await attach(two, join(dir, "a.img"));
  await guest.untilBackend(5);
  expect(await xenstore.tryRead(`${backendDir(two)}/state`)).toBe("1");
  await guest.setState(6);
  await until(two, "hotplug-status", "connected");
});

test("a guest that is being migrated has its disk at both ends until the source lets go", async () => {
  await startWatch();
  const [source, destination] = [address(1), address(2)];
  await attach(source, join(dir, "a.img"));
  await until(source, "hotplug-status", "connected");
  const before = await guestOf(source);
  await before.connect();
  // As libxl goes about it: docs/xen-hosts.md.
  await xenstore.write("/local/domain/2/name", "g--incoming");
  await attach(destination, join(dir, "a.img"));
  await until(destination, "hotplug-status", "connected");
  await until(destination, "state", "2");
  await xenstore.write("/local/domain/2/name", "g");
  const after = await guestOf(destination);
  const connected = after.connect();
  expect(await before.read(8)).toBeInstanceOf(Uint8Array);
  expect(await xenstore.read(`${backendDir(destination)}/state`)).toBe("2");
  await before.setState(6);
  await destroyDevice(xenstore, source);
  await connected;
  expect(await after.read(8)).toBeInstanceOf(Uint8Array);
});

test("disks whose server says nothing keep no other one waiting, wherever they are first seen", async () => {
  const [early, late, other] = [address(1), address(1, 51744), address(2)];
  const socket = join(dir, "silent.sock");
  let asked = 0;
  using _ = Bun.listen({ unix: socket, socket: { open: () => void asked++, data() {} } });
  await attach(early, `nbd+unix:///a?socket=${socket}`);
  await startWatch();
  await attach(late, `nbd+unix:///b?socket=${socket}`);
  while (asked < 2) await Bun.sleep(5);
  await attach(other, join(dir, "a.img"));
  await until(other, "hotplug-status", "connected");
  // They have not even been refused by then.
  for (const at of [early, late]) expect(await xenstore.read(`${backendDir(at)}/state`)).toBe("1");
  // The toolstack gives one up: it is answered as soon as it is known that it cannot be served.
  await closeDevice(xenstore, late);
  await until(late, "state", "6");
  expect(asked).toBe(2);
});

test("an NBD export that is read-only: what xl's disk line must say", async () => {
  await using server = await nbdkit([], () => ["memory", "1M"], "--readonly");
  const at = address(1);
  await startWatch();
  await attach(at, server.uri);
  await until(at, "hotplug-status", "error");
  const reason = await xenstore.read(`${backendDir(at)}/hotplug-error`);
  expect(reason).toContain(`${server.uri} is read-only; access=r serves it`);
});

describe("an image that looks like another format", () => {
  const at = address(1);
  const qcow2 = (name: string): void => {
    const bytes = Buffer.from(readFileSync(join(dir, name)));
    bytes.write("QFI\xfb", 0, "latin1");
    writeFileSync(join(dir, name), bytes);
  };

  test.each(["", "aio:", "file:", "w!:"])(
    "is refused as target=%s…: libxl says raw of each disk with a script",
    async (word) => {
      qcow2("a.img");
      await startWatch();
      await attach(at, `${word}${join(dir, "a.img")}`);
      await until(at, "hotplug-status", "error");
      const reason = await xenstore.read(`${backendDir(at)}/hotplug-error`);
      expect(reason).toMatch(/looks like a qcow2 image, .*target=raw:PATH serves its bytes as they are/);
    },
  );

  test.each(["raw:", "w!:raw:", "raw:w!:"])("is served as target=%s…", async (word) => {
    qcow2("a.img");
    await startWatch();
    await attach(at, `${word}${join(dir, "a.img")}`);
    await until(at, "hotplug-status", "connected");
  });

  test("stays the disk of the guest that made it look so: over a restart, and over a reboot", async () => {
    await attach(at, join(dir, "a.img"));
    await startWatch();
    const guest = await guestOf(at);
    await guest.connect();
    await watch?.stop();
    qcow2("a.img");
    const pending = guest.read(8);
    await startWatch();
    expect(await pending).toBeInstanceOf(Uint8Array);
    // Nobody serves it while the guest starts over: it has no ring then.
    await watch?.stop();
    await guest.setState(6);
    await startWatch();
    await until(at, "state", "6");
    await guest.setState(1);
    await until(at, "state", "2");
    // And in a domain of its own, as xl reboots it.
    await destroyDevice(xenstore, at);
    await attach(address(2), join(dir, "a.img"));
    await until(address(2), "hotplug-status", "connected");
  });
});

test.each([
  ["w", true],
  ["r", false],
])(
  "a device that another backend shows to a guest with mode %s, to be read by ours: refused %p",
  async (mode, isRefused) => {
    const devices = new HostDevices();
    try {
      const loop = devices.loop(join(dir, "a.img"));
      const [others, at] = [address(2), address(1)];
      await attach(others, loop, "block");
      await xenstore.write(`${backendDir(others)}/mode`, mode);
      await xenstore.write(
        `${backendDir(others)}/physical-device`,
        spawnSync("stat", ["-c", "%t:%T", loop], { encoding: "utf8" }).stdout.trim(),
      );
      await startWatch();
      await createDevice(xenstore, { address: at, readOnly: true, deviceType: "disk", params: loop });
      await xenstore.rm(`${backendDir(at)}/hotplug-status`);
      await xenstore.write(`${backendDir(at)}/script`, "/etc/xen/scripts/block-xentool");
      await until(at, "hotplug-status", isRefused ? "error" : "connected");
      if (isRefused)
        expect(await xenstore.read(`${backendDir(at)}/hotplug-error`)).toBe(
          `${loop} is in use: it is xvdb of domain 2 (vbd)`,
        );
      await watch?.stop();
    } finally {
      devices.remove();
    }
  },
);

test("detach: closed when the guest lets go, and gone from the daemon's list", async () => {
  const at = address(1);
  await attach(at, join(dir, "a.img"));
  await startWatch();
  const guest = await guestOf(at);
  await guest.connect();
  await closeDevice(xenstore, at);
  await guest.untilBackend(5);
  await guest.setState(6);
  await until(at, "state", "6");
  await destroyDevice(xenstore, at);
  await untilDevices(0);
});

test("another daemon goes on with the guests of the first", async () => {
  const at = address(1);
  await attach(at, join(dir, "a.img"));
  const first = await startWatch();
  const guest = await guestOf(at);
  await guest.connect();
  await first.stop();
  const pending = guest.read(16);
  await startWatch();
  expect(
    Buffer.from((await pending) as Uint8Array).equals(Buffer.from(pattern(1 << 20)).subarray(8192, 12288)),
  ).toBe(true);
});

test("a driver domain serves whatever script, and removes the directory that nobody else removes", async () => {
  const at = { ...address(2), backend: toDomid(1) };
  await createDevice(xenstore, {
    address: at,
    readOnly: false,
    deviceType: "disk",
    params: join(dir, "a.img"),
  });
  const dom1 = host.platform(1);
  const store1 = await Xenstore.connect(dom1);
  const { deviceType: _, ...offer } = DEFAULT_OFFER;
  const daemon = await BackendWatch.start(
    dom1,
    store1,
    {
      kind: "vbd",
      offer,
      direct: false,
      anyScript: true,
      grantMode: "copy",
      engine: "uring",
      filters: [],
      statsDir: join(dir, "stats"),
      verbosity: 0,
    },
    spawnWorker,
  );
  const guest = await guestOf(at);
  await guest.connect();
  expect(typeof (await guest.read(8))).toBe("object");
  await closeDevice(xenstore, at);
  await guest.setState(6);
  await xenstore.waitFor(`${backendDir(at)}/state`, (it) => it === null, { timeoutMs: 10_000 });
  await daemon.stop();
  store1.close();
  dom1.close();
});
