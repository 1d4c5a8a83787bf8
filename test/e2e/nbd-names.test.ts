// An NBD server that is known by the name of its host, in a network of the test's own: what becomes of the disk when
// the files that say where hosts are change while it is served.
import { afterEach, beforeEach, expect, test } from "bun:test";
import { mkdirSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { parseVdev } from "../../src/protocol/blkif.ts";
import { HandmadeGuest } from "../sim/blk-guest.ts";
import { diskAddress } from "../sim/disk-world.ts";
import { NbdServer } from "../support/nbd-servers.ts";
import { readUntil, start, type Child } from "../support/process.ts";
import { detach, DiskHost } from "./disk-host.ts";
import { executable, runXentool } from "./executable.ts";
import { NetworkNamespace } from "./network-namespace.ts";
import { OwnEtc } from "./own-etc.ts";

const SERVED = ["blkback", "serve", "nbd://storage/a", "--domid", "1", "--vdev", "xvdb"];

let network: NetworkNamespace;
let disks: DiskHost;

beforeEach(async () => {
  network = await NetworkNamespace.start();
  disks = await DiskHost.start({});
  mkdirSync(join(disks.dir, "images"));
  writeFileSync(join(disks.dir, "images/a"), new Uint8Array(1 << 20));
});
afterEach(async () => {
  await network[Symbol.asyncDispose]();
  await disks.close();
});

function listen(address: string): Promise<NbdServer> {
  return NbdServer.start((dir) => {
    const where = [`--ipaddr=${address}`, `--pidfile=${join(dir, "pid")}`];
    return network.inside(["nbdkit", "--foreground", ...where, "file", `dir=${disks.dir}/images`]);
  });
}

async function serve(etc: OwnEtc, ...options: readonly string[]): Promise<Child> {
  const env = { ...disks.env, PATH: process.env["PATH"] };
  const server = start(network.inside(etc.inside([executable, ...SERVED, ...options])), { env });
  await readUntil(server.stderr, "offering");
  return server;
}

async function connect(): Promise<HandmadeGuest> {
  const guest = await HandmadeGuest.start(disks.host, diskAddress(1, parseVdev("xvdb")));
  await guest.connect();
  return guest;
}

test("a file of names that is replaced leaves the disk its server, where that was", async () => {
  const etc = new OwnEtc(join(disks.dir, "etc"), { storage: ["127.0.0.1"] });
  const former = await listen("127.0.0.1");
  const server = await serve(etc, "--jail", "strict");
  const guest = await connect();
  expect(await guest.write(8, 7)).toBe(0);
  etc.replaceHosts({ storage: ["127.0.0.9"] });
  await former[Symbol.asyncDispose]();
  await readUntil(server.stderr, "waits for its NBD server");
  await using _ = await listen("127.0.0.1");
  await readUntil(server.stderr, "/etc/hosts has been replaced");
  expect(await guest.read(8)).toEqual(new Uint8Array(4096).fill(7));
  expect(await detach(server, guest)).toBe(143);
});

test("a server whose host has lost its name is waited for, and what is wrong is the name", async () => {
  const etc = new OwnEtc(join(disks.dir, "etc"), { storage: ["127.0.0.1"] });
  const former = await listen("127.0.0.1");
  const server = await serve(etc, "--jail", "off");
  const guest = await connect();
  etc.replaceHosts({});
  await former[Symbol.asyncDispose]();
  await readUntil(server.stderr, "waits for its NBD server: the name of its host cannot be looked up");
  const { stdout } = await runXentool(["blkback", "list"], { env: disks.env });
  expect(stdout).toContain("the name of its host cannot be looked up");
  await using _ = await listen("127.0.0.2");
  etc.replaceHosts({ storage: ["127.0.0.2"] });
  expect(await guest.read(8)).toEqual(new Uint8Array(4096));
  expect(await detach(server, guest)).toBe(143);
});
