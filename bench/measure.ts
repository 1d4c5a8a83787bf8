// What benchmarks of disks have in common: xentool as a command, an image, fio on a file, a load through the ring.
import { spawnSync } from "node:child_process";
import { closeSync, openSync, readFileSync, writeSync } from "node:fs";
import { fileURLToPath } from "node:url";

export const XENTOOL = fileURLToPath(new URL("../dist/xentool", import.meta.url));
/** Linux tells of processor time in ticks of 10 ms. */
const CLOCK_TICKS = 100;

export interface Load {
  readonly rw: string;
  readonly bs: string;
  readonly depth: number;
}

/** What `xentool` prints with these arguments; throws when it fails. `env` is added to ours. */
export function xentool(args: readonly string[], env: NodeJS.ProcessEnv = {}): string {
  const done = spawnSync(XENTOOL, args, { encoding: "utf8", env: { ...process.env, ...env } });
  if (done.status !== 0) throw new Error(`xentool ${args.join(" ")} failed: ${done.stderr}`);
  return done.stdout;
}

/** Starts a simulated host of two domains. Returns its directory. */
export function startHost(): string {
  return (JSON.parse(xentool(["sim", "start", "--domains", "2", "--json"])) as { dir: string }).dir;
}

/** A file that is really there: holes would be read without any disk. */
export function makeImage(path: string, mib: number): void {
  const fd = openSync(path, "w");
  const block = crypto.getRandomValues(new Uint8Array(65_536));
  for (let i = 0; i < mib * 16; i++) writeSync(fd, block);
  closeSync(fd);
}

/** Processor time in seconds that a process has used, with that of its threads that have ended. */
export function cpuSeconds(pid: number): number {
  const fields = readFileSync(`/proc/${pid}/stat`, "utf8")
    .replace(/^.*\) /s, "")
    .split(" ");
  return (Number(fields[11]) + Number(fields[12])) / CLOCK_TICKS;
}

/** A process and those that it has started. */
export function familyOf(pid: number): number[] {
  const children = readFileSync(`/proc/${pid}/task/${pid}/children`, "utf8").trim();
  return [pid, ...(children === "" ? [] : children.split(" ").map(Number))];
}

/** Processor time in seconds of a process and of those that it has started. */
export function familySeconds(pid: number): number {
  return familyOf(pid).reduce((seconds, it) => seconds + cpuSeconds(it), 0);
}

/** The middle one; of an even number, the higher of both in the middle. */
export function median(numbers: readonly number[]): number {
  return numbers.toSorted((a, b) => a - b)[numbers.length >> 1] ?? NaN;
}

/** Bytes a second of fio's io_uring engine on the file itself. */
export function rawSpeed(image: string, { rw, bs, depth }: Load, direct: boolean, seconds: number): number {
  const options = {
    name: "raw",
    filename: image,
    ioengine: "io_uring",
    rw,
    bs,
    iodepth: depth,
    direct: Number(direct),
    invalidate: 0,
    runtime: `${seconds * 1000}ms`,
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

export interface RingResult {
  readonly bytesPerSecond: number;
  readonly bytes: number;
  readonly errors: number;
}

/** The same through the ring of domain 1's disk `vdev`, from a process of its own. */
export function ringSpeed(host: string, vdev: string, { rw, bs, depth }: Load, seconds: number): RingResult {
  const load = ["--rw", rw, "--bs", bs, "--iodepth", String(depth), "--runtime", String(seconds)];
  const args = ["blkfront", "bench", "--vdev", vdev, ...load, "--json"];
  return JSON.parse(xentool(args, { XENTOOL_SIM: host, XENTOOL_DOMID: "1" })) as RingResult;
}
