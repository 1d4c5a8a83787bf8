// kill -9, of either side, at any moment: what is left is noticed and taken back, nobody hangs, the other
// disk of the same host does not notice, and whoever starts next works.
import { afterEach, beforeEach, expect, test } from "bun:test";
import { readdirSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { DEFAULT_KIND, backendDir } from "../../src/blkback/address.ts";
import { readStats } from "../../src/blkback/stats/stats.ts";
import { toDomid } from "../../src/core/types.ts";
import { SimHost } from "../../src/sim/host.ts";
import { Xenstore } from "../../src/xenstore/client.ts";
import { HandmadeGuest } from "../sim/blk-guest.ts";
import { pattern } from "../sim/blk-harness.ts";
import { runXentool, spawnXentool } from "./executable.ts";
import { readUntil } from "../support/process.ts";
import { removeDirectory, temporaryDirectory } from "../support/temporary.ts";
import { chosenSeed, Random } from "../support/random.ts";

const IMAGE_BYTES = 4 << 20;
const ROUNDS = 8;
const XVDB = 51728;

let host: SimHost;
let dir: string;
let env: Record<string, string>;
const children: ReturnType<typeof spawnXentool>[] = [];

function start(args: readonly string[], domid = 0): ReturnType<typeof spawnXentool> {
  const child = spawnXentool(args, { env: { ...env, XENTOOL_DOMID: String(domid) } });
  children.push(child);
  return child;
}

async function serve(
  name: string,
  domid: number,
  ...options: string[]
): Promise<ReturnType<typeof spawnXentool>> {
  const at = ["--domid", String(domid), "--vdev", "xvdb"];
  const server = start(["blkback", "serve", join(dir, name), ...at, ...options]);
  await readUntil(server.stderr, "offering");
  return server;
}

beforeEach(async () => {
  host = await SimHost.start();
  dir = temporaryDirectory();
  for (const name of ["a.img", "b.img"]) writeFileSync(join(dir, name), pattern(IMAGE_BYTES));
  env = { XENTOOL_SIM: host.dir };
});

afterEach(async () => {
  for (const child of children.splice(0)) {
    child.kill("SIGKILL");
    await child.exited;
  }
  expect(await host.settle()).toEqual([]);
  await host.stop();
  removeDirectory(dir);
});

function expectPage(read: Uint8Array | number, sector: number): void {
  const expected = Buffer.from(pattern(IMAGE_BYTES)).subarray(sector * 512, sector * 512 + 4096);
  expect(Buffer.from(read as Uint8Array).equals(expected)).toBe(true);
}

test("a server that is killed: the guest waits, the next server answers what is on the ring", async () => {
  const at = { backend: toDomid(0), frontend: toDomid(1), kind: DEFAULT_KIND, devid: XVDB };
  const neighbourAt = { ...at, frontend: toDomid(2) };
  let server = await serve("a.img", 1);
  await serve("b.img", 2);
  const guest = await HandmadeGuest.start(host, at);
  const neighbour = await HandmadeGuest.start(host, neighbourAt);
  await guest.connect();
  await neighbour.connect();
  for (let round = 0; round < 3; round++) {
    expectPage(await guest.read(round * 8), round * 8);
    server.kill("SIGKILL");
    await server.exited;
    const stats = await runXentool(["blkback", "stats", "--domid", "1", "--json"], { env });
    expect((JSON.parse(stats.stdout) as { alive: boolean }[])[0]?.alive).toBe(false);
    expectPage(await neighbour.read(64), 64);
    const pending = guest.read(800 + round * 8);
    server = await serve("a.img", 1);
    expectPage(await pending, 800 + round * 8);
  }
  // The last successor removes what the first one made.
  server.kill("SIGTERM");
  await guest.untilBackend(5);
  await guest.setState(6);
  expect(await server.exited).toBe(143);
  guest.close();
  neighbour.close();
  const list = await runXentool(["blkback", "list", "--json"], { env });
  expect((JSON.parse(list.stdout) as { frontend: number }[]).map(({ frontend }) => frontend)).toEqual([2]);
});

test.each([
  ["destroy", 0],
  ["force-close", 6], // nobody closes the backend
])(
  "%s removes what a killed server left, but neither a live one's nor another kind's",
  async (step, status) => {
    const at = { backend: toDomid(0), frontend: toDomid(1), kind: DEFAULT_KIND, devid: XVDB };
    const server = await serve("a.img", 1);
    await serve("b.img", 2);
    const guest = await HandmadeGuest.start(host, at);
    await guest.connect();
    const files = (domid: number): string[] =>
      readdirSync(join(host.dir, "blkback")).filter((name) => name.startsWith(`${domid}-`));
    const endings = ["journal", "lock", "stats"].map((it) => `1-${XVDB}.${it}`);
    const neighbours = files(2);
    const blkback = (action: string, ...args: string[]): ReturnType<typeof runXentool> =>
      runXentool(["blkback", action, "--vdev", "xvdb", ...args], { env });
    server.kill("SIGKILL");
    await server.exited;
    await blkback("destroy", "--domid", "1", "--kind", "vbd");
    expect(files(1).toSorted()).toEqual(endings);
    expect((await blkback(step, "--domid", "1", "--timeout", "0.2")).status).toBe(status);
    expect(files(1)).toEqual([]);
    expect((await blkback("stats", "--domid", "1")).stdout).toBe("no disk xvdb of domain 1 is served here\n");
    await blkback("destroy", "--domid", "3");
    expect(files(2)).toEqual(neighbours);
    guest.close();
  },
);

test("destroy leaves the files of a live server to that server", async () => {
  const server = await serve("a.img", 1);
  const destroyed = runXentool(["blkback", "destroy", "--domid", "1", "--vdev", "xvdb"], { env });
  expect((await destroyed).status).toBe(0);
  expect(await server.exited).toBe(0);
  expect(readdirSync(join(host.dir, "blkback"))).toEqual([]);
});

test("a guest that makes a new ring while nobody serves is not given what it asked for on the old one", async () => {
  const at = { backend: toDomid(0), frontend: toDomid(1), kind: DEFAULT_KIND, devid: XVDB };
  const first = await serve("a.img", 1, "--filter", "delay:ms=600000");
  const guest = await HandmadeGuest.start(host, at);
  await guest.connect();
  const lost = guest.write(16, 0xee);
  const stats = join(host.dir, "blkback");
  while (readStats(stats, 1, XVDB).ringUtilisation.length === 0) await Bun.sleep(1);
  first.kill("SIGKILL");
  await first.exited;
  for (const state of [5, 6, 1]) await guest.setState(state);
  await guest.offerRing(); // the same page and reference, as after kexec
  await guest.setState(4);
  await lost;
  const pending = guest.read(24);
  await serve("a.img", 1);
  expectPage(await pending, 24);
  expectPage(await guest.read(16), 16);
  guest.close();
});

test("frontends that are killed in the middle of it: the server serves the next one", async () => {
  const seed = chosenSeed();
  console.log(`frontends killed: SEED=${seed}`);
  const random = new Random(seed);
  const server = await serve("a.img", 1);
  for (let round = 0; round < ROUNDS; round++) {
    const front = start(["blkfront", "bench", "--vdev", "xvdb", "--rw", "randrw", "--runtime", "20"], 1);
    await Bun.sleep(30 + random.below(400));
    front.kill("SIGKILL");
    await front.exited;
  }
  const last = await runXentool(
    ["blkfront", "bench", "--vdev", "xvdb", "--rw", "randread", "--runtime", "0.2", "--json"],
    {
      env: { ...env, XENTOOL_DOMID: "1" },
    },
  );
  expect({ status: last.status, stderr: last.stderr }).toEqual({ status: 0, stderr: "" });
  server.kill("SIGTERM");
  expect(await server.exited).toBe(143);
}, 60_000);

test("both at once, and the domain with them", async () => {
  const server = await serve("a.img", 1);
  const front = start(["blkfront", "bench", "--vdev", "xvdb", "--rw", "randwrite", "--runtime", "20"], 1);
  const dom0 = host.platform(0);
  const store = await Xenstore.connect(dom0);
  const at = { backend: toDomid(0), frontend: toDomid(1), kind: DEFAULT_KIND, devid: XVDB };
  await store.waitFor(`${backendDir(at)}/state`, (state) => state === "4", { timeoutMs: 10_000 });
  front.kill("SIGKILL");
  await host.destroyDomain(1);
  expect(await server.exited).toBe(0);
  expect(await store.exists(backendDir(at))).toBe(false);
  store.close();
  dom0.close();
});
