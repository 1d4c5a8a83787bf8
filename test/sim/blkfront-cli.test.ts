// `xentool blkfront` as people type it: exit codes, JSON, signals, and what a killed one leaves (nothing).
import { afterEach, beforeEach, describe, expect, test } from "bun:test";
import { existsSync } from "node:fs";
import { join } from "node:path";
import { readStats } from "../../src/blkback/stats/stats.ts";
import { ServedDisk, type DiskOptions } from "./blkfront-harness.ts";
import { RawClient, READ } from "./nbd-raw-client.ts";
import { finished, readUntil, start, type Child, type Finished } from "../support/process.ts";
import { openDescriptors } from "../support/descriptors.ts";

const XENTOOL = new URL("../../cmd/xentool.ts", import.meta.url).pathname;

let disk: ServedDisk;
const children: Bun.Subprocess[] = [];

function spawn(...args: string[]): Child {
  const child = start([process.execPath, XENTOOL, "blkfront", ...args], {
    env: { ...process.env, XENTOOL_SIM: disk.host.dir, XENTOOL_DOMID: "1", NO_COLOR: "1" },
  });
  children.push(child);
  return child;
}

const run = (...args: string[]): Promise<Finished> => finished(spawn(...args));

async function serve(options: DiskOptions = {}): Promise<void> {
  disk = await ServedDisk.start(options);
}

afterEach(async () => {
  for (const child of children.splice(0)) {
    child.kill("SIGKILL");
    await child.exited;
  }
  await disk.close();
});

describe("bench", () => {
  test("--queues: as many as the backend offers, and a word if that is fewer", async () => {
    await serve({ offer: { maxQueues: 2 } });
    const bench = ["bench", "--vdev", "xvdb", "--runtime", "0.1", "--json", "--queues"];
    const four = await run(...bench, "4");
    expect([four.status, JSON.parse(four.stdout)]).toMatchObject([0, { queues: 2, errors: 0 }]);
    expect(four.stderr).toContain("4 queues were wanted, but the backend offers 2");
    const two = await run(...bench, "2");
    expect([two.status, two.stderr, JSON.parse(two.stdout)]).toMatchObject([0, "", { queues: 2, errors: 0 }]);
    expect(await run(...bench, "17")).toMatchObject({ status: 2 });
  });

  test.each([
    ["randread", "4k", 32],
    ["write", "1M", 8],
    ["randrw", "16k", 4],
  ])("--rw %s --bs %s --iodepth %d, as JSON", async (rw, bs, iodepth) => {
    await serve();
    const before = disk.image();
    const shape = ["--rw", rw, "--bs", bs, "--iodepth", String(iodepth)];
    const { status, stdout, stderr } = await run(
      "bench",
      "--vdev",
      "xvdb",
      ...shape,
      "--runtime",
      "0.2",
      "--json",
    );
    expect({ status, stderr }).toEqual({ status: 0, stderr: "" });
    const result = JSON.parse(stdout) as Record<string, number> & { latencyUs: Record<string, number> };
    expect(result).toMatchObject({ vdev: "xvdb", pattern: rw, depth: iodepth, errors: 0 });
    const { reads, writes, bytes, blockBytes, elapsedMs, iops } = result as Record<string, number>;
    expect(bytes).toBe((reads + writes) * blockBytes);
    expect(elapsedMs).toBeGreaterThanOrEqual(200);
    expect(iops).toBeGreaterThan(0);
    const { min, p50, p99, max } = result.latencyUs;
    expect([min, p50, p99, max]).toEqual([min, p50, p99, max].toSorted((a, b) => a - b));
    expect(disk.image().equals(before)).toBe(rw === "randread");
  });

  test("--ramp: what is before the measurement is told apart from it", async () => {
    await serve();
    const times = ["--ramp", "0.2", "--runtime", "0.1"];
    const { status, stdout } = await run("bench", "--vdev", "xvdb", ...times, "--json");
    const result = JSON.parse(stdout) as Record<string, number>;
    expect({ status, result }).toMatchObject({
      status: 0,
      result: { rampMs: 200, runtimeMs: 100, errors: 0 },
    });
    expect(result["rampBytes"]).toBeGreaterThan(0);
    expect(result["bytes"]).toBe(((result["reads"] ?? 0) + (result["writes"] ?? 0)) * 4096);
    expect(result["elapsedMs"]).toBeGreaterThanOrEqual(100);
  });

  test("in words", async () => {
    await serve();
    const { status, stdout } = await run("bench", "--vdev", "xvdb", "--runtime", "0.1");
    expect(status).toBe(0);
    expect(stdout).toMatch(/^xvdb: randread, 4 KiB, 32 at a time, [0-9.]+ s\n {2}[0-9 ]+ IOPS, /);
  });

  test.each([
    [["--bs", "4q"], 2, "is not a size"],
    [["--bs", "100"], 2, "multiple of 512"],
    [["--bs", "100M"], 2, "larger than the disk"],
    [["--rw", "write"], 2, "read-only"],
    [["--iodepth", "0"], 2, "--iodepth"],
    [["--ramp", "-1"], 2, "--ramp"],
    [["--ring-page-order", "5"], 2, "--ring-page-order"],
    [["--vdev", "nonsense"], 2, "is not a disk name"],
    [["--vdev", "xvdz", "--timeout", "0.2"], 6, "is a backend offering it?"],
  ])("%j ends with status %d", async (args, expected, words) => {
    await serve({ readOnly: true });
    const device = args.includes("--vdev") ? [] : ["--vdev", "xvdb"];
    const { status, stdout, stderr } = await run("bench", "--runtime", "0.1", ...device, ...args);
    expect({ status, stdout }).toEqual({ status: expected, stdout: "" });
    expect(stderr).toContain(words);
  });

  test("a missing disk of domain 0 recalls XENTOOL_DOMID", async () => {
    await serve();
    const args = ["blkfront", "bench", "--vdev", "xvdz", "--timeout", "0.2"];
    const env = { PATH: process.env["PATH"], XENTOOL_SIM: disk.host.dir };
    const { status, stderr } = await finished(start([process.execPath, XENTOOL, ...args], { env }));
    expect(status).toBe(6);
    expect(stderr).toBe(
      "xentool: there is no xvdz of domain 0; is a backend offering it? We are domain 0 unless XENTOOL_DOMID says otherwise\n",
    );
  });

  test("SIGINT ends it early, with what was measured", async () => {
    await serve();
    const child = spawn("bench", "--vdev", "xvdb", "--runtime", "60", "--json", "-v");
    await readUntil(child.stderr, "Connected");
    // Its worker may not have begun to measure.
    const { frontend, devid } = disk.address;
    while (readStats(join(disk.dir, "stats"), frontend, devid).requests === 0)
      await new Promise(setImmediate);
    child.kill("SIGINT");
    const result = JSON.parse(await child.stdout.text()) as { elapsedMs: number };
    expect(result.elapsedMs).toBeLessThan(60_000);
    expect(await child.exited).toBe(130);
  });
});

describe("nbd", () => {
  beforeEach(() => serve());

  test("serves until SIGTERM, and removes its socket", async () => {
    const socket = join(disk.dir, "cli.sock");
    const child = spawn("nbd", "--vdev", "xvdb", "--socket", socket, "--json");
    const reader = child.stdout.getReader();
    const first = JSON.parse(Buffer.from((await reader.read()).value as Uint8Array).toString()) as object;
    expect(first).toMatchObject({
      event: "serving",
      vdev: "xvdb",
      socket,
      sectors512: 8192,
      readOnly: false,
    });
    const client = await RawClient.open(socket, true);
    client.request(READ, 0n, 0, 4096);
    expect((await client.reply()).data.equals(disk.image().subarray(0, 4096))).toBe(true);
    child.kill("SIGTERM");
    await client.untilEnded();
    expect(await child.exited).toBe(143);
    expect(existsSync(socket)).toBe(false);
  });

  test("a signal while it still waits for the disk removes the socket", async () => {
    const socket = join(disk.dir, "cli.sock");
    const child = spawn("nbd", "--vdev", "xvdz", "--socket", socket);
    while (!existsSync(socket)) await new Promise(setImmediate);
    child.kill("SIGTERM");
    expect(await child.exited).toBe(143);
    expect(existsSync(socket)).toBe(false);
  });

  test("killed, it leaves a socket that the next one replaces", async () => {
    const socket = join(disk.dir, "cli.sock");
    const victim = spawn("nbd", "--vdev", "xvdb", "--socket", socket);
    await readUntil(victim.stderr, "serving");
    victim.kill("SIGKILL");
    await victim.exited;
    expect(existsSync(socket)).toBe(true);
    const next = spawn("nbd", "--vdev", "xvdb", "--socket", socket);
    await readUntil(next.stderr, "serving");
    next.kill("SIGTERM");
    expect(await next.exited).toBe(143);
    expect(existsSync(socket)).toBe(false);
  });

  test("no descriptor for the next client: those that are there go on, and it is served when one leaves", async () => {
    const socket = join(disk.dir, "cli.sock");
    const line = `ulimit -Sn 60; ulimit -Hn 60; exec "$0" "$@"`;
    const child = Bun.spawn(
      ["sh", "-c", line, process.execPath, XENTOOL, "blkfront", "nbd", "--vdev", "xvdb", "--socket", socket],
      {
        stdin: "ignore",
        stdout: "pipe",
        stderr: "pipe",
        env: { ...process.env, XENTOOL_SIM: disk.host.dir, XENTOOL_DOMID: "1", NO_COLOR: "1" },
      },
    );
    children.push(child);
    await readUntil(child.stderr, "serving");
    const first = await RawClient.open(socket, false);
    const expectFirstServed = async (): Promise<void> => {
      first.request(READ, 1n, 0, 4096);
      expect(await first.reply()).toMatchObject({ error: 0, data: disk.image().subarray(0, 4096) });
    };
    // Silent ones make place for those that talk, but only after a while; those that talk are never cut off.
    const silent = await Promise.all(Array.from({ length: 20 }, () => RawClient.connect(socket)));
    const opened: RawClient[] = [];
    const opening = Array.from({ length: 60 }, async () => {
      opened.push(await RawClient.open(socket, false));
    });
    while (openDescriptors(child.pid).length < 60 || silent.some((it) => !it.ended))
      await expectFirstServed();
    expect(opened.every((it) => !it.ended)).toBe(true);
    const all = Promise.all(opening).then(() => "opened");
    while ((await Promise.race([all, Bun.sleep(1)])) !== "opened")
      for (const it of opened.splice(0)) it.close();
    for (const it of opened) it.close();
    await expectFirstServed();
    child.kill("SIGTERM");
    expect(await child.exited).toBe(143);
  });

  test("a socket in use, and a place where there can be none", async () => {
    const server = await disk.nbd();
    const busy = await run("nbd", "--vdev", "xvdb", "--socket", server.path);
    expect(busy).toMatchObject({ status: 3, stdout: "" });
    expect(busy.stderr).toContain("EADDRINUSE");
    const nowhere = await run("nbd", "--vdev", "xvdb", "--socket", "/nonexistent/x.sock");
    expect(nowhere).toMatchObject({ status: 3, stdout: "" });
  });
});
