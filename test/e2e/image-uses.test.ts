// An image that this host uses for something else is not served to a guest: loop devices, mounts, swap, partitions,
// and what is read-only. With real devices of this machine, so root is needed.
import { afterEach, beforeEach, describe, expect, test } from "bun:test";
import { spawnSync } from "node:child_process";
import { chmodSync, mkdirSync, truncateSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { closeImage, openImage } from "../../src/block/image.ts";
import { SimHost } from "../../src/sim/host.ts";
import { Xenstore } from "../../src/xenstore/client.ts";
import { executable, runXentool, spawnXentool } from "./executable.ts";
import { readUntil, type Finished } from "../support/process.ts";
import { HostDevices, run } from "./host-devices.ts";
import { removeDirectory, temporaryDirectory } from "../support/temporary.ts";

const IMAGE_BYTES = 4 << 20;

let dir: string;
let file: string;
let host: SimHost;
let env: Record<string, string>;
let devices: HostDevices;
const servers: ReturnType<typeof spawnXentool>[] = [];

beforeEach(async () => {
  dir = temporaryDirectory();
  file = join(dir, "disk.img");
  writeFileSync(file, "");
  truncateSync(file, IMAGE_BYTES);
  host = await SimHost.start();
  env = { XENTOOL_SIM: host.dir };
  devices = new HostDevices();
});

afterEach(async () => {
  for (const server of servers) server.kill("SIGTERM");
  const statuses = await Promise.all(servers.splice(0).map((server) => server.exited));
  devices.remove();
  const left = await host.settle();
  await host.stop();
  removeDirectory(dir);
  expect(left).toEqual([]);
  expect(statuses).toEqual(statuses.map(() => 143));
});

function serving(path: string, mode: string): string[] {
  const vdev = `xvd${String.fromCharCode("b".charCodeAt(0) + servers.length)}`;
  return ["blkback", "serve", path, "--domid", "1", "--vdev", vdev, "--mode", mode];
}

/** Serves the image until the test ends. */
async function serve(path: string, mode = "w"): Promise<void> {
  const server = spawnXentool(serving(path, mode), { env });
  servers.push(server);
  await readUntil(server.stderr, "offering");
}

async function expectRefused(path: string, mode: string, why: string): Promise<void> {
  const outcome: Finished = await runXentool(serving(path, mode), { env });
  expect(outcome).toEqual({ status: 3, stdout: "", stderr: `xentool: ${path} ${why}\n` });
}

const SHARES = "--mode w! shares it anyway";

describe("a file", () => {
  test("under a loop device is refused; w! insists", async () => {
    const loop = devices.loop(file);
    for (const mode of ["w", "r"])
      await expectRefused(file, mode, `is in use: ${loop} lies over it; ${SHARES}`);
    await serve(file, "w!");
  });

  test("under a loop device that is mounted: it is said where", async () => {
    run("mkfs.ext4", "-q", file);
    const loop = devices.loop(file);
    devices.mount(loop, join(dir, "a mount"));
    const why = `is in use: ${loop} lies over it (mounted at ${join(dir, "a mount")}); ${SHARES}`;
    for (const mode of ["w", "r"]) await expectRefused(file, mode, why);
  });

  test("under a read-only loop device can be read, but not written", async () => {
    const loop = devices.loop(file, "--read-only");
    await expectRefused(file, "w", `is in use: ${loop} lies over it; ${SHARES}`);
    await serve(file, "r");
    await serve(file, "r");
  });

  test("on a file system that is mounted read-only is refused for writing", async () => {
    devices.mount(dir, join(dir, "view"), "--bind");
    run("mount", "-o", "remount,ro,bind", join(dir, "view"));
    const path = join(dir, "view", "disk.img");
    await expectRefused(path, "w", "is on a read-only file system; --mode r serves it");
    await serve(path, "r");
  });
});

describe("a loop device over a file that may not be looked at", () => {
  test("does not keep a plain user from serving another image", async () => {
    const hidden = join(dir, "hidden");
    mkdirSync(hidden);
    writeFileSync(join(hidden, "other.img"), new Uint8Array(65_536));
    devices.loop(join(hidden, "other.img"));
    chmodSync(hidden, 0);
    // Without capabilities, also when the tests run as root: modes count.
    const asUser = ["setpriv", "--inh-caps=-all", "--bounding-set=-all"];
    const server = Bun.spawn([...asUser, executable, ...serving(file, "w")], {
      env: { PATH: process.env["PATH"] ?? "", ...env },
      stdio: ["ignore", "pipe", "pipe"],
    });
    servers.push(server);
    await readUntil(server.stderr, "offering");
  });
});

describe("a block device", () => {
  test("that is mounted is refused, and a served one cannot be mounted", async () => {
    run("mkfs.ext4", "-q", file);
    const loop = devices.loop(file);
    const where = join(dir, "mnt");
    devices.mount(loop, where);
    for (const mode of ["w", "r"])
      await expectRefused(loop, mode, `is in use: mounted at ${where}; ${SHARES}`);
    run("umount", where);
    await serve(loop);
    expect(spawnSync("mount", [loop, where]).status).not.toBe(0);
    for (const server of servers.splice(0)) {
      server.kill("SIGTERM");
      expect(await server.exited).toBe(143);
    }
    run("mount", loop, where);
  });

  test("that is mounted read-only can be read, but not written", async () => {
    run("mkfs.ext4", "-q", file);
    const loop = devices.loop(file);
    const where = join(dir, "mnt");
    devices.mount(loop, where, "-o", "ro,noload");
    await expectRefused(loop, "w", `is in use: mounted at ${where}; ${SHARES}`);
    await serve(loop, "r");
    await serve(loop, "r");
    await serve(loop, "w!");
  });

  test("that this host swaps to is refused", async () => {
    const loop = devices.loop(file);
    devices.swapOn(loop);
    await expectRefused(loop, "w", `is in use: swap space of this host; ${SHARES}`);
  });

  test("that shows a file which is used otherwise is refused", async () => {
    const [one, two] = [devices.loop(file), devices.loop(file)];
    const why = `is in use: ${file}, which it shows, is used: ${two} lies over it; ${SHARES}`;
    await expectRefused(one, "w", why);
  });

  test("that shows a file which is served is refused, with the server's name", async () => {
    await serve(file);
    const loop = devices.loop(file);
    const server = `process ${servers[0]?.pid}, xentool`;
    const { status, stderr } = await runXentool(serving(loop, "w"), { env });
    expect([status, stderr]).toEqual([3, `xentool: ${file} is in use: ${server}; ${SHARES}\n`]);
  });

  test("is served to several guests that only read it, and not to one more that writes it", async () => {
    const loop = devices.loop(file);
    await serve(loop, "r");
    await serve(loop, "r");
    const readers = servers.map(({ pid }) => `process ${pid}, xentool`);
    const { status, stderr } = await runXentool(serving(loop, "w"), { env });
    expect(status).toBe(3);
    for (const reader of readers) expect(stderr).toContain(reader);
  });

  test("that udev looks at, which holds a shared lock meanwhile, is waited for", async () => {
    const loop = devices.loop(file);
    const udev = Bun.spawn(["flock", "--shared", loop, "sh", "-c", "echo locked; cat"], {
      stdio: ["pipe", "pipe", "inherit"],
    });
    await readUntil(udev.stdout, "locked");
    const server = spawnXentool(["-v", ...serving(loop, "w")], { env });
    servers.push(server);
    await readUntil(server.stderr, `waiting: ${loop} is in use: process`);
    await udev.stdin.end();
    await readUntil(server.stderr, "offering");
    await udev.exited;
  });

  test.each(["blockdev --setro", "losetup --read-only"])(
    "made read-only by %s is refused for writing",
    async (how) => {
      const loop = devices.loop(file, ...(how.startsWith("losetup") ? ["--read-only"] : []));
      if (how.startsWith("blockdev")) run("blockdev", "--setro", loop);
      for (const mode of ["w", "w!"])
        await expectRefused(loop, mode, "is a read-only device; --mode r serves it");
      await serve(loop, "r");
      if (how.startsWith("blockdev")) run("blockdev", "--setrw", loop);
    },
  );

  test("that shows another file than the one that was served here is looked at anew", () => {
    const qcow2 = join(dir, "q.img");
    run("qemu-img", "create", "-q", "-f", "qcow2", qcow2, "4M");
    const how = { readOnly: false, direct: false, sectorSizeBytes: 512 } as const;
    const loop = devices.loop(file);
    closeImage(openImage(loop, how));
    writeFileSync(loop, "QFI\xfb", { encoding: "latin1", flag: "r+" });
    closeImage(openImage(loop, how));
    run("losetup", "--detach", loop);
    run("losetup", loop, qcow2);
    expect(() => openImage(loop, how)).toThrow("looks like a qcow2 image");
  });

  test("is named to Xen's own tools as they name it", async () => {
    const loop = devices.loop(file);
    await serve(loop);
    using dom0 = new DisposableStack();
    const platform = dom0.adopt(host.platform(0), (it) => it.close());
    const xenstore = dom0.adopt(await Xenstore.connect(platform), (it) => it.close());
    const key = "/local/domain/0/backend/qdisk/1/51728/physical-device";
    expect(await xenstore.read(key)).toBe(run("stat", "-L", "-c", "%t:%T", loop));
  });
});

test("a disk that its guest made look like another format is served again after its server was killed", async () => {
  await serve(file);
  const killed = servers.pop();
  killed?.kill("SIGKILL");
  await killed?.exited;
  writeFileSync(file, "QFI\xfb", { encoding: "latin1", flag: "r+" });
  const fresh = await runXentool([...serving(file, "w").slice(0, 5), "--vdev", "xvdz"], { env });
  expect([fresh.status, fresh.stderr]).toEqual([2, expect.stringContaining("looks like a qcow2 image")]);
  await serve(file);
});
