// What happens to a disk's image while it is served: no room left, removed, cut short. The guest gets error
// responses for what cannot be done, and the device goes on.
import { expect, test } from "bun:test";
import { statSync, truncateSync, unlinkSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { DEFAULT_KIND } from "../../src/blkback/address.ts";
import { toDomid } from "../../src/core/types.ts";
import { SimHost } from "../../src/sim/host.ts";
import { HandmadeGuest } from "../sim/blk-guest.ts";
import { pattern } from "../sim/blk-harness.ts";
import { DiskHost } from "./disk-host.ts";
import { executable, runXentool, spawnXentool } from "./executable.ts";
import { readUntil } from "../support/process.ts";
import { removeDirectory, temporaryDirectory } from "../support/temporary.ts";

const ERROR = -1;
const DEVICE = { backend: toDomid(0), frontend: toDomid(1), kind: DEFAULT_KIND, devid: 51728 };

/** Serves what `start` starts to a guest, runs `body`, and ends it all the polite way. */
async function withGuest(
  start: (host: SimHost) => ReturnType<typeof spawnXentool>,
  body: (guest: HandmadeGuest) => Promise<void>,
): Promise<void> {
  const host = await SimHost.start();
  const server = start(host);
  try {
    await readUntil(server.stderr, "offering");
    const guest = await HandmadeGuest.start(host, DEVICE);
    await guest.connect();
    await body(guest);
    server.kill("SIGTERM");
    await guest.untilBackend(5);
    await guest.setState(6);
    expect(await server.exited).toBe(143);
    guest.close();
    expect(await host.settle()).toEqual([]);
  } finally {
    server.kill("SIGKILL");
    await host.stop();
  }
}

test("a full file system: writes that need room fail, others go on", async () => {
  const script = `d=$(mktemp -d) && mount -t tmpfs -o size=64k none $d && truncate -s 1M $d/disk.img &&
    exec "$0" blkback serve $d/disk.img --domid 1 --vdev xvdb`;
  const asRoot = process.getuid?.() === 0 ? [] : ["--user", "--map-root-user"];
  const spawn = (host: SimHost): ReturnType<typeof spawnXentool> =>
    Bun.spawn(["unshare", ...asRoot, "--mount", "sh", "-c", script, executable], {
      env: { PATH: process.env["PATH"] ?? "", XENTOOL_SIM: host.dir },
      stdin: "ignore",
      stdout: "pipe",
      stderr: "pipe",
    });
  await withGuest(spawn, async (guest) => {
    const statuses: number[] = [];
    for (let page = 0; page < 32; page++) statuses.push(await guest.write(page * 8, page + 1));
    const written = statuses.filter((status) => status === 0).length;
    expect(written).toBeGreaterThanOrEqual(8);
    expect(written).toBeLessThan(32);
    expect(statuses.slice(written)).toEqual(statuses.slice(written).map(() => ERROR));
    expect(((await guest.read(8)) as Uint8Array).every((byte) => byte === 2)).toBe(true);
    expect(await guest.write(8, 77)).toBe(0);
    expect(((await guest.read(8)) as Uint8Array).every((byte) => byte === 77)).toBe(true);
  });
});

test("close says who is late: a guest that does not let go, or a server that hangs", async () => {
  const ground = await DiskHost.start();
  const { env, host, dir: cwd } = ground;
  const device = ["--domid", "1", "--vdev", "xvdb"];
  const close = () => runXentool(["--timeout", "2", "blkback", "close", ...device], { env });
  const server = spawnXentool(["blkback", "serve", "a.img", ...device], { cwd, env });
  try {
    await readUntil(server.stderr, "offering");
    const guest = await HandmadeGuest.start(host, DEVICE);
    await guest.connect();
    expect(await close()).toMatchObject({ status: 6, stderr: expect.stringContaining("did not let go") });
    server.kill("SIGSTOP");
    await guest.setState(6);
    expect(await close()).toMatchObject({ status: 6, stderr: expect.stringContaining("gone or hangs") });
    server.kill("SIGCONT");
    expect(await server.exited).toBe(0);
    guest.close();
  } finally {
    server.kill("SIGKILL");
    await ground.close();
  }
});

test("an image that is removed, and one that is cut short", async () => {
  const dir = temporaryDirectory();
  const image = join(dir, "disk.img");
  writeFileSync(image, pattern(1 << 20));
  const args = ["blkback", "serve", image, "--domid", "1", "--vdev", "xvdb"];
  await withGuest(
    (host) => spawnXentool(args, { env: { XENTOOL_SIM: host.dir } }),
    async (guest) => {
      truncateSync(image, 8192);
      expect(await guest.read(64)).toBe(ERROR);
      expect(
        Buffer.from((await guest.read(8)) as Uint8Array).equals(Buffer.from(pattern(8192)).subarray(4096)),
      ).toBe(true);
      expect(await guest.write(64, 9)).toBe(0);
      expect(statSync(image).size).toBe(64 * 512 + 4096);
      expect(((await guest.read(64)) as Uint8Array).every((byte) => byte === 9)).toBe(true);
      expect(((await guest.read(32)) as Uint8Array).every((byte) => byte === 0)).toBe(true);
      expect(await guest.read(128)).toBe(ERROR);
      unlinkSync(image);
      expect(
        Buffer.from((await guest.read(0)) as Uint8Array).equals(Buffer.from(pattern(8192)).subarray(0, 4096)),
      ).toBe(true);
      expect(await guest.write(0, 5)).toBe(0);
    },
  );
  removeDirectory(dir);
});
