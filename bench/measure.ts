// What benchmarks of disks have in common: xentool as a command, an image, fio on a file, a load through the ring.
import { spawnSync } from "node:child_process";
import { closeSync, fsyncSync, openSync, readFileSync, writeSync } from "node:fs";
import { fileURLToPath } from "node:url";

export const XENTOOL = fileURLToPath(new URL("../dist/xentool", import.meta.url));
/** Linux tells of processor time in ticks of 10 ms. */
const CLOCK_TICKS = 100;

export interface Load {
  readonly rw: string;
  readonly bs: string;
  readonly depth: number;
}

/** Microseconds within which this share of the requests was answered. */
export interface Percentiles {
  readonly p50: number;
  readonly p90: number;
  readonly p99: number;
  readonly p999: number;
}

/**
 * How long a load runs before each turn is measured. A guest's disk is served for days, but each turn connects anew,
 * and its programs are JavaScript, which is compiled while it runs: in the first quarter of a second a request takes
 * eight times the processor time. RAMP_SECONDS=0 shows that.
 */
const RAMP_SECONDS = Number(process.env["RAMP_SECONDS"] ?? 1);

/** Set before a command, it runs with real-time priority. */
export const REAL_TIME: readonly string[] = ["chrt", "--fifo", "10"];

/** What `xentool` prints with these arguments; throws when it fails. `env` is added to ours. */
export function xentool(args: readonly string[], env: NodeJS.ProcessEnv = {}): string {
  return outputOf([XENTOOL, ...args], env);
}

/** Starts a simulated host of two domains. Returns its directory. */
export function startHost(): string {
  return (JSON.parse(xentool(["sim", "start", "--domains", "2", "--json"])) as { dir: string }).dir;
}

/** A file that is really on the disk: holes would be read without it, and new data would be written back later. */
export function makeImage(path: string, mib: number): void {
  const fd = openSync(path, "w");
  const block = crypto.getRandomValues(new Uint8Array(65_536));
  for (let i = 0; i < mib * 16; i++) writeSync(fd, block);
  fsyncSync(fd);
  closeSync(fd);
}

/** Processor time in seconds that a process has used, with that of its threads that have ended. */
export function cpuSeconds(pid: number): number {
  const fields = readFileSync(`/proc/${pid}/stat`, "utf8")
    .replace(/^.*\) /s, "")
    .split(" ");
  return (Number(fields[11]) + Number(fields[12])) / CLOCK_TICKS;
}

/** A process, those that it has started, and so on. */
export function familyOf(pid: number): number[] {
  const children = readFileSync(`/proc/${pid}/task/${pid}/children`, "utf8").trim();
  return [pid, ...(children === "" ? [] : children.split(" ").map(Number)).flatMap(familyOf)];
}

/** Processor time in seconds of a process and of those that it has started. */
export function familySeconds(pid: number): number {
  return familyOf(pid).reduce((seconds, it) => seconds + cpuSeconds(it), 0);
}

/** The middle one; of an even number, the higher of both in the middle. */
export function median(numbers: readonly number[]): number {
  return numbers.toSorted((a, b) => a - b)[numbers.length >> 1] ?? NaN;
}

/** The output of a program that has to succeed. */
function outputOf(argv: readonly string[], env?: NodeJS.ProcessEnv): string {
  const [program = "", ...args] = argv;
  const done = spawnSync(program, args, { encoding: "utf8", env: { ...process.env, ...env } });
  if (done.status !== 0) throw new Error(`${argv.join(" ")} failed: ${done.error?.message ?? done.stderr}`);
  return done.stdout;
}

interface FioDirection {
  readonly bw_bytes: number;
  readonly total_ios: number;
  readonly clat_ns: { readonly percentile?: Readonly<Record<string, number>> };
}

export interface RawResult {
  readonly bytesPerSecond: number;
  readonly latencyUs: Percentiles;
}

/** fio's io_uring engine on the file itself. `prefix` is set before the command. */
export function measureRaw(
  image: string,
  { rw, bs, depth }: Load,
  direct: boolean,
  seconds: number,
  prefix: readonly string[] = [],
): RawResult {
  const options = {
    name: "raw",
    filename: image,
    ioengine: "io_uring",
    rw,
    bs,
    iodepth: depth,
    direct: Number(direct),
    invalidate: 0,
    ramp_time: `${RAMP_SECONDS * 1000}ms`,
    runtime: `${seconds * 1000}ms`,
    time_based: 1,
    percentile_list: "50:90:99:99.9",
    "output-format": "json",
  };
  const args = Object.entries(options).map(([key, value]) => `--${key}=${value}`);
  const [job] = (
    JSON.parse(outputOf([...prefix, "fio", ...args])) as { jobs: Record<"read" | "write", FioDirection>[] }
  ).jobs;
  if (job === undefined) throw new Error("fio told of no job");
  const { bw_bytes: bytesPerSecond, clat_ns } = job.read.total_ios > 0 ? job.read : job.write;
  const us = (share: string): number => (clat_ns.percentile?.[share] ?? NaN) / 1000;
  const latencyUs = {
    p50: us("50.000000"),
    p90: us("90.000000"),
    p99: us("99.000000"),
    p999: us("99.900000"),
  };
  return { bytesPerSecond, latencyUs };
}

export interface RingResult extends RawResult {
  readonly bytes: number;
  readonly rampBytes: number;
  readonly errors: number;
}

/** The same through the ring of domain 1's disk `vdev`, from a process of its own. */
export function measureRing(
  host: string,
  vdev: string,
  { rw, bs, depth }: Load,
  seconds: number,
  prefix: readonly string[] = [],
): RingResult {
  const times = ["--ramp", String(RAMP_SECONDS), "--runtime", String(seconds)];
  const load = ["--rw", rw, "--bs", bs, "--iodepth", String(depth), ...times];
  const argv = [...prefix, XENTOOL, "blkfront", "bench", "--vdev", vdev, ...load, "--json"];
  return JSON.parse(outputOf(argv, { XENTOOL_SIM: host, XENTOOL_DOMID: "1" })) as RingResult;
}
