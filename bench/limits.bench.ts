// A disk's limits, with far more requests waiting than may pass: how exactly they are kept over ten seconds, what the
// server's processor time is while requests wait, and what a neighbour served by the same process notices, beside a
// run in which nobody is limited and the other disk is idle. JSON on stdout.
import { mkdtempSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { readUntil } from "../test/support/process.ts";
import { familySeconds, makeImage, median, startHost, XENTOOL, xentool } from "./measure.ts";

const SECONDS = Number(process.env["SECONDS_EACH"] ?? 10);
const IMAGE_MIB = 64;
const LIMITED = "xvdb";
const NEIGHBOUR = "xvdc";

interface Case {
  readonly limit: readonly string[];
  readonly load: { readonly rw: string; readonly bs: string; readonly iodepth: number };
  /** Of the load: what the limit allows each second. */
  readonly iops?: number;
  readonly bytes?: number;
}

const CASES: readonly Case[] = [
  { limit: ["--iops", "20"], load: { rw: "randread", bs: "4k", iodepth: 32 }, iops: 20 },
  { limit: ["--iops", "500"], load: { rw: "randread", bs: "4k", iodepth: 1 }, iops: 500 },
  { limit: ["--iops", "500"], load: { rw: "randread", bs: "4k", iodepth: 128 }, iops: 500 },
  { limit: ["--iops", "10000"], load: { rw: "randread", bs: "4k", iodepth: 128 }, iops: 10_000 },
  { limit: ["--iops", "read:9000,write:3000"], load: { rw: "write", bs: "4k", iodepth: 32 }, iops: 3000 },
  { limit: ["--bandwidth", "20M"], load: { rw: "read", bs: "64k", iodepth: 8 }, bytes: 20 << 20 },
  { limit: ["--bandwidth", "20M"], load: { rw: "write", bs: "1M", iodepth: 4 }, bytes: 20 << 20 },
];

interface BenchResult {
  readonly iops: number;
  readonly bytesPerSecond: number;
  readonly errors: number;
  readonly latencyUs: { readonly p50: number; readonly p99: number };
}

/** A load of `seconds` on a disk of domain 1, in a process of its own. */
async function run(host: string, vdev: string, load: Case["load"], seconds = SECONDS): Promise<BenchResult> {
  const { rw, bs, iodepth } = load;
  const options = ["--rw", rw, "--bs", bs, "--iodepth", String(iodepth), "--runtime", String(seconds)];
  const child = Bun.spawn([XENTOOL, "blkfront", "bench", "--vdev", vdev, ...options, "--json"], {
    env: { ...process.env, XENTOOL_SIM: host, XENTOOL_DOMID: "1" },
    stdio: ["ignore", "pipe", "inherit"],
  });
  const text = await new Response(child.stdout).text();
  if ((await child.exited) !== 0) throw new Error(`blkfront bench of ${vdev} failed`);
  return JSON.parse(text) as BenchResult;
}

async function measure(host: string, pid: number, { limit, load, iops, bytes }: Case): Promise<unknown> {
  const device = ["--domid", "1", "--vdev", LIMITED];
  const all = ["--iops", "none", "--bandwidth", "none"];
  const without = all.filter((_, at) => !limit.includes(all[at - (at % 2)] ?? ""));
  xentool(["blkback", "limit", ...device, ...limit, ...without], { XENTOOL_SIM: host });
  const before = familySeconds(pid);
  const result = await run(host, LIMITED, load);
  const cpuPercent = Number((((familySeconds(pid) - before) / SECONDS) * 100).toFixed(1));
  const [allowed, got] = iops === undefined ? [bytes ?? 0, result.bytesPerSecond] : [iops, result.iops];
  const deviationPercent = Number(((got / allowed - 1) * 100).toFixed(2));
  const name = `${limit.join(" ")}, ${load.rw} ${load.bs} depth ${load.iodepth}`;
  console.error(`  ${name}: ${deviationPercent} % off, server ${cpuPercent} % of a processor`);
  return { case: name, allowed, got, deviationPercent, serverCpuPercent: cpuPercent, errors: result.errors };
}

/** The neighbour's figures while the other disk is idle, and while it is limited and flooded. */
async function neighbour(host: string): Promise<unknown> {
  const load = { rw: "randread", bs: "4k", iodepth: 8 };
  const device = ["--domid", "1", "--vdev", LIMITED];
  xentool(["blkback", "limit", ...device, "--iops", "100", "--bandwidth", "none"], { XENTOOL_SIM: host });
  const figures = { alone: [] as BenchResult[], besideLimited: [] as BenchResult[] };
  for (let round = 0; round < 3; round++) {
    figures.alone.push(await run(host, NEIGHBOUR, load, SECONDS / 3));
    const flood = run(host, LIMITED, { rw: "randread", bs: "4k", iodepth: 128 }, SECONDS / 3 + 2);
    await Bun.sleep(1000); // until it has started: that takes a processor, whatever the limit
    figures.besideLimited.push(await run(host, NEIGHBOUR, load, SECONDS / 3));
    await flood;
  }
  const summary = (results: BenchResult[]): unknown => ({
    iops: Math.round(median(results.map((it) => it.iops))),
    p50Us: median(results.map((it) => it.latencyUs.p50)),
    p99Us: median(results.map((it) => it.latencyUs.p99)),
  });
  return { alone: summary(figures.alone), besideLimited: summary(figures.besideLimited) };
}

const dir = mkdtempSync(join(tmpdir(), "xentool-bench-"));
const host = startHost();
try {
  const server = Bun.spawn([XENTOOL, "blkback", "watch", "--kind", "qdisk", "--any-script"], {
    env: { ...process.env, XENTOOL_SIM: host },
    stdio: ["ignore", "pipe", "pipe"],
  });
  await readUntil(server.stderr, "serving");
  for (const vdev of [LIMITED, NEIGHBOUR]) {
    const image = join(dir, `${vdev}.img`);
    makeImage(image, IMAGE_MIB);
    const device = ["--domid", "1", "--vdev", vdev, "--params", image];
    xentool(["blkback", "create", ...device], { XENTOOL_SIM: host });
  }
  const cases: unknown[] = [];
  for (const each of CASES) cases.push(await measure(host, server.pid, each));
  const beside = await neighbour(host);
  server.kill("SIGTERM");
  await server.exited;
  console.log(JSON.stringify({ secondsEach: SECONDS, cases, neighbour: beside }));
} finally {
  xentool(["sim", "stop", "--dir", host]);
  rmSync(dir, { recursive: true });
}
