// A disk whose bytes are behind an NBD server, unmodified, served by the executable to a guest by hand.
import { afterEach, beforeEach, expect, test } from "bun:test";
import { existsSync, readFileSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { createDevice } from "../../src/blkback/toolstack.ts";
import { backendDir, DEFAULT_KIND } from "../../src/blkback/address.ts";
import { toDomid } from "../../src/core/types.ts";
import { parseVdev } from "../../src/protocol/blkif.ts";
import { SimHost } from "../../src/sim/host.ts";
import { Xenstore } from "../../src/xenstore/client.ts";
import { HandmadeGuest } from "../sim/blk-guest.ts";
import { runXentool, spawnXentool } from "./executable.ts";
import { readUntil } from "../support/process.ts";
import { removeDirectory, temporaryDirectory } from "../support/temporary.ts";

/** BLKIF_RSP_ERROR. */
const FAILED = -1;
const CLOSING = 5;
const CLOSED = 6;
const DEVICE = {
  backend: toDomid(0),
  frontend: toDomid(1),
  kind: DEFAULT_KIND,
  devid: Number(parseVdev("xvdb")),
};
const image = Uint8Array.from({ length: 65_536 }, (_, at) => (at * 5 + (at >> 9)) & 0xff);

let dir: string;
let host: SimHost;
let env: Record<string, string>;
let server: Bun.Subprocess;
let uri: string;
let disk: string;

beforeEach(async () => {
  dir = temporaryDirectory();
  host = await SimHost.start();
  env = { XENTOOL_SIM: host.dir };
  disk = join(dir, "disk.img");
  const [socket, pidFile] = [join(dir, "nbd.sock"), join(dir, "pid")];
  writeFileSync(disk, image);
  const args = ["--format=raw", "--persistent", "--shared=8", `--socket=${socket}`, `--pid-file=${pidFile}`];
  server = Bun.spawn(["qemu-nbd", ...args, disk], { stdio: ["ignore", "inherit", "ignore"] });
  // It writes its number once it listens.
  while (!existsSync(pidFile) && server.exitCode === null) await Bun.sleep(10);
  uri = `nbd+unix:///?socket=${socket}`;
});
afterEach(async () => {
  server.kill("SIGKILL");
  await server.exited;
  const left = await host.settle();
  await host.stop();
  removeDirectory(dir);
  expect(left).toEqual([]);
});

test("a guest reads the export's bytes; when the server dies, requests fail", async () => {
  const serving = spawnXentool(["-v", "blkback", "serve", uri, "--domid", "1", "--vdev", "xvdb"], { env });
  await readUntil(serving.stderr, "offering");
  const guest = await HandmadeGuest.start(host, DEVICE);
  await guest.connect();
  expect(await guest.write(8, 7)).toBe(0);
  expect(await guest.flush()).toBe(0);
  expect(readFileSync(disk)[8 * 512]).toBe(7);
  expect(await guest.read(40)).toEqual(image.slice(40 * 512, 40 * 512 + 4096));
  server.kill("SIGKILL");
  await readUntil(serving.stderr, "the NBD server is lost");
  expect(await guest.read(8)).toBe(FAILED);
  expect(await guest.write(8, 1)).toBe(FAILED);
  expect(await guest.flush()).toBe(FAILED);
  serving.kill("SIGTERM");
  await guest.untilBackend(CLOSING);
  await guest.setState(CLOSED);
  // The failed flush makes it a failure, whoever asked for the end.
  expect(await serving.exited).toBe(5);
  guest.close();
});

test("a server killed together with xentool may have forgotten writes: the next one fails them", async () => {
  const args = ["-v", "blkback", "serve", uri, "--domid", "1", "--vdev", "xvdb"];
  const first = spawnXentool(args, { env });
  await readUntil(first.stderr, "offering");
  const guest = await HandmadeGuest.start(host, DEVICE);
  await guest.connect();
  expect(await guest.write(8, 7)).toBe(0);
  first.kill("SIGKILL");
  await first.exited;
  const next = spawnXentool(args, { env });
  await readUntil(next.stderr, "may be lost");
  expect(await guest.write(16, 7)).toBe(FAILED);
  expect(await guest.flush()).toBe(FAILED);
  next.kill("SIGTERM");
  await guest.untilBackend(CLOSING);
  await guest.setState(CLOSED);
  expect(await next.exited).toBe(5);
  guest.close();
  await runXentool(["blkback", "destroy", "--domid", "1", "--vdev", "xvdb"], { env });
});

test("watch serves what xl's target= names", async () => {
  const dom0 = host.platform(0);
  const xenstore = await Xenstore.connect(dom0);
  const watch = spawnXentool(["-v", "blkback", "watch", "--kind", DEFAULT_KIND], { env });
  await createDevice(xenstore, { address: DEVICE, readOnly: false, deviceType: "disk", params: uri });
  await xenstore.rm(`${backendDir(DEVICE)}/hotplug-status`);
  await xenstore.write(`${backendDir(DEVICE)}/script`, "/etc/xen/scripts/block-xentool");
  await readUntil(watch.stderr, "serving the disks");
  const guest = await HandmadeGuest.start(host, DEVICE);
  await guest.connect();
  expect(await guest.read(40)).toEqual(image.slice(40 * 512, 40 * 512 + 4096));
  await guest.setState(CLOSED);
  watch.kill("SIGTERM");
  await watch.exited;
  guest.close();
  await runXentool(["blkback", "destroy", "--domid", "1", "--vdev", "xvdb"], { env });
  xenstore.close();
  dom0.close();
});
