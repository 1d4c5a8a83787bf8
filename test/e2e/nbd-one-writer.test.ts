// An NBD export has one writer on this host, as an image that is a file has: whoever comes second, by whatever command,
// is refused and told why. A server that is killed keeps nobody out.
import { afterEach, beforeEach, expect, test } from "bun:test";
import { existsSync, readdirSync } from "node:fs";
import { join } from "node:path";
import { backendDir, DEFAULT_KIND } from "../../src/blkback/address.ts";
import { createDevice, destroyDevice } from "../../src/blkback/toolstack.ts";
import { XenbusState } from "../../src/protocol/xenbus.ts";
import { Xenstore } from "../../src/xenstore/client.ts";
import { HandmadeGuest } from "../sim/blk-guest.ts";
import { diskAddress } from "../sim/disk-world.ts";
import { nbdkit, type NbdServer } from "../support/nbd-servers.ts";
import { readUntil, type Child, type Finished } from "../support/process.ts";
import { DiskHost } from "./disk-host.ts";
import { runXentool, spawnXentool } from "./executable.ts";

let disks: DiskHost;
let server: NbdServer;
const children: Child[] = [];

beforeEach(async () => {
  disks = await DiskHost.start({});
  server = await nbdkit([], () => ["memory", "1M"]);
});
afterEach(async () => {
  for (const child of children) child.kill("SIGTERM");
  await Promise.all(children.splice(0).map((child) => child.exited));
  await server[Symbol.asyncDispose]();
  const files = readdirSync(join(disks.host.dir, "blkback"));
  await disks.close();
  expect(files).toEqual([]);
});

function args(image: string, vdev: string, more: readonly string[]): string[] {
  const device = ["--domid", "1", "--vdev", vdev];
  return ["blkback", "serve", image, ...device, ...more];
}

async function serve(image: string, vdev: string, ...more: string[]): Promise<Child> {
  const child = spawnXentool(["-v", ...args(image, vdev, more)], { env: disks.env });
  children.push(child);
  await readUntil(child.stderr, "offering");
  return child;
}

const refused = (image: string, ...more: string[]): Promise<Finished> =>
  runXentool(args(image, "xvde", more), { env: disks.env });

test("the second writer is refused, a reader beside it too; w! insists, and kill -9 makes room", async () => {
  const first = await serve(server.uri, "xvdb");
  for (const mode of ["w", "r"])
    expect(await refused(server.uri, "--mode", mode)).toMatchObject({
      status: 3,
      stderr: `xentool: ${server.uri} is in use: process ${first.pid}, xentool; --mode w! shares it anyway\n`,
    });
  const insisting = await serve(server.uri, "xvdc", "--mode", "w!");
  insisting.kill("SIGTERM");
  expect(await insisting.exited).toBe(143);
  first.kill("SIGKILL");
  await first.exited;
  await serve(server.uri, "xvdb");
});

test("there may be many readers", async () => {
  await serve(server.uri, "xvdb", "--mode", "r");
  await serve(server.uri, "xvdc", "--mode", "r");
  expect((await refused(server.uri)).stderr).toContain("is in use: process");
});

test("what watch serves is in use, too; and what others serve is refused by watch in xl's words", async () => {
  const dom0 = disks.host.platform(0);
  const xenstore = await Xenstore.connect(dom0);
  const device = diskAddress(1);
  const add = async (): Promise<void> => {
    await createDevice(xenstore, {
      address: device,
      readOnly: false,
      deviceType: "disk",
      params: server.uri,
    });
    await xenstore.rm(`${backendDir(device)}/hotplug-status`);
  };
  await add();
  const watch = spawnXentool(["-v", "blkback", "watch", "--kind", DEFAULT_KIND, "--any-script"], {
    env: disks.env,
  });
  children.push(watch);
  await readUntil(watch.stderr, "InitWait");
  expect((await refused(server.uri)).stderr).toContain(`${server.uri} is in use: process`);
  await destroyDevice(xenstore, device);
  // It waits until the disk is free.
  await serve(server.uri, "xvdc");
  await add();
  await readUntil(watch.stderr, "target=w!:PATH shares it anyway");
  await destroyDevice(xenstore, device);
  xenstore.close();
  dom0.close();
});

test("a handover takes the export along", async () => {
  const dom0 = disks.host.platform(0);
  const xenstore = await Xenstore.connect(dom0);
  const device = diskAddress(1);
  await createDevice(xenstore, { address: device, readOnly: false, deviceType: "disk", params: server.uri });
  const watching = ["-v", "blkback", "watch", "--kind", DEFAULT_KIND, "--any-script"];
  const watch = spawnXentool(watching, { env: disks.env });
  children.push(watch);
  const guest = await HandmadeGuest.start(disks.host, device);
  await guest.connect();
  expect(await guest.write(8, 7)).toBe(0);
  watch.kill("SIGUSR2");
  const said = await readUntil(watch.stderr, "takes over");
  const successor = Number(/process (\d+) takes over/.exec(said)?.[1]);
  expect(await watch.exited).toBe(0);
  expect(await guest.read(8)).toEqual(new Uint8Array(4096).fill(7));
  expect((await refused(server.uri)).stderr).toContain(`is in use: process ${successor}`);
  await guest.setState(XenbusState.Closed);
  // Whoever is stopped before it has seen the end of a device leaves what the next server would need.
  await guest.untilBackend(XenbusState.Closed);
  await destroyDevice(xenstore, device);
  guest.close();
  process.kill(successor, "SIGTERM");
  while (existsSync(`/proc/${successor}/exe`)) await Bun.sleep(5);
  xenstore.close();
  dom0.close();
});

test("the same command of --via for the same source is the same disk", async () => {
  const via = ["--via", "nbdkit --foreground memory $1"];
  await serve("1M", "xvdb", ...via);
  expect(await refused("1M", ...via)).toMatchObject({
    status: 3,
    stderr: expect.stringContaining("1M with this --via is in use: process"),
  });
  await serve("2M", "xvdc", ...via);
});
