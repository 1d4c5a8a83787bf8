// What people and scripts see of the disks that are served: rates while they watch, and metrics.
import { afterEach, beforeEach, describe, expect, test } from "bun:test";
import { existsSync } from "node:fs";
import { join } from "node:path";
import type { SimHost } from "../../src/sim/host.ts";
import { HandmadeGuest } from "../sim/blk-guest.ts";
import { executable, runXentool, spawnXentool } from "./executable.ts";
import { readUntil } from "../support/process.ts";
import { diskAddress } from "../sim/disk-world.ts";
import { DiskHost } from "./disk-host.ts";

const DEVICE = diskAddress(1);

let ground: DiskHost;
let dir: string;
let host: SimHost;
let env: DiskHost["env"];
let guest: HandmadeGuest;
let server: ReturnType<typeof spawnXentool>;

beforeEach(async () => {
  ground = await DiskHost.start();
  ({ dir, host, env } = ground);
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
  await ground.close();
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

test.each(["blkback list", "xsring inspect --domid 1"])(
  "%s on a terminal of 40 columns: no line is wider",
  async (command) => {
    const line = `stty cols 40 rows 30; "${executable}" ${command}`;
    const terminal = Bun.spawn(["script", "-qec", line, "/dev/null"], {
      env: { ...process.env, ...env, TERM: "xterm", NO_COLOR: "1" },
      stdout: "pipe",
    });
    const lines = (await new Response(terminal.stdout).text()).split("\r\n");
    expect(await terminal.exited).toBe(0);
    expect(lines.length).toBeGreaterThan(3);
    expect(Math.max(...lines.map((it) => it.length))).toBeLessThanOrEqual(40);
  },
);

test("stats --json names each disk as other commands do", async () => {
  const { stdout } = await runXentool(["blkback", "stats", "--json"], { env });
  expect(JSON.parse(stdout)).toMatchObject([{ domid: 1, vdev: "xvdb", devid: 51728 }]);
});

test("stats --interval wants a time that makes sense", async () => {
  const { status, stderr } = await runXentool(["blkback", "stats", "--watch", "--interval", "0"], { env });
  expect([status, stderr]).toEqual([2, "xentool: --interval must be a number from 0.1 to 86400, not 0\n"]);
});

test("stats --prometheus prints the metrics of the selected disks", async () => {
  await guest.read(0);
  const all = await runXentool(["blkback", "stats", "--prometheus"], { env });
  expect(all.stdout).toContain('xentool_blkback_requests_total{domid="1",vdev="xvdb",operation="read"} 1\n');
  const none = await runXentool(["blkback", "stats", "--prometheus", "--domid", "7"], { env });
  expect(none).toEqual({ status: 0, stdout: "", stderr: "" });
  const both = await runXentool(["blkback", "stats", "--prometheus", "--json"], { env });
  expect(both.status).toBe(2);
});

describe("watch --metrics", () => {
  const watching = ["blkback", "watch", "--kind", "vbd", "--metrics"];

  /** The address that a watch on stderr names, once it serves. */
  async function served(watch: ReturnType<typeof spawnXentool>): Promise<string> {
    const text = await readUntil(watch.stderr, "serving the disks");
    return /metrics at (.*)/.exec(text)?.[1] ?? "";
  }

  async function stop(watch: ReturnType<typeof spawnXentool>): Promise<void> {
    watch.kill("SIGTERM");
    expect(await watch.exited).toBe(143);
  }

  test("answers at a port", async () => {
    const watch = spawnXentool([...watching, "127.0.0.1:0"], { env });
    const url = await served(watch);
    expect(url).toMatch(/^http:\/\/127\.0\.0\.1:[1-9]\d*\/metrics$/);
    const page = await fetch(url);
    expect([page.status, page.headers.get("content-type")]).toEqual([
      200,
      "text/plain; version=0.0.4; charset=utf-8",
    ]);
    expect(await page.text()).toContain('xentool_blkback_up{domid="1",vdev="xvdb"} 1\n');
    expect((await fetch(new URL("/", url))).status).toBe(404);
    expect((await fetch(url, { method: "DELETE" })).status).toBe(405);
    await stop(watch);
  });

  test("answers at a unix socket, which it replaces when its server was killed, and removes", async () => {
    const path = join(dir, "metrics.sock");
    const killed = spawnXentool([...watching, `unix:${path}`], { env });
    expect(await served(killed)).toBe(`unix:${path}`);
    killed.kill("SIGKILL");
    await killed.exited;
    const watch = spawnXentool([...watching, `unix:${path}`], { env });
    await served(watch);
    const page = await fetch("http://host/metrics", { unix: path });
    expect(await page.text()).toContain("xentool_blkback_connected");
    const second = await runXentool([...watching, `unix:${path}`], { env });
    expect([second.status, second.stderr]).toEqual([3, expect.stringContaining(`cannot listen at ${path}`)]);
    await stop(watch);
    expect(existsSync(path)).toBe(false);
  });

  test.each(["9167", "host:99999", "unix:", "a:b:1"])("does not take %s for an address", async (address) => {
    const { status, stderr } = await runXentool([...watching, address], { env });
    expect([status, stderr]).toEqual([2, `xentool: --metrics wants HOST:PORT, not ${address}\n`]);
  });
});
