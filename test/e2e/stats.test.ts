// What people and scripts see of the disks that are served: rates while they watch, and metrics.
import { afterEach, beforeEach, expect, test } from "bun:test";
import { mkdtempSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { DEFAULT_KIND } from "../../src/blkback/address.ts";
import { toDomid } from "../../src/core/types.ts";
import { parseVdev } from "../../src/protocol/blkif.ts";
import { SimHost } from "../../src/sim/host.ts";
import { HandmadeGuest } from "../sim/blk-guest.ts";
import { readUntil, runXentool, spawnXentool } from "./executable.ts";

const DEVICE = {
  backend: toDomid(0),
  frontend: toDomid(1),
  kind: DEFAULT_KIND,
  devid: Number(parseVdev("xvdb")),
};

let dir: string;
let host: SimHost;
let env: Record<string, string>;
let guest: HandmadeGuest;
let server: ReturnType<typeof spawnXentool>;

beforeEach(async () => {
  dir = mkdtempSync(join(tmpdir(), "xentool-e2e-"));
  writeFileSync(join(dir, "a.img"), new Uint8Array(1 << 20));
  host = await SimHost.start();
  env = { XENTOOL_SIM: host.dir };
  const args = ["blkback", "serve", join(dir, "a.img"), "--domid", "1", "--vdev", "xvdb"];
  server = spawnXentool(args, { env });
  await readUntil(server.stderr, "offering");
  guest = await HandmadeGuest.start(host, DEVICE);
  await guest.connect();
});
afterEach(async () => {
  server.kill("SIGTERM");
  await guest.untilBackend(5);
  await guest.setState(6);
  await server.exited;
  guest.close();
  const left = await host.settle();
  await host.stop();
  rmSync(dir, { recursive: true });
  expect(left).toEqual([]);
});

test("stats --watch: titles, and a line for each disk and interval, in 80 columns", async () => {
  const watching = spawnXentool(["blkback", "stats", "--watch", "--interval", "0.1"], { env });
  const text = await readUntil(watching.stdout, "1/xvdb");
  watching.kill("SIGTERM");
  expect(await watching.exited).toBe(143);
  const [titles = "", row = ""] = text.split("\n");
  expect(titles.split(/ {2,}| (?=MiB|writes|queue|err)/)).toEqual([
    "time",
    "disk",
    "reads/s",
    "MiB/s",
    "writes/s",
    "MiB/s",
    "median",
    "99 %",
    "queue",
    "err/s",
  ]);
  expect(row).toMatch(/^\d\d:\d\d:\d\d 1\/xvdb +0 +0\.0 +0 +0\.0 +0 +0$/);
  expect(Math.max(titles.length, row.length)).toBe(80);
});

test("stats --interval wants a time that makes sense", async () => {
  const { status, stderr } = await runXentool(["blkback", "stats", "--watch", "--interval", "0"], { env });
  expect([status, stderr]).toEqual([2, "xentool: --interval must be a number from 0.1 to 86400, not 0\n"]);
});
