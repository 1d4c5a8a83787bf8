// How data crosses: `--grants` copy, map and persistent beside fio on the very same files, buffered and direct. Short
// turns, one after the other, many times over; medians of the ratios, and the backend's processor time for a GB.
// SECONDS_EACH and ROUNDS change how long it takes. JSON on stdout.
import { mkdtempSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { readUntil } from "../test/support/process.ts";
import {
  cpuSeconds,
  type Load,
  makeImage,
  median,
  measureRaw,
  measureRing,
  startHost,
  xentool,
  XENTOOL,
} from "./measure.ts";

const SECONDS = Number(process.env["SECONDS_EACH"] ?? 0.5);
const ROUNDS = Number(process.env["ROUNDS"] ?? 7);
const IMAGE_MIB = 96;

const MODES = ["copy", "map", "persistent"] as const;
type Mode = (typeof MODES)[number];

const LOADS: readonly Load[] = [
  { rw: "randread", bs: "4k", depth: 1 },
  { rw: "randread", bs: "4k", depth: 32 },
  { rw: "randwrite", bs: "4k", depth: 32 },
  { rw: "read", bs: "64k", depth: 8 },
  { rw: "write", bs: "64k", depth: 8 },
  { rw: "read", bs: "1M", depth: 2 },
  { rw: "write", bs: "1M", depth: 2 },
];

/** One disk, served by a process of its own. */
interface Served {
  readonly mode: Mode;
  readonly vdev: string;
  readonly image: string;
  readonly process: ReturnType<typeof Bun.spawn>;
}

async function serve(host: string, dir: string, direct: boolean): Promise<Served[]> {
  const served: Served[] = [];
  for (const [index, mode] of MODES.entries()) {
    const vdev = `xvd${"bcd"[index]}`;
    const image = join(dir, `${mode}.img`);
    const args = ["blkback", "serve", image, "--domid", "1", "--vdev", vdev, "--mode", "w!"];
    const server = Bun.spawn([XENTOOL, ...args, "--grants", mode, ...(direct ? ["--direct"] : [])], {
      env: { ...process.env, XENTOOL_SIM: host },
      stdio: ["ignore", "pipe", "pipe"],
    });
    await readUntil(server.stderr, "offering");
    served.push({ mode, vdev, image, process: server });
  }
  return served;
}

function measureLoad(host: string, disks: readonly Served[], load: Load, direct: boolean): unknown {
  const ratios = new Map<Mode, number[]>(MODES.map((mode) => [mode, []]));
  const cpu = new Map<Mode, number>();
  const bytes = new Map<Mode, number>();
  for (let round = 0; round < ROUNDS; round++)
    for (let turn = 0; turn < disks.length; turn++) {
      const { mode, vdev, image, process: server } = disks[(round + turn) % disks.length] as Served;
      const before = cpuSeconds(server.pid);
      const file = measureRaw(image, load, direct, SECONDS).bytesPerSecond;
      const result = measureRing(host, vdev, load, SECONDS);
      if (result.errors !== 0) throw new Error(`${result.errors} errors`);
      ratios.get(mode)?.push(result.bytesPerSecond / file);
      cpu.set(mode, (cpu.get(mode) ?? 0) + cpuSeconds(server.pid) - before);
      bytes.set(mode, (bytes.get(mode) ?? 0) + result.rampBytes + result.bytes);
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
  const disks = await serve(host, dir, direct);
  try {
    return LOADS.map((load) => measureLoad(host, disks, load, direct));
  } finally {
    for (const { process: server } of disks) {
      server.kill("SIGTERM");
      await server.exited;
    }
  }
}

const dir = mkdtempSync(join(tmpdir(), "xentool-bench-"));
const host = startHost();
try {
  for (const mode of MODES) makeImage(join(dir, `${mode}.img`), IMAGE_MIB);
  const buffered = await measure(host, dir, false);
  const direct = await measure(host, dir, true);
  console.log(
    JSON.stringify({ imageMiB: IMAGE_MIB, secondsEach: SECONDS, rounds: ROUNDS, buffered, direct }),
  );
} finally {
  xentool(["sim", "stop", "--dir", host]);
  rmSync(dir, { recursive: true });
}
