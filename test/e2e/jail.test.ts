// The jail of `blkback serve`, probed from inside by a library that is loaded into the executable: what every thread
// has given up, what it gets when it asks, and what becomes of a process that tries to break out.
import { afterEach, beforeEach, expect, test } from "bun:test";
import { truncateSync } from "node:fs";
import { join } from "node:path";
import { DEFAULT_KIND } from "../../src/blkback/address.ts";
import { toDomid } from "../../src/core/types.ts";
import { HandmadeGuest } from "../sim/blk-guest.ts";
import { expectJailed, expectRefused, JailProbe, poke, threadsOf } from "../support/jail-probe.ts";
import { readUntil } from "../support/process.ts";
import { DiskHost } from "./disk-host.ts";
import { runXentool, spawnXentool } from "./executable.ts";

const XVDB = 51728;
const AT = { backend: toDomid(0), frontend: toDomid(1), kind: DEFAULT_KIND, devid: XVDB };
const LOG = "error: thread";

let disks: DiskHost;
let probe: JailProbe;
const children: ReturnType<typeof spawnXentool>[] = [];

beforeEach(async () => {
  disks = await DiskHost.start();
  probe = new JailProbe(join(disks.dir, "answers"));
});

afterEach(async () => {
  for (const child of children.splice(0)) {
    child.kill("SIGKILL");
    await child.exited;
  }
  await disks.close();
});

async function serve(...options: string[]): Promise<ReturnType<typeof spawnXentool>> {
  const args = ["blkback", "serve", join(disks.dir, "a.img"), "--domid", "1", "--vdev", "xvdb", ...options];
  const env = { ...disks.env, ...probe.env };
  const server = spawnXentool(args, { env });
  children.push(server);
  await readUntil(server.stderr, "offering");
  return server;
}

async function connectedGuest(queues = 1): Promise<HandmadeGuest> {
  const guest = await HandmadeGuest.start(disks.host, AT);
  await guest.connect(queues);
  return guest;
}

test("every thread has no capability, gains no privilege, and has its calls filtered", async () => {
  const server = await serve("--jail", "strict", "--max-queues", "2", "--threads", "2");
  const guest = await connectedGuest(2);
  expectJailed(server.pid, 2);
  guest.close();
});

test("every thread asks for what it should not get, and gets nothing", async () => {
  const server = await serve("--max-queues", "2", "--threads", "2");
  const guest = await connectedGuest(2);
  expectRefused(await probe.ask(server.pid), 2);
  for (const queue of [0, 1]) {
    expect(await guest.read(0, queue)).toEqual(new Uint8Array(4096));
    // Each wakes the other one for its turn.
    expect(await guest.flush(queue)).toBe(0);
  }
  guest.close();
});

test("from inside, a guest connects again, the disk grows, and its limits change", async () => {
  await serve("--jail", "strict");
  const at = ["--domid", "1", "--vdev", "xvdb"];
  const guest = { env: { ...disks.env, XENTOOL_DOMID: "1" } };
  for (let round = 0; round < 2; round++) {
    const bench = await runXentool(
      ["blkfront", "bench", "--vdev", "xvdb", "--runtime", "0.1", "--json"],
      guest,
    );
    expect([bench.status, bench.stderr]).toEqual([0, ""]);
    if (round === 1) break;
    truncateSync(join(disks.dir, "a.img"), 2 << 20);
    const resize = await runXentool(["blkback", "resize", ...at], { env: disks.env });
    expect(resize.stdout).toContain("4096");
    expect((await runXentool(["blkback", "limit", ...at, "--iops", "1000"], { env: disks.env })).status).toBe(
      0,
    );
  }
});

test.each(["Worker", "xentool"])(
  "breaking out of thread %s ends that process alone, with a word in the log",
  async (name) => {
    const server = await serve();
    const guest = await connectedGuest();
    expect(await poke(server.pid, "SIGVTALRM", name)).toBe(1);
    expect(await readUntil(server.stderr, LOG)).toContain(`"${name}" asked for execve`);
    await server.exited;
    expect(server.signalCode).toBe("SIGSYS");
    await serve();
    expect(await guest.read(0)).toEqual(new Uint8Array(4096));
    guest.close();
  },
);

test("--jail off gives up nothing", async () => {
  const server = await serve("--jail", "off");
  for (const status of threadsOf(server.pid)) expect(status).toMatch(/^Seccomp:\t0$/m);
});
