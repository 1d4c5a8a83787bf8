// How a disk on an NBD server is served, as the command line and xl's target= say.
import { afterEach, beforeEach, expect, test } from "bun:test";
import { readdirSync } from "node:fs";
import { join } from "node:path";
import { createDevice } from "../../src/blkback/toolstack.ts";
import { backendDir, DEFAULT_KIND } from "../../src/blkback/address.ts";
import { parseVdev } from "../../src/protocol/blkif.ts";
import { SimHost } from "../../src/sim/host.ts";
import { Xenstore } from "../../src/xenstore/client.ts";
import { HandmadeGuest } from "../sim/blk-guest.ts";
import { diskAddress } from "../sim/disk-world.ts";
import { detach } from "./disk-host.ts";
import { nbdkit, type NbdServer } from "../support/nbd-servers.ts";
import { makeCertificates } from "../support/certificates.ts";
import { removeDirectory, temporaryDirectory } from "../support/temporary.ts";
import { readUntil } from "../support/process.ts";
import { runXentool, spawnXentool } from "./executable.ts";

const CLOSED = 6;
const DEVICE = diskAddress(1);
const AT = ["--domid", "1", "--vdev", "xvdb"];

let host: SimHost;
let env: Record<string, string>;
let server: NbdServer;

beforeEach(async () => {
  host = await SimHost.start();
  env = { XENTOOL_SIM: host.dir };
  server = await nbdkit(["log"], (dir) => ["file", join(dir, "disk.img"), `logfile=${join(dir, "log")}`]);
});
afterEach(async () => {
  await server[Symbol.asyncDispose]();
  const left = await host.settle();
  await host.stop();
  expect(left).toEqual([]);
});

/** The control side's connection, which asks for the export's size, is the first. */
function connections(): number {
  return (server.log.match(/ Connect export/g)?.length ?? 0) - 1;
}

async function writeAsGuest(): Promise<HandmadeGuest> {
  const guest = await HandmadeGuest.start(host, DEVICE);
  await guest.connect();
  for (let sector = 0; sector < 256; sector += 8) expect(await guest.write(sector, 7)).toBe(0);
  expect(await guest.flush()).toBe(0);
  return guest;
}

/** Of the disk, beside claims to exports. */
function left(): string[] {
  return readdirSync(join(host.dir, "blkback")).filter((name) => name.startsWith("1-"));
}

test("serve: --connections", async () => {
  const serving = spawnXentool(["-v", "blkback", "serve", server.uri, ...AT, "--connections", "2"], { env });
  await readUntil(serving.stderr, "offering");
  const guest = await writeAsGuest();
  expect(connections()).toBe(2);
  expect(await detach(serving, guest)).toBe(143);
});

test("watch: --connections", async () => {
  const dom0 = host.platform(0);
  const xenstore = await Xenstore.connect(dom0);
  const watch = spawnXentool(["-v", "blkback", "watch", "--kind", DEFAULT_KIND, "--connections", "16"], {
    env,
  });
  await createDevice(xenstore, { address: DEVICE, readOnly: false, deviceType: "disk", params: server.uri });
  await xenstore.rm(`${backendDir(DEVICE)}/hotplug-status`);
  await xenstore.write(`${backendDir(DEVICE)}/script`, "/etc/xen/scripts/block-xentool");
  await readUntil(watch.stderr, "serving the disks");
  const guest = await writeAsGuest();
  expect(connections()).toBe(16);
  await guest.setState(CLOSED);
  watch.kill("SIGTERM");
  await watch.exited;
  guest.close();
  await runXentool(["blkback", "destroy", ...AT], { env });
  xenstore.close();
  dom0.close();
});

test("serve and watch: servers that say nothing hold up their own disks only, and no end", async () => {
  const dom0 = host.platform(0);
  const xenstore = await Xenstore.connect(dom0);
  const dir = temporaryDirectory();
  const asked = Promise.withResolvers<void>();
  const listener = Bun.listen({
    unix: join(dir, "silent.sock"),
    socket: { data() {}, open: () => asked.resolve() },
  });
  const silent = `nbd+unix:///?socket=${join(dir, "silent.sock")}`;
  const serving = spawnXentool(["blkback", "serve", silent, "--domid", "1", "--vdev", "xvdf"], { env });
  await asked.promise;
  serving.kill("SIGTERM");
  expect(await serving.exited).toBe(143);
  const create = async (vdev: string, params: string): Promise<void> => {
    const address = { ...DEVICE, devid: Number(parseVdev(vdev)) };
    await createDevice(xenstore, { address, readOnly: false, deviceType: "disk", params });
    await xenstore.rm(`${backendDir(address)}/hotplug-status`);
  };
  // In turn, they would take longer than a guest waits in this test.
  for (const vdev of ["xvda", "xvdc", "xvdd", "xvde"]) await create(vdev, silent);
  await create("xvdb", server.uri);
  const watch = spawnXentool(["blkback", "watch", "--kind", DEFAULT_KIND, "--any-script"], { env });
  const guest = await writeAsGuest();
  await guest.setState(CLOSED);
  watch.kill("SIGTERM");
  await watch.exited;
  guest.close();
  for (const vdev of ["xvda", "xvdb", "xvdc", "xvdd", "xvde"])
    await runXentool(["blkback", "destroy", "--domid", "1", "--vdev", vdev], { env });
  xenstore.close();
  dom0.close();
  listener.stop(true);
  removeDirectory(dir);
});

test("serve: nbds, also after a kill", async () => {
  const dir = temporaryDirectory();
  await makeCertificates(dir, "storage");
  await using secure = await nbdkit(
    [],
    (at) => ["file", join(at, "disk.img")],
    "--tls=require",
    `--tls-certificates=${dir}`,
  );
  const { uri } = secure;
  const args = [
    "-v",
    "blkback",
    "serve",
    `${uri.replace("nbd+unix", "nbds+unix")}&tls-hostname=storage`,
    ...AT,
  ];
  const untrusted = await runXentool(args, { env });
  expect(untrusted).toMatchObject({ status: 5, stderr: expect.stringContaining("no secure connection") });
  args[3] += `&tls-certificates=${dir}`;
  const killed = spawnXentool(args, { env });
  await readUntil(killed.stderr, "offering");
  killed.kill("SIGKILL");
  await killed.exited;
  const serving = spawnXentool(args, { env });
  await readUntil(serving.stderr, "offering");
  const guest = await writeAsGuest();
  expect(secure.image.subarray(0, 4096).every((byte) => byte === 7)).toBe(true);
  expect(await detach(serving, guest)).toBe(143);
  // What one leaves that is killed goes with its device.
  const last = spawnXentool(args, { env });
  await readUntil(last.stderr, "offering");
  last.kill("SIGKILL");
  await last.exited;
  expect(left()).toContain("1-51728.tls");
  await runXentool(["blkback", "destroy", ...AT], { env });
  expect(left()).toEqual([]);
  removeDirectory(dir);
});

test.each(["0", "17", "1.5"])("--connections %s is a mistake", async (count) => {
  for (const command of [["serve", server.uri, ...AT], ["watch"]]) {
    const { status, stderr } = await runXentool(["blkback", ...command, "--connections", count], { env });
    expect(status).toBe(2);
    expect(stderr).toContain("--connections must be a whole number from 1 to 16");
  }
});
