// A disk by TLS on nbdkit, which keeps writes in a cache of its own until they are flushed. It dies with them and comes
// back with certificates of another authority: the disk waits until ours are renewed, too, and nothing is lost.
import { afterEach, beforeEach, expect, test } from "bun:test";
import { cpSync, mkdirSync } from "node:fs";
import { join } from "node:path";
import { HandmadeGuest } from "../sim/blk-guest.ts";
import { diskAddress } from "../sim/disk-world.ts";
import { makeCertificates } from "../support/certificates.ts";
import { nbdkit, type NbdServer } from "../support/nbd-servers.ts";
import { readUntil, type Child } from "../support/process.ts";
import { detach, DiskHost } from "./disk-host.ts";
import { runXentool, spawnXentool } from "./executable.ts";

let ground: DiskHost;
/** Directories of certificates. */
let its: string;
let ours: string;
let server: NbdServer;

beforeEach(async () => {
  ground = await DiskHost.start({});
  [its, ours] = [join(ground.dir, "its"), join(ground.dir, "ours")];
  mkdirSync(its);
  await renewIts();
  renewOurs();
  const options = ["--tls=require", "--tls-verify-peer", `--tls-certificates=${its}`];
  const file = (dir: string): string[] => ["file", join(dir, "disk.img"), "cache=writeback"];
  server = await nbdkit(["cache"], file, ...options);
});
afterEach(async () => {
  await server[Symbol.asyncDispose]();
  await ground.close();
});

const renewIts = (): Promise<void> => makeCertificates(its, "storage");
const renewOurs = (): void => cpSync(its, ours, { recursive: true });

async function serve(): Promise<Child> {
  const uri = `${server.uri.replace("nbd+unix", "nbds+unix")}&tls-hostname=storage&tls-certificates=${ours}`;
  const args = ["blkback", "serve", uri, "--domid", "1", "--vdev", "xvdb"];
  const serving = spawnXentool(args, { env: ground.env });
  await readUntil(serving.stderr, "offering");
  return serving;
}

/** The first bytes at two sectors in the image. */
const inImage = (): number[] => [server.image[8 * 512], server.image[800 * 512]];

/** Resolves with a guest that has written both, of which the image has neither. */
async function writeUnflushed(): Promise<HandmadeGuest> {
  const guest = await HandmadeGuest.start(ground.host, diskAddress(1));
  await guest.connect();
  expect(await guest.write(8, 7)).toBe(0);
  expect(await guest.flush()).toBe(0);
  expect(await guest.write(8, 8)).toBe(0);
  expect(await guest.write(800, 9)).toBe(0);
  expect(inImage()).toEqual([7, 1]);
  return guest;
}

test("the server is killed", async () => {
  const serving = await serve();
  const guest = await writeUnflushed();
  await server.kill();
  await renewIts();
  await server.restart();
  const waiting = guest.read(8);
  await readUntil(serving.stderr, "waits for its NBD server: no secure connection");
  const { stdout } = await runXentool(["blkback", "list"], { env: ground.env });
  expect(stdout).toContain("no secure connection");
  expect(inImage()).toEqual([7, 1]);
  renewOurs();
  expect(await waiting).toEqual(new Uint8Array(4096).fill(8));
  expect(await guest.flush()).toBe(0);
  expect(inImage()).toEqual([8, 9]);
  expect(await detach(serving, guest)).toBe(143);
});

test("the server and xentool are killed", async () => {
  const first = await serve();
  const guest = await writeUnflushed();
  first.kill("SIGKILL");
  await server.kill();
  await first.exited;
  await renewIts();
  renewOurs();
  await server.restart();
  const waiting = guest.read(800);
  const next = await serve();
  expect(await waiting).toEqual(new Uint8Array(4096).fill(9));
  expect(await guest.flush()).toBe(0);
  expect(inImage()).toEqual([8, 9]);
  expect(await detach(next, guest)).toBe(143);
});
