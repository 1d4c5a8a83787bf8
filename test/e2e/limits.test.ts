// Limits as an administrator sets and sees them: at the start, while the disk is in use, and with what does not exist.
import { afterEach, beforeEach, expect, test } from "bun:test";
import { join } from "node:path";
import { readStats } from "../../src/blkback/stats/stats.ts";
import type { SimHost } from "../../src/sim/host.ts";
import { HandmadeGuest, type PageRequest } from "../sim/blk-guest.ts";
import { runXentool, spawnXentool } from "./executable.ts";
import { readUntil, type Finished } from "../support/process.ts";
import { diskAddress } from "../sim/disk-world.ts";
import { DiskHost } from "./disk-host.ts";

const DEVICE = diskAddress(1);
const READS: readonly PageRequest[] = Array.from({ length: 31 }, (_, i) => ({
  operation: 0,
  sector: i * 16,
}));

let ground: DiskHost;
let dir: string;
let host: SimHost;
let env: DiskHost["env"];

beforeEach(async () => {
  ground = await DiskHost.start();
  ({ dir, host, env } = ground);
});
afterEach(() => ground.close());

const limit = (...args: string[]): Promise<Finished> =>
  runXentool(["blkback", "limit", "--domid", "1", "--vdev", "xvdb", ...args], { env });

/** What a limit's JSON says, without the zeros. */
function given({ stdout }: Finished): unknown {
  return JSON.parse(stdout, (_key, value: unknown) => (value === 0 ? undefined : value));
}

test("serve takes limits, limit changes them while requests wait, and stats and list show them", async () => {
  const server = spawnXentool(
    ["blkback", "serve", join(dir, "a.img"), "--domid", "1", "--vdev", "xvdb", "--bandwidth", "4k"],
    { env },
  );
  await readUntil(server.stderr, "offering");
  const guest = await HandmadeGuest.start(host, DEVICE);
  await guest.connect();
  const answers = guest.submit(READS);
  expect(await limit()).toEqual({ status: 0, stdout: "xvdb of domain 1: 4 KiB/s\n", stderr: "" });
  const changed = await limit(
    "--iops",
    "read:100000,write:2000,burst=500000",
    "--bandwidth",
    "none",
    "--json",
  );
  expect(given(changed)).toEqual({
    domid: 1,
    vdev: "xvdb",
    iops: { read: 100_000, write: 2000, burst: 500_000 },
    bandwidth: {},
  });
  expect(await answers).toEqual(READS.map(() => 0));
  const text = "read 100 000 IOPS, write 2 000 IOPS, bursts of 500 000";
  expect((await limit()).stdout).toBe(`xvdb of domain 1: ${text}\n`);
  expect((await runXentool(["blkback", "stats"], { env })).stdout).toContain(`limited to ${text}`);
  expect((await runXentool(["blkback", "list"], { env })).stdout).toContain("100 000 IOPS");
  expect((await limit("--iops", "none")).stdout).toBe("xvdb of domain 1: no limit\n");
  server.kill("SIGTERM");
  await guest.untilBackend(5);
  await guest.setState(6);
  expect(await server.exited).toBe(143);
  guest.close();
});

test("after kill -9 the next server answers what was held back, and keeps the limit unless it is told another", async () => {
  const serve = (...more: string[]) =>
    spawnXentool(["blkback", "serve", join(dir, "a.img"), "--domid", "1", "--vdev", "xvdb", ...more], {
      env,
    });
  const server = serve("--bandwidth", "4k");
  await readUntil(server.stderr, "offering");
  const guest = await HandmadeGuest.start(host, DEVICE);
  await guest.connect();
  const answers = guest.submit(READS);
  while (readStats(join(host.dir, "blkback"), 1, DEVICE.devid).held < 20) await Bun.sleep(1);
  server.kill("SIGKILL");
  await server.exited;
  const second = serve();
  await readUntil(second.stderr, "connected");
  expect((await limit()).stdout).toBe("xvdb of domain 1: 4 KiB/s\n");
  second.kill("SIGKILL");
  await second.exited;
  const third = serve("--bandwidth", "none");
  expect(await answers).toEqual(READS.map(() => 0));
  expect((await limit()).stdout).toBe("xvdb of domain 1: no limit\n");
  third.kill("SIGTERM");
  await guest.untilBackend(5);
  await guest.setState(6);
  expect(await third.exited).toBe(143);
  guest.close();
});

test("threads share a limit, and a limit that is lifted lets all of them go on", async () => {
  const options = ["--max-queues", "2", "--threads", "2", "--iops", "1"];
  const server = spawnXentool(
    ["blkback", "serve", join(dir, "a.img"), "--domid", "1", "--vdev", "xvdb", ...options],
    { env },
  );
  await readUntil(server.stderr, "offering");
  const guest = await HandmadeGuest.start(host, DEVICE);
  await guest.connect(2);
  const answers = [0, 1].map((queue) => guest.submit(READS, queue));
  // In a second, one passes on one of the threads; a few seconds may have gone by.
  while (readStats(join(host.dir, "blkback"), 1, DEVICE.devid).held < 2 * READS.length - 5)
    await Bun.sleep(1);
  expect((await limit("--iops", "none")).stdout).toBe("xvdb of domain 1: no limit\n");
  expect(await Promise.all(answers)).toEqual([READS.map(() => 0), READS.map(() => 0)]);
  const { queues, held } = readStats(join(host.dir, "blkback"), 1, DEVICE.devid);
  expect([queues.map(({ reads }) => reads), held]).toEqual([[31, 31], 0]);
  server.kill("SIGTERM");
  await guest.untilBackend(5);
  await guest.setState(6);
  expect(await server.exited).toBe(143);
  guest.close();
});

test("watch limits every disk that has no limits of its own", async () => {
  const server = spawnXentool(["blkback", "watch", "--kind", "qdisk", "--any-script", "--iops", "70"], {
    env,
  });
  await readUntil(server.stderr, "serving");
  const params = join(dir, "a.img");
  await runXentool(["blkback", "create", "--domid", "1", "--vdev", "xvdb", "--params", params], { env });
  const guest = await HandmadeGuest.start(host, DEVICE);
  await guest.connect();
  expect((await limit()).stdout).toBe("xvdb of domain 1: 70 IOPS\n");
  expect((await limit("--iops", "none")).stdout).toBe("xvdb of domain 1: no limit\n");
  await guest.setState(6);
  await guest.untilBackend(6);
  guest.close();
  server.kill("SIGTERM");
  expect(await server.exited).toBe(143);
  await runXentool(["blkback", "destroy", "--domid", "1", "--vdev", "xvdb"], { env });
});

test.each<[string, string[], number, string | RegExp]>([
  ["no limit", ["--iops", "fast"], 2, /^xentool: --iops: "fast" is not a limit such as 500, read:1000/],
  ["no size", ["--bandwidth", "10MB"], 2, /^xentool: --bandwidth: "10MB" is not a limit such as 10M, /],
  [
    "no such disk",
    ["--iops", "5"],
    3,
    "xentool: there is no xvdb of domain 1 with a backend of kind qdisk\n",
  ],
  ["not served", [], 3, "xentool: there is no xvdb of domain 1 with a backend of kind qdisk\n"],
])("%s", async (_what, args, status, words) => {
  const outcome = await limit(...args);
  expect({ ...outcome, stdout: outcome.stdout }).toMatchObject({ status, stdout: "" });
  if (typeof words === "string") expect(outcome.stderr).toBe(words);
  else expect(outcome.stderr).toMatch(words);
});

test("a disk that nobody serves says so", async () => {
  await runXentool(["blkback", "create", "--domid", "1", "--vdev", "xvdb"], { env });
  const late = await limit("--iops", "5", "--timeout", "0.1");
  expect(late.status).toBe(6);
  expect(late.stderr).toContain("nobody has answered; its next server will obey");
  await runXentool(["blkback", "destroy", "--domid", "1", "--vdev", "xvdb"], { env });
});
