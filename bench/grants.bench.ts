// How data crosses: `--grants` copy, map and persistent beside fio on the very same files, buffered and direct. Short
// turns, one after the other, many times over; medians of the ratios, and the backend's processor time for a GB.
// SECONDS_EACH and ROUNDS change how long it takes. JSON on stdout.
import { spawnSync } from "node:child_process";
import { closeSync, mkdtempSync, openSync, readFileSync, rmSync, writeSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { fileURLToPath } from "node:url";
import { readUntil } from "../test/support/process.ts";

const XENTOOL = fileURLToPath(new URL("../dist/xentool", import.meta.url));
const SECONDS = Number(process.env["SECONDS_EACH"] ?? 0.5);
const ROUNDS = Number(process.env["ROUNDS"] ?? 7);
const IMAGE_MIB = 96;
const CLOCK_TICKS = 100;

const MODES = ["copy", "map", "persistent"] as const;
type Mode = (typeof MODES)[number];

interface Load {
  readonly rw: string;
  readonly bs: string;
  readonly depth: number;
}

const LOADS: readonly Load[] = [
  { rw: "randread", bs: "4k", depth: 1 },
  { rw: "randread", bs: "4k", depth: 32 },
  { rw: "randwrite", bs: "4k", depth: 32 },
  { rw: "read", bs: "64k", depth: 8 },
  { rw: "write", bs: "64k", depth: 8 },
  { rw: "read", bs: "1M", depth: 2 },
  { rw: "write", bs: "1M", depth: 2 },
];

/** Bytes a second of fio's io_uring engine on the file itself. */
function raw(image: string, { rw, bs, depth }: Load, direct: boolean): number {
  const options = {
    name: "raw",
    filename: image,
    ioengine: "io_uring",
    rw,
    bs,
    iodepth: depth,
    direct: Number(direct),
    invalidate: 0,
    runtime: `${SECONDS * 1000}ms`,
    time_based: 1,
    "output-format": "json",
  };
  const args = Object.entries(options).map(([key, value]) => `--${key}=${value}`);
  const done = spawnSync("fio", args, { encoding: "utf8" });
  if (done.status !== 0) throw new Error(`fio failed: ${done.stderr}`);
  const { jobs } = JSON.parse(done.stdout) as {
    jobs: [{ read: { bw_bytes: number }; write: { bw_bytes: number } }];
  };
  return jobs[0].read.bw_bytes + jobs[0].write.bw_bytes;
}

interface RingResult {
  readonly bytesPerSecond: number;
  readonly bytes: number;
  readonly errors: number;
}

function ring(env: NodeJS.ProcessEnv, vdev: string, { rw, bs, depth }: Load): RingResult {
  const args = ["--rw", rw, "--bs", bs, "--iodepth", String(depth), "--runtime", String(SECONDS)];
  const done = spawnSync(XENTOOL, ["blkfront", "bench", "--vdev", vdev, ...args, "--json"], {
    encoding: "utf8",
    env: { ...env, XENTOOL_DOMID: "1" },
  });
  if (done.status !== 0) throw new Error(`blkfront bench failed: ${done.stderr}`);
  const result = JSON.parse(done.stdout) as RingResult;
  if (result.errors !== 0) throw new Error(`${result.errors} errors`);
  return result;
}

/** CPU seconds a process has used. */
function cpuSeconds(pid: number): number {
  const fields = readFileSync(`/proc/${pid}/stat`, "utf8")
    .replace(/^.*\) /, "")
    .split(" ");
  return (Number(fields[11]) + Number(fields[12])) / CLOCK_TICKS;
}

function median(numbers: readonly number[]): number {
  return numbers.toSorted((a, b) => a - b)[Math.floor(numbers.length / 2)] as number;
}

/** One disk, served by a process of its own. */
interface Served {
  readonly mode: Mode;
  readonly vdev: string;
  readonly image: string;
  readonly process: ReturnType<typeof Bun.spawn>;
}

async function serve(env: NodeJS.ProcessEnv, dir: string, direct: boolean): Promise<Served[]> {
  const served: Served[] = [];
  for (const [index, mode] of MODES.entries()) {
    const vdev = `xvd${"bcd"[index]}`;
    const image = join(dir, `${mode}.img`);
    const args = ["blkback", "serve", image, "--domid", "1", "--vdev", vdev, "--mode", "w!"];
    const server = Bun.spawn([XENTOOL, ...args, "--grants", mode, ...(direct ? ["--direct"] : [])], {
      env,
      stdio: ["ignore", "pipe", "pipe"],
    });
    await readUntil(server.stderr, "offering");
    served.push({ mode, vdev, image, process: server });
  }
  return served;
}

function measureLoad(env: NodeJS.ProcessEnv, disks: readonly Served[], load: Load, direct: boolean): unknown {
  const ratios = new Map<Mode, number[]>(MODES.map((mode) => [mode, []]));
  const cpu = new Map<Mode, number>();
  const bytes = new Map<Mode, number>();
  for (let round = 0; round < ROUNDS; round++)
    for (let turn = 0; turn < disks.length; turn++) {
      const { mode, vdev, image, process: server } = disks[(round + turn) % disks.length] as Served;
      const before = cpuSeconds(server.pid);
      const file = raw(image, load, direct);
      const result = ring(env, vdev, load);
      ratios.get(mode)?.push(result.bytesPerSecond / file);
      cpu.set(mode, (cpu.get(mode) ?? 0) + cpuSeconds(server.pid) - before);
      bytes.set(mode, (bytes.get(mode) ?? 0) + result.bytes);
    }
  const of = <T>(value: (mode: Mode) => T): Record<string, T> =>
    Object.fromEntries(MODES.map((mode) => [mode, value(mode)]));
  const row = {
    load: `${load.rw} ${load.bs} depth ${load.depth}`,
    ratio: of((mode) => Number(median(ratios.get(mode) ?? []).toFixed(2))),
    backendCpuSecondsPerGB: of((mode) =>
      Number(((cpu.get(mode) ?? 0) / ((bytes.get(mode) ?? 0) / 1e9)).toFixed(3)),
    ),
  };
  console.error(`  ${direct ? "direct" : "buffered"} ${JSON.stringify(row)}`);
  return row;
}

async function measure(host: string, dir: string, direct: boolean): Promise<unknown[]> {
  const env = { ...process.env, XENTOOL_SIM: host };
  const disks = await serve(env, dir, direct);
  try {
    return LOADS.map((load) => measureLoad(env, disks, load, direct));
  } finally {
    for (const { process: server } of disks) {
      server.kill("SIGTERM");
      await server.exited;
    }
  }
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
  for (const mode of MODES) makeImage(join(dir, `${mode}.img`));
  const buffered = await measure(host, dir, false);
  const direct = await measure(host, dir, true);
  console.log(
    JSON.stringify({ imageMiB: IMAGE_MIB, secondsEach: SECONDS, rounds: ROUNDS, buffered, direct }),
  );
} finally {
  xentool(["sim", "stop", "--dir", host]);
  rmSync(dir, { recursive: true });
}
