// The host of an NBD server vanishes: no end of a connection reaches us, and no error. A disk with something under way
// notices, and one that is idle, too; both wait, and go on when the host is back, with a server that knows nothing of
// the connections before. With the kernel's TCP, in a network of the test's own, and with the times that users get.
import { expect, test } from "bun:test";
import { mkdirSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { parseVdev } from "../../src/protocol/blkif.ts";
import { HandmadeGuest } from "../sim/blk-guest.ts";
import { diskAddress } from "../sim/disk-world.ts";
import { NbdServer } from "../support/nbd-servers.ts";
import { readUntil, start, type Child } from "../support/process.ts";
import { detach, DiskHost } from "./disk-host.ts";
import { executable } from "./executable.ts";
import { NetworkNamespace } from "./network-namespace.ts";

/** Twice the half minute that it takes, with a busy machine in mind. */
const PATIENCE_MS = 120_000;
const PORT = 10809;
const SIZE = 1 << 20;

interface Disk {
  readonly server: Child;
  readonly guest: HandmadeGuest;
}

test(
  "a host that vanishes is noticed by busy and by idle disks, and waited for",
  async () => {
    await using network = await NetworkNamespace.start();
    const disks = await DiskHost.start({});
    const images = join(disks.dir, "images");
    mkdirSync(images);
    for (const name of ["busy", "idle"]) writeFileSync(join(images, name), new Uint8Array(SIZE));
    const listen = (): Promise<NbdServer> =>
      NbdServer.start((dir) =>
        network.inside([
          "nbdkit",
          "--foreground",
          "--ipaddr=127.0.0.1",
          `--port=${PORT}`,
          `--pidfile=${join(dir, "pid")}`,
          "file",
          `dir=${images}`,
        ]),
      );
    const connect = async (name: string, vdev: string): Promise<Disk> => {
      const uri = `nbd://127.0.0.1:${PORT}/${name}`;
      const args = ["-v", "blkback", "serve", uri, "--domid", "1", "--vdev", vdev];
      const env = { ...disks.env, PATH: process.env["PATH"] };
      const server = start(network.inside([executable, ...args]), { env });
      await readUntil(server.stderr, "offering");
      const guest = await HandmadeGuest.start(disks.host, diskAddress(1, parseVdev(vdev)));
      guest.patienceMs = PATIENCE_MS;
      await guest.connect();
      return { server, guest };
    };
    const former = await listen();
    const busy = await connect("busy", "xvdb");
    const idle = await connect("idle", "xvdc");
    for (const { guest } of [busy, idle]) {
      expect(await guest.write(8, 7)).toBe(0);
      expect(await guest.flush()).toBe(0);
    }
    await network.cut();
    const writing = busy.guest.write(8, 9);
    for (const { server } of [busy, idle]) await readUntil(server.stderr, "waits for its NBD server");
    // What it says with its last breath does not reach us either.
    await former[Symbol.asyncDispose]();
    await network.join();
    await using _ = await listen();
    expect(await writing).toBe(0);
    expect(await busy.guest.read(8)).toEqual(new Uint8Array(4096).fill(9));
    expect(await idle.guest.read(8)).toEqual(new Uint8Array(4096).fill(7));
    for (const { server, guest } of [busy, idle]) expect(await detach(server, guest)).toBe(143);
    await disks.close();
  },
  PATIENCE_MS,
);
