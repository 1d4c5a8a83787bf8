// A disk through the ring beside fio on the very same file: same loads, same run, one after the other, each
// load twice in turn and the better of each taken, because these machines are noisy. JSON on stdout: ratios
// ring/raw, CPU seconds per GB and peak memory of the backend, and its CPU while idle.
import { mkdtempSync, readFileSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { readUntil } from "../test/support/process.ts";
import {
  cpuSeconds,
  type Load,
  makeImage,
  rawSpeed,
  ringSpeed,
  startHost,
  xentool,
  XENTOOL,
} from "./measure.ts";

const IMAGE_MIB = 256;
const RUNTIME_SECONDS = Number(process.env["SECONDS_EACH"] ?? 2);
const ROUNDS = 2;
const IDLE_MS = 2000;

interface AimedLoad extends Load {
  /** Ratio to aim at, buffered and direct. */
  readonly aim: readonly [number, number];
}

const LOADS: readonly AimedLoad[] = [
  { rw: "randread", bs: "4k", depth: 1, aim: [0.5, 0.5] },
  { rw: "randread", bs: "4k", depth: 32, aim: [0.7, 0.9] },
  { rw: "randwrite", bs: "4k", depth: 1, aim: [0.5, 0.5] },
  { rw: "randwrite", bs: "4k", depth: 32, aim: [0.7, 0.9] },
  { rw: "read", bs: "64k", depth: 8, aim: [0.9, 0.9] },
  { rw: "write", bs: "64k", depth: 8, aim: [0.9, 0.9] },
  { rw: "read", bs: "1M", depth: 2, aim: [0.9, 0.9] },
  { rw: "write", bs: "1M", depth: 2, aim: [0.9, 0.9] },
];

function peakMemoryMiB(pid: number): number {
  return Math.round(Number(/VmHWM:\s+(\d+)/.exec(readFileSync(`/proc/${pid}/status`, "utf8"))?.[1]) / 1024);
}

async function measure(host: string, image: string, direct: boolean): Promise<unknown> {
  const args = ["blkback", "serve", image, "--domid", "1", "--vdev", "xvdb", "--mode", "w!"];
  const server = Bun.spawn([XENTOOL, ...args, ...(direct ? ["--direct"] : [])], {
    env: { ...process.env, XENTOOL_SIM: host },
    stdio: ["ignore", "pipe", "pipe"],
  });
  await readUntil(server.stderr, "offering");
  const loads = LOADS.map((load) => {
    let rawBest = 0;
    let ringBest = 0;
    let bytes = 0;
    const before = cpuSeconds(server.pid);
    for (let round = 0; round < ROUNDS; round++) {
      rawBest = Math.max(rawBest, rawSpeed(image, load, direct, RUNTIME_SECONDS));
      const result = ringSpeed(host, "xvdb", load, RUNTIME_SECONDS);
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

const dir = mkdtempSync(join(tmpdir(), "xentool-bench-"));
const host = startHost();
try {
  const image = join(dir, "disk.img");
  makeImage(image, IMAGE_MIB);
  const buffered = await measure(host, image, false);
  const direct = await measure(host, image, true);
  console.log(JSON.stringify({ imageMiB: IMAGE_MIB, secondsEach: RUNTIME_SECONDS, buffered, direct }));
} finally {
  xentool(["sim", "stop", "--dir", host]);
  rmSync(dir, { recursive: true });
}
