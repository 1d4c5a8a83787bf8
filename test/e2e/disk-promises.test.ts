// A disk that loses what was written when it is flushed, served by the executable: a loop device over a file system
// that is full. Nothing says OK afterwards, whoever serves it, and everybody who looks is told.
import { afterEach, beforeEach, expect, test } from "bun:test";
import { truncateSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { DEFAULT_KIND } from "../../src/blkback/address.ts";
import { toDomid } from "../../src/core/types.ts";
import { SimHost } from "../../src/sim/host.ts";
import { HandmadeGuest } from "../sim/blk-guest.ts";
import { runXentool, spawnXentool } from "./executable.ts";
import { readUntil, type Finished } from "../support/process.ts";
import { removeDirectory, temporaryDirectory } from "../support/temporary.ts";

const OKAY = 0;
const ERROR = -1;
const IMAGE_BYTES = 1 << 20;
const DEVICE = { backend: toDomid(0), frontend: toDomid(1), kind: DEFAULT_KIND, devid: 51728 };
const NAMED = ["--domid", "1", "--vdev", "xvdb"];

let dir: string;
let host: SimHost;
let env: Record<string, string>;
let guest: HandmadeGuest;
let loop: string | undefined;

beforeEach(async () => {
  dir = temporaryDirectory();
  host = await SimHost.start();
  env = { XENTOOL_SIM: host.dir };
  guest = await HandmadeGuest.start(host, DEVICE);
});
afterEach(async () => {
  guest.close();
  const left = await host.settle();
  await host.stop();
  if (loop !== undefined) expect(Bun.spawnSync(["losetup", "--detach", loop]).exitCode).toBe(0);
  loop = undefined;
  removeDirectory(dir);
  expect(left).toEqual([]);
});

/** What `serve` is told to serve a disk whose next flush loses data; without loop devices a filter acts the part. */
function losingDisk(): string[] {
  const script = `mount -t tmpfs -o size=16k none ${dir} && truncate -s ${IMAGE_BYTES} ${dir}/disk.img &&
    losetup --find --show ${dir}/disk.img`;
  const made = Bun.spawnSync(["unshare", "--mount", "sh", "-c", script]);
  if (made.exitCode === 0) {
    loop = made.stdout.toString().trim();
    return [loop];
  }
  return [healthyDisk(), "--filter", "error:times=1,op=flush"];
}

function healthyDisk(): string {
  const path = join(dir, "disk.img");
  writeFileSync(path, new Uint8Array(IMAGE_BYTES));
  return path;
}

async function serving(...args: string[]): Promise<ReturnType<typeof spawnXentool>> {
  const server = spawnXentool(["blkback", "serve", ...args, ...NAMED], { env });
  await readUntil(server.stderr, "offering");
  return server;
}

/** Sixteen pages over the whole disk; the responses' statuses. */
async function writeAll(): Promise<number[]> {
  const statuses: number[] = [];
  for (let page = 0; page < 16; page++) statuses.push(await guest.write(page * 128, page + 1));
  return statuses;
}

/** What is left to read of a stream of which something was read. */
async function restOf(stream: ReadableStream<Uint8Array>): Promise<string> {
  let rest = "";
  const decoder = new TextDecoder();
  for await (const bytes of stream) rest += decoder.decode(bytes, { stream: true });
  return rest;
}

/** Detaches by SIGTERM from a guest that lets go; the server's exit status, and what it said since. */
async function detach(server: ReturnType<typeof spawnXentool>): Promise<Pick<Finished, "status" | "stderr">> {
  server.kill("SIGTERM");
  await guest.untilBackend(5);
  await guest.setState(6);
  const [status, stderr] = await Promise.all([server.exited, restOf(server.stderr)]);
  return { status, stderr };
}

test("a flush that failed stays failed, also under the server after the next kill -9", async () => {
  const disk = losingDisk();
  const server = await serving(...disk);
  await guest.connect();
  expect(await writeAll()).toEqual(Array.from({ length: 16 }, () => OKAY));
  expect([await guest.flush(), await guest.flush(), await guest.write(0, 1)]).toEqual([ERROR, ERROR, ERROR]);

  const stats = await runXentool(["blkback", "stats", "--json"], { env });
  expect(JSON.parse(stats.stdout)).toEqual([
    expect.objectContaining({
      errors: 3,
      refused: expect.objectContaining({ imageFailed: 1, afterFailedFlush: 2, beyondTheEnd: 0 }) as unknown,
      flushErrors: 1,
      lastIoError: "EIO",
      flushFailure: "EIO",
    }),
  ]);
  const words = await runXentool(["blkback", "stats"], { env });
  expect(words.stdout).toContain("  refused: 2 after a flush that failed; 1 that the image failed\n");
  expect(words.stdout).toContain("the image failed 0 reads, 0 writes, 1 flush, 0 discards, last with EIO");
  expect(words.stdout).toContain("writes and flushes fail until the guest reconnects");
  const listed = await runXentool(["blkback", "list", "--json"], { env });
  expect(JSON.parse(listed.stdout)).toEqual([
    expect.objectContaining({ ioErrors: 1, lastIoError: "EIO", flushFailure: "EIO" }),
  ]);
  expect((await runXentool(["blkback", "list"], { env })).stdout).toContain("1 (flush: EIO)");

  server.kill("SIGKILL");
  await server.exited;
  const next = await serving(disk[0]);
  expect([await guest.flush(), await guest.write(0, 1)]).toEqual([ERROR, ERROR]);
  const { status, stderr } = await detach(next);
  expect([status, stderr]).toEqual([5, expect.stringContaining("may be lost: EIO")]);
});

test("a guest that lets go without a flush: the loss is logged, and in the exit status", async () => {
  const server = await serving(...losingDisk());
  await guest.connect();
  expect(await writeAll()).toEqual(Array.from({ length: 16 }, () => OKAY));
  const { status, stderr } = await detach(server);
  expect(status).toBe(5);
  expect(stderr).toContain("the flush after the guest had let go failed (EIO: i/o error)");
});

test("the flush at the end comes before Closed", async () => {
  const server = await serving(healthyDisk(), "-v", "--filter", "log:op=flush");
  await guest.connect();
  expect(await guest.write(8, 1)).toBe(OKAY);
  const { status, stderr } = await detach(server);
  expect(status).toBe(143);
  expect(stderr).toMatch(/flush #[0-9]+ at 0[^]*xvdb of domain 1: Closed/);
});

test("resize tells what it did, and warns of an image that shrank, there and in the server's log", async () => {
  const path = healthyDisk();
  const server = await serving(path);
  await guest.connect();
  const resize = ["blkback", "resize", ...NAMED];
  truncateSync(path, 2 * IMAGE_BYTES);
  expect(await runXentool(resize, { env })).toEqual({
    status: 0,
    stdout: "xvdb of domain 1: the disk grew from 2048 to 4096 sectors\n",
    stderr: "",
  });
  truncateSync(path, 4096);
  const shrunk = await runXentool([...resize, "--json"], { env });
  const warning =
    "the disk shrank from 4096 to 8 sectors: data beyond the new end is lost, and the guest may still need it";
  expect(JSON.parse(shrunk.stdout)).toEqual({
    domid: 1,
    vdev: "xvdb",
    sectorsBefore: 4096,
    sectorsOfImage: 8,
    applied: true,
    warning,
  });
  expect(shrunk.stderr).toBe(`xentool: warning: xvdb of domain 1: ${warning}\n`);
  const { status, stderr } = await detach(server);
  expect([status, stderr]).toEqual([143, expect.stringContaining(`warning: xvdb of domain 1: ${warning}`)]);
});

test("resize fails when the image is empty, because the disk stays as it is", async () => {
  const path = healthyDisk();
  const server = await serving(path);
  await guest.connect();
  truncateSync(path, 0);
  const warning = "the image is empty now; the disk stays as it is, 2048 sectors";
  const { status, stdout, stderr } = await runXentool(["blkback", "resize", ...NAMED, "--json"], { env });
  expect([status, stderr]).toEqual([5, `xentool: warning: xvdb of domain 1: ${warning}\n`]);
  expect(JSON.parse(stdout)).toMatchObject({
    sectorsBefore: 2048,
    sectorsOfImage: 0,
    applied: false,
    warning,
  });
  expect((await detach(server)).status).toBe(143);
});

test("stats names the disk that is not served, while another one is", async () => {
  const server = await serving(healthyDisk());
  await guest.connect();
  const stats = (...args: string[]): Promise<Finished> => runXentool(["blkback", "stats", ...args], { env });
  for (const [args, text] of [
    [["--domid", "2"], "no disk of domain 2 is served here\n"],
    [["--vdev", "xvdc"], "no disk xvdc is served here\n"],
    [["--domid", "1", "--vdev", "xvdc"], "no disk xvdc of domain 1 is served here\n"],
  ] as const)
    expect(await stats(...args)).toEqual({ status: 0, stdout: text, stderr: "" });
  expect((await detach(server)).status).toBe(143);
  expect((await stats()).stdout).toBe("nothing is served here\n");
});
