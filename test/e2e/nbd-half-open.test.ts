// The host of an NBD server vanishes: no end of a connection reaches us, and no error. A disk with something under way
// notices, and one that is idle, too, with TLS and without; all wait, and go on when the host is back, with a server
// that knows nothing of the connections before. With the kernel's TCP, in a network of the test's own, and with the
// times that users get.
import { expect, test } from "bun:test";
import { mkdirSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { parseVdev } from "../../src/protocol/blkif.ts";
import { HandmadeGuest } from "../sim/blk-guest.ts";
import { diskAddress } from "../sim/disk-world.ts";
import { makeCertificates } from "../support/certificates.ts";
import { NbdServer } from "../support/nbd-servers.ts";
import { readUntil, start, type Child } from "../support/process.ts";
import { detach, DiskHost } from "./disk-host.ts";
import { executable } from "./executable.ts";
import { NetworkNamespace } from "./network-namespace.ts";

/** Twice the half minute that it takes, with a busy machine in mind. */
const PATIENCE_MS = 120_000;
const PORT = 10809;
const SIZE = 1 << 20;
const NAMES = ["busy", "busy-secure", "idle", "idle-secure"] as const;

interface Disk {
  readonly server: Child;
  readonly guest: HandmadeGuest;
}

test(
  "a host that vanishes is noticed by busy and by idle disks, also by TLS, and waited for",
  async () => {
    await using network = await NetworkNamespace.start();
    const disks = await DiskHost.start({});
    const images = join(disks.dir, "images");
    mkdirSync(images);
    for (const name of NAMES) writeFileSync(join(images, name), new Uint8Array(SIZE));
    const certificates = join(disks.dir, "certificates");
    mkdirSync(certificates);
    await makeCertificates(certificates, "127.0.0.1");
    const listen = (): Promise<NbdServer> =>
      NbdServer.start((dir) =>
        network.inside([
          "nbdkit",
          "--foreground",
          "--ipaddr=127.0.0.1",
          `--port=${PORT}`,
          `--pidfile=${join(dir, "pid")}`,
          "--tls=on",
          `--tls-certificates=${certificates}`,
          "file",
          `dir=${images}`,
        ]),
      );
    const connect = async (name: (typeof NAMES)[number], at: number): Promise<Disk> => {
      const vdev = `xvd${"abcd"[at]}`;
      const uri = name.endsWith("secure")
        ? `nbds://127.0.0.1:${PORT}/${name}?tls-certificates=${certificates}`
        : `nbd://127.0.0.1:${PORT}/${name}`;
      // Of several connections, those that are idle would give the busy one away.
      const args = ["-v", "blkback", "serve", uri, "--domid", "1", "--vdev", vdev, "--connections", "1"];
      const env = { ...disks.env, PATH: process.env["PATH"] };
      const server = start(network.inside([executable, ...args]), { env });
      await readUntil(server.stderr, "offering");
      const guest = await HandmadeGuest.start(disks.host, diskAddress(1, parseVdev(vdev)));
      guest.patienceMs = PATIENCE_MS;
      await guest.connect();
      return { server, guest };
    };
    const former = await listen();
    const all: Disk[] = [];
    for (const [at, name] of NAMES.entries()) all.push(await connect(name, at));
    const [busy, idle] = [all.slice(0, 2), all.slice(2)];
    for (const { guest } of all) {
      expect(await guest.write(8, 7)).toBe(0);
      expect(await guest.flush()).toBe(0);
    }
    await network.cut();
    const writing = busy.map(({ guest }) => guest.write(8, 9));
    // Not because it has said nothing for a minute, which only a disk with something under way notices.
    for (const { server } of all)
      expect(await readUntil(server.stderr, "waits for its NBD server: ")).not.toContain("nothing came");
    // What it says with its last breath does not reach us either.
    await former[Symbol.asyncDispose]();
    await network.join();
    await using _ = await listen();
    expect(await Promise.all(writing)).toEqual([0, 0]);
    for (const { guest } of busy) expect(await guest.read(8)).toEqual(new Uint8Array(4096).fill(9));
    for (const { guest } of idle) expect(await guest.read(8)).toEqual(new Uint8Array(4096).fill(7));
    for (const { server, guest } of all) expect(await detach(server, guest)).toBe(143);
    await disks.close();
  },
  PATIENCE_MS,
);
