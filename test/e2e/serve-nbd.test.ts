// A disk whose bytes are behind an NBD server, served by the executable to a guest by hand: the server dies, comes
// back, comes back as another one, and stays away.
import { afterEach, beforeEach, expect, test } from "bun:test";
import { existsSync, readdirSync, readFileSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { createDevice, destroyDevice } from "../../src/blkback/toolstack.ts";
import { backendDir, DEFAULT_KIND } from "../../src/blkback/address.ts";
import { SimHost } from "../../src/sim/host.ts";
import { Xenstore } from "../../src/xenstore/client.ts";
import { HandmadeGuest } from "../sim/blk-guest.ts";
import { diskAddress } from "../sim/disk-world.ts";
import { detach } from "./disk-host.ts";
import { runXentool, spawnXentool } from "./executable.ts";
import type { ForgetfulOptions } from "../support/forgetful-nbd.ts";
import { ForgetfulServer } from "./forgetful-server.ts";
import { readUntil, type Child } from "../support/process.ts";
import { removeDirectory, temporaryDirectory } from "../support/temporary.ts";

/** BLKIF_RSP_ERROR. */
const FAILED = -1;
const CLOSING = 5;
const CLOSED = 6;
const DEVICE = diskAddress(1);
const content = Uint8Array.from({ length: 65_536 }, (_, at) => (at * 5 + (at >> 9)) & 0xff);

let dir: string;
let host: SimHost;
let env: Record<string, string>;
let image: string;
let disk: ForgetfulServer;

beforeEach(async () => {
  dir = temporaryDirectory();
  host = await SimHost.start();
  env = { XENTOOL_SIM: host.dir };
  image = join(dir, "disk.img");
  writeFileSync(image, content);
  disk = new ForgetfulServer({ socket: join(dir, "nbd.sock"), image });
  await disk.start();
});
afterEach(async () => {
  await disk.kill();
  const left = await host.settle();
  await host.stop();
  removeDirectory(dir);
  expect(left).toEqual([]);
});

async function serve(...options: string[]): Promise<Child> {
  const args = ["blkback", "serve", disk.uri, "--domid", "1", "--vdev", "xvdb", ...options];
  const serving = spawnXentool(args, { env });
  await readUntil(serving.stderr, "offering");
  return serving;
}

async function connect(): Promise<HandmadeGuest> {
  const guest = await HandmadeGuest.start(host, DEVICE);
  await guest.connect();
  return guest;
}

const listed = async (...command: string[]): Promise<Record<string, unknown>> => {
  const { stdout } = await runXentool(["blkback", ...command, "--json"], { env });
  return (JSON.parse(stdout) as Record<string, unknown>[])[0];
};

/** A disk whose server is gone, and has forgotten what its guest wrote. */
async function serveHeld(): Promise<{ first: Child; guest: Awaited<ReturnType<typeof connect>> }> {
  const first = await serve("--timeout", "0.2");
  const guest = await connect();
  expect(await guest.write(8, 7)).toBe(0);
  await disk.kill();
  await readUntil(first.stderr, "waits for its NBD server");
  return { first, guest };
}

/** Both servers are gone at once; the disk's comes back, changed. */
async function killBoth(server: Child, changed: Partial<ForgetfulOptions>): Promise<void> {
  server.kill("SIGKILL");
  await server.exited;
  await disk.kill();
  await disk.start(changed);
}

test("the server dies and comes back: the guest sees latency, and everybody else why", async () => {
  const serving = await serve();
  const guest = await connect();
  expect(await guest.write(8, 7)).toBe(0);
  expect(await guest.flush()).toBe(0);
  expect(readFileSync(image)[8 * 512]).toBe(7);
  expect(await guest.read(40)).toEqual(content.slice(40 * 512, 40 * 512 + 4096));
  // Acknowledged, and forgotten by the server.
  expect(await guest.write(8, 9)).toBe(0);
  await disk.kill();
  await readUntil(serving.stderr, "waits for its NBD server");
  const waiting = guest.read(8);
  expect((await listed("list"))["problem"]).toContain("it waits for its NBD server");
  expect(await listed("stats")).toMatchObject({
    serverLosses: 1,
    serverLostAtMs: expect.any(Number),
    serverFailure: expect.stringContaining("it waits for its NBD server: "),
  });
  const report = await runXentool(["blkback", "stats"], { env });
  expect(report.stdout).toMatch(/waits for its server, for .* now: it waits for its NBD server: /);
  await disk.start();
  expect(await waiting).toEqual(new Uint8Array(4096).fill(9));
  await readUntil(serving.stderr, "it is served now");
  expect((await listed("list"))["problem"]).toBeNull();
  expect(await listed("stats")).toMatchObject({ serverLosses: 1, serverLostAtMs: 0, serverFailure: null });
  expect(await detach(serving, guest)).toBe(143);
  expect(readFileSync(image)[8 * 512]).toBe(9);
  expect(readdirSync(join(host.dir, "blkback"))).toEqual([]);
});

test("a smaller or read-only export holds the disk, which says why", async () => {
  const serving = await serve();
  const guest = await connect();
  expect(await guest.write(8, 7)).toBe(0);
  for (const [changed, why] of [
    [{ sizeBytes: 4096 }, "the export has only 4096 bytes now"],
    [{ readOnly: true }, "the export is read-only now"],
  ] as const) {
    await disk.kill();
    await disk.start(changed);
    await readUntil(serving.stderr, why);
  }
  const waiting = guest.flush();
  expect((await listed("list"))["problem"]).toContain("read-only");
  await disk.kill();
  await disk.start();
  expect(await waiting).toBe(0);
  expect(await detach(serving, guest)).toBe(143);
});

test("a held disk is left to a successor, with all that its guest waits for", async () => {
  const { first, guest } = await serveHeld();
  const waiting = guest.read(8);
  first.kill("SIGTERM");
  expect(await first.exited).toBe(6);
  await disk.start();
  const next = await serve();
  expect(await waiting).toEqual(new Uint8Array(4096).fill(7));
  expect(await detach(next, guest)).toBe(143);
});

test("a disk is not left to a successor while what is sent again may yet be carried out", async () => {
  const { first, guest } = await serveHeld();
  await disk.start({ lagMs: 1000 });
  await readUntil(disk.output.stderr, "asked");
  first.kill("SIGTERM");
  expect(await first.exited).toBe(6);
  await disk.kill();
  // Said before it was killed.
  await readUntil(disk.output.stdout, "carries it out");
  await disk.start();
  const next = await serve();
  expect(await guest.read(8)).toEqual(new Uint8Array(4096).fill(7));
  expect(await detach(next, guest)).toBe(143);
});

test("a successor does not take over with an export that has become smaller", async () => {
  const first = await serve();
  const guest = await connect();
  expect(await guest.write(8, 7)).toBe(0);
  await killBoth(first, { sizeBytes: 8192 });
  const waiting = guest.read(8);
  const args = ["blkback", "serve", disk.uri, "--domid", "1", "--vdev", "xvdb"];
  expect(await runXentool(args, { env })).toMatchObject({
    status: 2,
    stderr: expect.stringContaining("is in use with sectors 128"),
  });
  await disk.kill();
  await disk.start();
  const next = await serve();
  expect(await waiting).toEqual(new Uint8Array(4096).fill(7));
  expect(await detach(next, guest)).toBe(143);
});

const lesser: readonly (readonly [Partial<ForgetfulOptions>, string])[] = [
  [{ flushes: false }, "the server can no longer flush"],
  [{ minBlockBytes: 8192 }, "the server wants blocks of 8192 bytes now, not 4096"],
];
test.each(lesser)("a successor that finds a server with %j holds the disk", async (changed, why) => {
  const first = await serve();
  const guest = await connect();
  // Not flushed, and at no border of the larger blocks.
  expect(await guest.write(8, 7)).toBe(0);
  expect(await guest.write(24, 8)).toBe(0);
  await killBoth(first, changed);
  const waiting = guest.flush();
  const next = await serve();
  await readUntil(next.stderr, why);
  await disk.kill();
  await disk.start();
  expect(await waiting).toBe(0);
  expect([readFileSync(image)[8 * 512], readFileSync(image)[24 * 512]]).toEqual([7, 8]);
  expect(await detach(next, guest)).toBe(143);
});

test("a successor sends to a server that takes less at once what a former one took", async () => {
  const first = await serve();
  const guest = await connect();
  expect(await guest.write(8, 7)).toBe(0);
  await killBoth(first, { maxBlockBytes: 1024 });
  const waiting = guest.flush();
  const next = await serve();
  expect(await waiting).toBe(0);
  expect(readFileSync(image).subarray(8 * 512, 8 * 512 + 4096)).toEqual(Buffer.alloc(4096, 7));
  expect(await guest.write(16, 9)).toBe(0);
  expect(await guest.read(16)).toEqual(new Uint8Array(4096).fill(9));
  expect(await detach(next, guest)).toBe(143);
});

test("what is less than a block of the server at the end of its export is said to be no part of the disk", async () => {
  await disk.kill();
  await disk.start({ minBlockBytes: 4096, sizeBytes: 61_952 });
  const args = ["blkback", "serve", disk.uri, "--domid", "1", "--vdev", "xvdb"];
  const serving = spawnXentool(args, { env });
  await readUntil(serving.stderr, "its last 512 bytes are less than a block of the server");
  await readUntil(serving.stderr, "offering");
  const guest = await connect();
  expect(await guest.read(112)).toEqual(content.subarray(57_344, 61_440));
  expect(await detach(serving, guest)).toBe(143);
});

test("an address of NBD that is not supported is no path", async () => {
  const tried = await runXentool(["blkback", "serve", "nbd+tcp://host/x", "--domid", "1", "--vdev", "xvdb"], {
    env,
  });
  expect(tried).toMatchObject({ status: 2, stderr: expect.stringContaining("nbds+unix are supported") });
});

test("with --hold, requests fail once the server was away for too long; until the guest reconnects", async () => {
  const serving = await serve("--hold", "0.1");
  const guest = await connect();
  expect(await guest.write(8, 7)).toBe(0);
  await disk.kill();
  await readUntil(serving.stderr, "fail until the guest reconnects");
  expect(await guest.read(8)).toBe(FAILED);
  expect(await guest.flush()).toBe(FAILED);
  expect((await listed("list"))["problem"]).toContain("its requests fail until the guest reconnects");
  await disk.start();
  for (const state of [CLOSING, CLOSED, 1]) await guest.setState(state);
  await guest.connect();
  // What had been acknowledged was in the log.
  expect(await guest.read(8)).toEqual(new Uint8Array(4096).fill(7));
  expect(await guest.flush()).toBe(0);
  // The failed flush makes it a failure, whoever asked for the end.
  expect(await detach(serving, guest)).toBe(5);
});

test("a guest whose ring lies is closed though its disk is held", async () => {
  const serving = await serve();
  const guest = await connect();
  await disk.kill();
  await readUntil(serving.stderr, "waits for its NBD server");
  const waiting = guest.read(8).catch((error: unknown) => String(error));
  guest.lie(5000);
  await guest.untilBackend(CLOSING);
  guest.close();
  await waiting;
  serving.kill("SIGKILL");
  await serving.exited;
  await runXentool(["blkback", "destroy", "--domid", "1", "--vdev", "xvdb"], { env });
});

test("a new device of the same name gets nothing of what a former one left, and nor does its disk", async () => {
  const former = await serve();
  const guest = await connect();
  expect(await guest.write(8, 7)).toBe(0);
  former.kill("SIGKILL");
  await former.exited;
  await disk.kill();
  guest.close();
  // As xl does it, which knows nothing of our files; and then somebody else has the disk.
  const dom0 = host.platform(0);
  const xenstore = await Xenstore.connect(dom0);
  await destroyDevice(xenstore, DEVICE);
  xenstore.close();
  dom0.close();
  writeFileSync(image, new Uint8Array(content.length).fill(9));
  await disk.start();
  const next = await serve();
  const other = await connect();
  expect(await other.read(8)).toEqual(new Uint8Array(4096).fill(9));
  expect(await detach(next, other)).toBe(143);
  expect(readdirSync(join(host.dir, "blkback"))).toEqual([]);
});

test("resize says that an export's new size is seen when it is served anew", async () => {
  const serving = await serve();
  const guest = await connect();
  await disk.kill();
  await disk.start({ sizeBytes: 2 * content.length });
  expect(await guest.read(40)).toEqual(content.slice(40 * 512, 40 * 512 + 4096));
  const named = ["blkback", "resize", "--domid", "1", "--vdev", "xvdb"];
  const WHY = "the disk stays as it is, 128 sectors: that of an NBD server";
  const { status, stdout, stderr } = await runXentool([...named, "--json"], { env });
  expect(status).toBe(5);
  expect(JSON.parse(stdout)).toEqual({
    domid: 1,
    vdev: "xvdb",
    sectorsBefore: 128,
    sectorsOfImage: null,
    applied: false,
    warning: expect.stringContaining(WHY),
  });
  expect(stderr).toContain(WHY);
  expect((await listed("list"))["sectors512"]).toBe(128);
  expect(await detach(serving, guest)).toBe(143);
  const next = await serve();
  expect((await listed("list"))["sectors512"]).toBe(256);
  next.kill("SIGTERM");
  await next.exited;
});

test("--hold -1 is a mistake", async () => {
  const args = ["blkback", "serve", disk.uri, "--domid", "1", "--vdev", "xvdb", "--hold", "-1"];
  expect(await runXentool(args, { env })).toMatchObject({
    status: 2,
    stderr: expect.stringContaining("--hold must be a number from 0 on, not -1"),
  });
});

test("a guest that lets go of a held disk does not wait for its server for ever", async () => {
  const serving = await serve();
  const guest = await connect();
  expect(await guest.write(8, 7)).toBe(0);
  await disk.kill();
  await readUntil(serving.stderr, "waits for its NBD server");
  expect(await detach(serving, guest)).toBe(5);
  // The device is gone, and nobody would ever send this again.
  expect(readdirSync(join(host.dir, "blkback"))).toEqual([]);
});

test("watch serves what xl's target= names, from an unmodified server", async () => {
  const [socket, pidFile] = [join(dir, "qemu.sock"), join(dir, "pid")];
  const args = ["--format=raw", "--persistent", "--shared=8", `--socket=${socket}`, `--pid-file=${pidFile}`];
  const server = Bun.spawn(["qemu-nbd", ...args, image], { stdio: ["ignore", "inherit", "ignore"] });
  // It writes its number once it listens.
  while (!existsSync(pidFile) && server.exitCode === null) await Bun.sleep(10);
  const dom0 = host.platform(0);
  const xenstore = await Xenstore.connect(dom0);
  const watch = spawnXentool(["-v", "blkback", "watch", "--kind", DEFAULT_KIND], { env });
  await createDevice(xenstore, {
    address: DEVICE,
    readOnly: false,
    deviceType: "disk",
    params: `nbd+unix:///?socket=${socket}`,
  });
  await xenstore.rm(`${backendDir(DEVICE)}/hotplug-status`);
  await xenstore.write(`${backendDir(DEVICE)}/script`, "/etc/xen/scripts/block-xentool");
  await readUntil(watch.stderr, "serving the disks");
  const guest = await HandmadeGuest.start(host, DEVICE);
  await guest.connect();
  expect(await guest.read(40)).toEqual(content.slice(40 * 512, 40 * 512 + 4096));
  await guest.setState(CLOSED);
  watch.kill("SIGTERM");
  await watch.exited;
  server.kill("SIGKILL");
  await server.exited;
  guest.close();
  await runXentool(["blkback", "destroy", "--domid", "1", "--vdev", "xvdb"], { env });
  xenstore.close();
  dom0.close();
});
