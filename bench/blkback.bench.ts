// A disk through the ring beside fio on the very same file: same loads, same run, one after the other, each
// load twice in turn and the better of each taken, because these machines are noisy. JSON on stdout: ratios
// ring/raw, CPU seconds per GB and peak memory of the backend, and its CPU while idle.
import { spawnSync } from "node:child_process";
import { closeSync, mkdtempSync, openSync, readFileSync, rmSync, writeSync } from "node:fs";
import { tmpdir } from "node:os";
import { fileURLToPath } from "node:url";
import { join } from "node:path";
import { readUntil } from "../test/support/process.ts";

const XENTOOL = fileURLToPath(new URL("../dist/xentool", import.meta.url));
const IMAGE_MIB = 256;
const RUNTIME_SECONDS = Number(process.env["SECONDS_EACH"] ?? 2);
const ROUNDS = 2;
const IDLE_MS = 2000;
const CLOCK_TICKS = 100;

interface Load {
  readonly rw: "randread" | "randwrite" | "read" | "write";
  readonly bs: string;
  readonly depth: number;
  /** Ratio to aim at, buffered and direct. */
  readonly aim: readonly [number, number];
}

const LOADS: readonly Load[] = [
  { rw: "randread", bs: "4k", depth: 1, aim: [0.5, 0.5] },
  { rw: "randread", bs: "4k", depth: 32, aim: [0.7, 0.9] },
  { rw: "randwrite", bs: "4k", depth: 1, aim: [0.5, 0.5] },
  { rw: "randwrite", bs: "4k", depth: 32, aim: [0.7, 0.9] },
  { rw: "read", bs: "64k", depth: 8, aim: [0.9, 0.9] },
  { rw: "write", bs: "64k", depth: 8, aim: [0.9, 0.9] },
  { rw: "read", bs: "1M", depth: 2, aim: [0.9, 0.9] },
  { rw: "write", bs: "1M", depth: 2, aim: [0.9, 0.9] },
];

/** Bytes a second of fio's io_uring engine on the file itself. */
function raw(image: string, load: Load, direct: boolean): number {
  const { rw, bs, depth } = load;
  const options = {
    name: "raw",
    filename: image,
    ioengine: "io_uring",
    rw,
    bs,
    iodepth: depth,
    direct: Number(direct),
    invalidate: 0,
    runtime: RUNTIME_SECONDS,
    time_based: 1,
    "output-format": "json",
  };
  const args = Object.entries(options).map(([key, value]) => `--${key}=${value}`);
  const done = spawnSync("fio", args, { encoding: "utf8" });
  if (done.status !== 0) throw new Error(`fio failed: ${done.stderr}`);
  const [job] = (
    JSON.parse(done.stdout) as { jobs: { read: { bw_bytes: number }; write: { bw_bytes: number } }[] }
  ).jobs;
  if (job === undefined) throw new Error("fio told of no job");
  return job.read.bw_bytes + job.write.bw_bytes;
}

interface RingResult {
  readonly bytesPerSecond: number;
  readonly bytes: number;
  readonly errors: number;
}

/** The same through the ring, from a process of its own. */
function ring(env: NodeJS.ProcessEnv, load: Load): RingResult {
  const { rw, bs, depth } = load;
  const args = ["--rw", rw, "--bs", bs, "--iodepth", String(depth), "--runtime", String(RUNTIME_SECONDS)];
  const done = spawnSync(XENTOOL, ["blkfront", "bench", "--vdev", "xvdb", ...args, "--json"], {
    encoding: "utf8",
    env: { ...env, XENTOOL_DOMID: "1" },
  });
  if (done.status !== 0) throw new Error(`blkfront bench failed: ${done.stderr}`);
  return JSON.parse(done.stdout) as RingResult;
}

/** CPU seconds a process has used. */
function cpuSeconds(pid: number): number {
  const fields = readFileSync(`/proc/${pid}/stat`, "utf8")
    .replace(/^.*\) /, "")
    .split(" ");
  return (Number(fields[11]) + Number(fields[12])) / CLOCK_TICKS;
}

function peakMemoryMiB(pid: number): number {
  return Math.round(Number(/VmHWM:\s+(\d+)/.exec(readFileSync(`/proc/${pid}/status`, "utf8"))?.[1]) / 1024);
}

async function measure(host: string, image: string, direct: boolean): Promise<unknown> {
  const env = { ...process.env, XENTOOL_SIM: host };
  const args = ["blkback", "serve", image, "--domid", "1", "--vdev", "xvdb", "--mode", "w!"];
  const server = Bun.spawn([XENTOOL, ...args, ...(direct ? ["--direct"] : [])], {
    env,
    stdio: ["ignore", "pipe", "pipe"],
  });
  await readUntil(server.stderr, "offering");
  const loads = LOADS.map((load) => {
    let rawBest = 0;
    let ringBest = 0;
    let bytes = 0;
    const before = cpuSeconds(server.pid);
    for (let round = 0; round < ROUNDS; round++) {
      rawBest = Math.max(rawBest, raw(image, load, direct));
      const result = ring(env, load);
      ringBest = Math.max(ringBest, result.bytesPerSecond);
      bytes += result.bytes;
    }
    const cpu = cpuSeconds(server.pid) - before;
    const ratio = Number((ringBest / rawBest).toFixed(2));
    const aim = load.aim[direct ? 1 : 0];
    const name = `${load.rw} ${load.bs} depth ${load.depth}`;
    console.error(`  ${direct ? "direct" : "buffered"} ${name}: ${ratio} (aim ${aim})`);
    return {
      load: name,
      ratio,
      aim,
      rawMBps: Math.round(rawBest / 1e6),
      ringMBps: Math.round(ringBest / 1e6),
      backendCpuSecondsPerGB: Number((cpu / (bytes / 1e9)).toFixed(3)),
    };
  });
  const idleFrom = cpuSeconds(server.pid);
  await Bun.sleep(IDLE_MS);
  const idleCpuPercent = ((cpuSeconds(server.pid) - idleFrom) / (IDLE_MS / 1000)) * 100;
  const backendPeakMiB = peakMemoryMiB(server.pid);
  server.kill("SIGTERM");
  await server.exited;
  return { loads, backendPeakMiB, idleCpuPercent };
}

function xentool(args: readonly string[]): string {
  const done = spawnSync(XENTOOL, args, { encoding: "utf8" });
  if (done.status !== 0) throw new Error(`xentool ${args.join(" ")} failed: ${done.stderr}`);
  return done.stdout;
}

/** A file that is really there: holes would be read without any disk. */
function makeImage(path: string): void {
  const fd = openSync(path, "w");
  const block = crypto.getRandomValues(new Uint8Array(65_536));
  for (let i = 0; i < IMAGE_MIB * 16; i++) writeSync(fd, block);
  closeSync(fd);
}

const dir = mkdtempSync(join(tmpdir(), "xentool-bench-"));
const host = (JSON.parse(xentool(["sim", "start", "--domains", "2", "--json"])) as { dir: string }).dir;
try {
  const image = join(dir, "disk.img");
  makeImage(image);
  const buffered = await measure(host, image, false);
  const direct = await measure(host, image, true);
  console.log(JSON.stringify({ imageMiB: IMAGE_MIB, secondsEach: RUNTIME_SECONDS, buffered, direct }));
} finally {
  xentool(["sim", "stop", "--dir", host]);
  rmSync(dir, { recursive: true });
}
