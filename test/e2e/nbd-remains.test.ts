// What a disk on an NBD server leaves, and for how long, when its guest is gone: nothing waits for ever for a server
// that is silent, and no log of writes, which is 32 MiB of memory, outlives the guest.
import { afterEach, beforeEach, expect, test } from "bun:test";
import { existsSync, readdirSync, rmSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { backendDir } from "../../src/blkback/address.ts";
import { destroyDevice } from "../../src/blkback/toolstack.ts";
import type { SimPlatform } from "../../src/platform/sim.ts";
import { Xenstore } from "../../src/xenstore/client.ts";
import { HandmadeGuest } from "../sim/blk-guest.ts";
import { diskAddress } from "../sim/disk-world.ts";
import { readUntil, type Child } from "../support/process.ts";
import { DiskHost } from "./disk-host.ts";
import { spawnXentool } from "./executable.ts";
import { ForgetfulServer } from "./forgetful-server.ts";

const CLOSED = 6;
const DEVICE = diskAddress(1);
const GUEST = "/local/domain/1";

let disks: DiskHost;
let server: ForgetfulServer;
let dom0: SimPlatform;
let xenstore: Xenstore;
const children: Child[] = [];

beforeEach(async () => {
  disks = await DiskHost.start({ "a.img": new Uint8Array(65_536) });
  server = new ForgetfulServer({ socket: join(disks.dir, "nbd.sock"), image: join(disks.dir, "a.img") });
  await server.start();
  dom0 = disks.host.platform(0);
  xenstore = await Xenstore.connect(dom0);
});
afterEach(async () => {
  for (const child of children) child.kill("SIGTERM");
  await Promise.all(children.splice(0).map((child) => child.exited));
  await server.kill();
  xenstore.close();
  dom0.close();
  const files = readdirSync(stateDir());
  await disks.close();
  expect(files).toEqual([]);
});

const stateDir = (): string => join(disks.host.dir, "blkback");

function start(...args: string[]): Child {
  const child = spawnXentool(["-v", "blkback", ...args], { env: disks.env });
  children.push(child);
  return child;
}

async function serve(): Promise<Child> {
  const child = start("serve", server.uri, "--domid", "1", "--vdev", "xvdb");
  await readUntil(child.stderr, "offering");
  return child;
}

async function connect(): Promise<HandmadeGuest> {
  const guest = await HandmadeGuest.start(disks.host, DEVICE);
  await guest.connect();
  expect(await guest.write(8, 7)).toBe(0);
  return guest;
}

/** Its server and then the guest are killed, and the toolstack removes what it knows of the guest. */
async function leaveLog(): Promise<void> {
  const serving = await serve();
  const guest = await connect();
  serving.kill("SIGKILL");
  await serving.exited;
  guest.close();
  await xenstore.rm(GUEST);
  expect(existsSync(join(stateDir(), "1-51728.writes"))).toBe(true);
}

test("the next serve of any disk removes the log of a guest that died while nobody served it", async () => {
  await leaveLog();
  writeFileSync(join(stateDir(), "2-51712.writes"), "");
  await xenstore.write("/local/domain/2/name", "it lives");
  const image = join(disks.dir, "a.img");
  const next = start("serve", image, "--domid", "2", "--vdev", "xvdc");
  await readUntil(next.stderr, "offering");
  expect(readdirSync(stateDir()).filter((name) => name.endsWith(".writes"))).toEqual(["2-51712.writes"]);
  expect(await xenstore.exists(backendDir(DEVICE))).toBe(false);
  rmSync(join(stateDir(), "2-51712.writes"));
});

test("watch removes it, too, when it starts, and when a guest goes", async () => {
  await leaveLog();
  const watch = start("watch", "--kind", "vbd");
  await readUntil(watch.stderr, "serving the disks");
  expect(readdirSync(stateDir()).filter((name) => name.startsWith("1-"))).toEqual([]);
});

test("a silent server is not waited for when the device is gone, and what may be lost is said", async () => {
  const serving = await serve();
  const guest = await connect();
  server.hang();
  await guest.setState(CLOSED);
  await destroyDevice(xenstore, DEVICE);
  await readUntil(serving.stderr, "no longer waited for: nothing came from it for 5000 ms");
  await readUntil(serving.stderr, "may be lost");
  await serving.exited;
  guest.close();
});
