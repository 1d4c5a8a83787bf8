// A disk served by the executable, from its own worker with its own copy of the C shim, to a guest by hand.
import { afterEach, beforeEach, expect, test } from "bun:test";
import { renameSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { DEFAULT_KIND } from "../../src/blkback/address.ts";
import type { SimHost } from "../../src/sim/host.ts";
import { HandmadeGuest } from "../sim/blk-guest.ts";
import { runXentool, spawnXentool } from "./executable.ts";
import { readUntil } from "../support/process.ts";
import { diskAddress } from "../sim/disk-world.ts";
import { DiskHost } from "./disk-host.ts";

const CLOSING = 5;
const CLOSED = 6;
const DEVICE = diskAddress(1);

const image = Uint8Array.from({ length: 65_536 }, (_, at) => (at * 5 + (at >> 9)) & 0xff);
let ground: DiskHost;
let dir: string;
let host: SimHost;
let env: DiskHost["env"];

beforeEach(async () => {
  ground = await DiskHost.start({ "a.img": image, "b.img": image });
  ({ dir, host, env } = ground);
});
afterEach(() => ground.close());

/** `xentool blkback serve` of one of the images, as xvdb of domain 1. */
function serving(name: string): string[] {
  return ["blkback", "serve", join(dir, name), "--domid", "1", "--vdev", "xvdb"];
}

test("what is done to a device is one document with --json", async () => {
  const device = ["--domid", "1", "--vdev", "xvdb", "--json"];
  for (const [action, done] of [
    ["create", "created"],
    ["destroy", "destroyed"],
  ] as const) {
    const { status, stdout } = await runXentool(["blkback", action, ...device], { env });
    expect(status).toBe(0);
    expect(JSON.parse(stdout)).toEqual({ domid: 1, vdev: "xvdb", kind: DEFAULT_KIND, done });
  }
  for (const [action, done] of [
    ["close", "closed"],
    ["force-close", "force-closed"],
  ] as const) {
    const server = spawnXentool(serving("a.img"), { env });
    await readUntil(server.stderr, "offering");
    const { status, stdout } = await runXentool(["blkback", action, ...device], { env });
    expect({ action, status }).toEqual({ action, status: 0 });
    expect(JSON.parse(stdout)).toEqual({ domid: 1, vdev: "xvdb", kind: DEFAULT_KIND, done });
    await server.exited;
  }
});

test("after kill -9 with a request in flight the next server answers it", async () => {
  const args = ["-v", ...serving("a.img")];
  const stuck = spawnXentool([...args, "--filter", "delay:ms=60000"], { env });
  await readUntil(stuck.stderr, "offering");
  const guest = await HandmadeGuest.start(host, DEVICE);
  await guest.connect();
  const answer = guest.read(40);
  await readUntil(stuck.stderr, "Connected");
  stuck.kill("SIGKILL");
  await stuck.exited;
  const next = spawnXentool(args, { env });
  expect(await answer).toEqual(image.slice(40 * 512, 40 * 512 + 4096));
  expect(await guest.read(8)).toEqual(image.slice(8 * 512, 8 * 512 + 4096));
  next.kill("SIGTERM");
  await guest.untilBackend(CLOSING);
  await guest.setState(CLOSED);
  expect(await next.exited).toBe(143);
  guest.close();
  await runXentool(["blkback", "destroy", "--domid", "1", "--vdev", "xvdb"], { env });
});

test("a second server of a disk is refused, and the guest and the first one do not notice", async () => {
  const server = spawnXentool(serving("a.img"), { env });
  await readUntil(server.stderr, "offering");
  const refused = { status: 3, stderr: "xentool: xvdb of domain 1 is served by another process\n" };
  expect(await runXentool(serving("b.img"), { env })).toMatchObject(refused);
  const guest = await HandmadeGuest.start(host, DEVICE);
  await guest.connect();
  expect(await runXentool(serving("b.img"), { env })).toMatchObject(refused);
  expect(await guest.read(8)).toEqual(image.slice(8 * 512, 8 * 512 + 4096));
  expect(await guest.backendKey("state")).toBe("4");
  server.kill("SIGKILL");
  await server.exited;
  // Nor does it become another disk, or another kind of one, under the guest when its server has died.
  const pending = guest.read(16);
  for (const [other, words] of [
    [serving("b.img"), "in use with the image"],
    [[...serving("a.img"), "--mode", "r"], "in use with info 0"],
    [[...serving("a.img"), "--sector-size", "4096"], "in use with sector-size 512"],
    [[...serving("a.img"), "--max-indirect-segments", "8"], "in use with feature-max-indirect-segments 256"],
  ] as const) {
    const { status, stderr } = await runXentool([...other], { env });
    expect([status, stderr]).toEqual([2, expect.stringContaining(words)]);
  }
  // Another file that has got the image's name is another disk, too.
  renameSync(join(dir, "a.img"), join(dir, "away.img"));
  writeFileSync(join(dir, "a.img"), image);
  const { status, stderr } = await runXentool(serving("a.img"), { env });
  expect([status, stderr]).toEqual([2, expect.stringContaining("in use with another image than")]);
  renameSync(join(dir, "away.img"), join(dir, "a.img"));
  const next = spawnXentool(serving("a.img"), { env });
  expect(await pending).toEqual(image.slice(16 * 512, 16 * 512 + 4096));
  await guest.setState(CLOSED);
  next.kill("SIGTERM");
  expect(await next.exited).toBe(143);
  guest.close();
});

test("the guest reads the image's bytes, and SIGTERM ends the server once the guest has let go", async () => {
  const server = spawnXentool(serving("a.img"), { env });
  await readUntil(server.stderr, "offering");
  const guest = await HandmadeGuest.start(host, DEVICE);
  await guest.connect();
  for (const sector of [0, 24, 120])
    expect(await guest.read(sector)).toEqual(image.slice(sector * 512, sector * 512 + 4096));
  server.kill("SIGTERM");
  await guest.untilBackend(CLOSING);
  await guest.setState(CLOSED);
  expect(await server.exited).toBe(143);
  guest.close();
  const list = await runXentool(["blkback", "list", "--json"], { env });
  expect(JSON.parse(list.stdout)).toEqual([]);
});
