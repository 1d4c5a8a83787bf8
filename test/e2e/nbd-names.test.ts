// An NBD server that is known by the name of its host, in a network of the test's own: what becomes of the disk when
// the files that say where hosts are change while it is served, and when a name has addresses at which no server is.
import { afterEach, beforeEach, expect, test } from "bun:test";
import { mkdirSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { parseVdev } from "../../src/protocol/blkif.ts";
import { HandmadeGuest } from "../sim/blk-guest.ts";
import { diskAddress } from "../sim/disk-world.ts";
import { makeCertificates } from "../support/certificates.ts";
import { NbdServer } from "../support/nbd-servers.ts";
import { readUntil, start, type Child } from "../support/process.ts";
import { detach, DiskHost } from "./disk-host.ts";
import { executable, runXentool } from "./executable.ts";
import { NetworkNamespace } from "./network-namespace.ts";
import { OwnEtc } from "./own-etc.ts";

const URI = "nbd://storage/a";
const SERVED = ["--domid", "1", "--vdev", "xvdb"];
/** Listens, and has no room for anybody: whoever connects hears nothing at all. */
const SILENT = `use Socket;
my $at = pack_sockaddr_in(10809, inet_aton($ARGV[0]));
my ($server, $only);
socket($server, PF_INET, SOCK_STREAM, 0) && bind($server, $at) && listen($server, 0) or die $!;
socket($only, PF_INET, SOCK_STREAM, 0) && connect($only, $at) or die $!;
$| = 1;
print "there";
sleep;`;

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

function listen(address: string, ...options: readonly string[]): Promise<NbdServer> {
  return NbdServer.start((dir) => {
    const where = [`--ipaddr=${address}`, `--pidfile=${join(dir, "pid")}`];
    return network.inside([
      "nbdkit",
      "--foreground",
      ...where,
      ...options,
      "file",
      `dir=${disks.dir}/images`,
    ]);
  });
}

async function serve(etc: OwnEtc, uri: string, ...options: readonly string[]): Promise<Child> {
  const env = { ...disks.env, PATH: process.env["PATH"] };
  const command = [executable, "blkback", "serve", uri, ...SERVED, ...options];
  const server = start(network.inside(etc.inside(command)), { env });
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
  const server = await serve(etc, URI, "--jail", "strict");
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
  const server = await serve(etc, URI, "--jail", "off");
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

async function expectFound(uri: string, addresses: readonly string[], ...options: string[]): Promise<void> {
  const etc = new OwnEtc(join(disks.dir, "etc"), { storage: addresses });
  let server: NbdServer | undefined;
  let serving: Child | undefined;
  let guest: HandmadeGuest | undefined;
  for (const address of addresses) {
    if (serving !== undefined) {
      await server?.[Symbol.asyncDispose]();
      await readUntil(serving.stderr, "waits for its NBD server");
    }
    server = await listen(address, ...options);
    serving ??= await serve(etc, uri, "--jail", "strict");
    guest ??= await connect();
    expect(await guest.write(8, 7)).toBe(0);
  }
  expect(await detach(serving as Child, guest as HandmadeGuest)).toBe(143);
  await server?.[Symbol.asyncDispose]();
}

test("a server is at one of the addresses that its host has, and then at another", () =>
  expectFound(URI, ["127.0.0.1", "127.0.0.2", "::1"]));

test("the same by TLS", async () => {
  const certificates = join(disks.dir, "certificates");
  mkdirSync(certificates);
  await makeCertificates(certificates, "storage");
  const uri = `nbds://storage/a?tls-certificates=${certificates}`;
  await expectFound(uri, ["127.0.0.1", "127.0.0.2"], "--tls=require", `--tls-certificates=${certificates}`);
});

test("an address at which nobody answers is left for the next one", async () => {
  const addresses = ["127.0.0.1", "127.0.0.2", "127.0.0.3"];
  const etc = new OwnEtc(join(disks.dir, "etc"), { storage: addresses });
  const silent = ["127.0.0.1", "127.0.0.2"].map((it) => start(network.inside(["perl", "-e", SILENT, it])));
  for (const { stdout } of silent) await readUntil(stdout, "there");
  await using _ = await listen("127.0.0.3");
  const serving = await serve(etc, URI, "--jail", "strict");
  const guest = await connect();
  expect(await guest.write(8, 7)).toBe(0);
  expect(await detach(serving, guest)).toBe(143);
  for (const child of silent) {
    child.kill("SIGKILL");
    await child.exited;
  }
}, 20_000);
