// A disk by TLS whose certificates are where people have them: behind links, as Let's Encrypt makes them, and a key
// that is another user's. The jail keeps some of that from us, and the guest has its disk nevertheless.
import { afterEach, beforeEach, expect, test } from "bun:test";
import { chmodSync, chownSync, copyFileSync, mkdirSync, renameSync, rmSync, symlinkSync } from "node:fs";
import { join } from "node:path";
import { HandmadeGuest } from "../sim/blk-guest.ts";
import { diskAddress } from "../sim/disk-world.ts";
import { makeCertificates } from "../support/certificates.ts";
import { nbdkit, type NbdServer } from "../support/nbd-servers.ts";
import { readUntil, type Child } from "../support/process.ts";
import { detach, DiskHost } from "./disk-host.ts";
import { spawnXentool } from "./executable.ts";

/** Nobody that runs tests. */
const OTHER_USER = 65534;

let ground: DiskHost;
let archive: string;
let ours: string;
let server: NbdServer;

beforeEach(async () => {
  ground = await DiskHost.start({});
  [archive, ours] = [join(ground.dir, "archive"), join(ground.dir, "ours")];
  for (const dir of [archive, ours]) mkdirSync(dir);
  await makeCertificates(archive, "storage");
  for (const name of ["ca-cert.pem", "client-cert.pem", "client-key.pem"])
    copyFileSync(join(archive, name), join(ours, name));
  const options = ["--tls=require", "--tls-verify-peer", `--tls-certificates=${archive}`];
  server = await nbdkit([], (dir) => ["file", join(dir, "disk.img")], ...options);
});
afterEach(async () => {
  await server[Symbol.asyncDispose]();
  await ground.close();
});

async function serve(): Promise<Child> {
  const uri = `${server.uri.replace("nbd+unix", "nbds+unix")}&tls-hostname=storage&tls-certificates=${ours}`;
  const args = ["blkback", "serve", uri, "--domid", "1", "--vdev", "xvdb", "--jail", "strict"];
  const serving = spawnXentool(args, { env: ground.env });
  await readUntil(serving.stderr, "offering");
  return serving;
}

async function connect(): Promise<HandmadeGuest> {
  const guest = await HandmadeGuest.start(ground.host, diskAddress(1));
  await guest.connect();
  expect(await guest.write(8, 7)).toBe(0);
  return guest;
}

async function restartServer(serving: Child): Promise<void> {
  await server.kill();
  await readUntil(serving.stderr, "waits for its NBD server");
  await server.restart();
}

/** Has `name` be a link to a new file elsewhere, as when it is renewed. */
function renew(name: string): void {
  const to = join(ground.dir, `${crypto.randomUUID()}.pem`);
  copyFileSync(join(archive, name), to);
  symlinkSync(to, join(ours, `${name}~`));
  renameSync(join(ours, `${name}~`), join(ours, name));
}

test("links out of the directory, which later lead to other files", async () => {
  const names = ["ca-cert.pem", "client-cert.pem", "client-key.pem"];
  for (const name of names) renew(name);
  const serving = await serve();
  const guest = await connect();
  for (const name of names) renew(name);
  await restartServer(serving);
  expect(await guest.read(8)).toEqual(new Uint8Array(4096).fill(7));
  await readUntil(serving.stderr, "ca-cert.pem can no longer be read");
  expect(await detach(serving, guest)).toBe(143);
});

test("a key of another user's", async () => {
  const key = join(ours, "client-key.pem");
  chmodSync(key, 0o600);
  chownSync(key, OTHER_USER, OTHER_USER);
  const serving = await serve();
  const guest = await connect();
  await readUntil(serving.stderr, "client-key.pem can no longer be read");
  expect(await detach(serving, guest)).toBe(143);
});

test("a directory of another user's, without a certificate of ours", async () => {
  await server[Symbol.asyncDispose]();
  const options = ["--tls=require", `--tls-certificates=${archive}`];
  server = await nbdkit([], (dir) => ["file", join(dir, "disk.img")], ...options);
  for (const name of ["client-cert.pem", "client-key.pem"]) rmSync(join(ours, name));
  chmodSync(ours, 0o700);
  chownSync(ours, OTHER_USER, OTHER_USER);
  const serving = await serve();
  const guest = await connect();
  await readUntil(serving.stderr, "ca-cert.pem can no longer be read");
  expect(await detach(serving, guest)).toBe(143);
});
