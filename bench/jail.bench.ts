// What the jail costs: the same disk served with `--jail on` and off, in turns, and how long each takes until the disk
// is offered. JSON on stdout, tables on stderr.
//   bun bench/jail.bench.ts [--long]
import { mkdtempSync, rmSync } from "node:fs";
import { loadavg, tmpdir } from "node:os";
import { join } from "node:path";
import { measureServer, startXentoolOf, stopServers, type DiskServer } from "./disk-servers.ts";
import { makeImage, median, startHost, xentool, type Load } from "./measure.ts";
import { compare, LOADS, printCells, printTable } from "./side-by-side.ts";

const IS_LONG = process.argv.includes("--long");
const TURNS = Number(process.env["TURNS"] ?? (IS_LONG ? 15 : 5));
const SECONDS = Number(process.env["SECONDS_EACH"] ?? (IS_LONG ? 1 : 0.5));
const STARTS = Number(process.env["STARTS"] ?? (IS_LONG ? 31 : 11));
const IMAGE_MIB = 128;
const [JAILED, FREE] = ["xentool", "without a jail"];

/** Starts a server with a jail or without; the disk is offered when this returns. */
async function serve(
  host: string,
  image: string,
  jail: "on" | "off",
  options: readonly string[],
): Promise<DiskServer> {
  const vdev = jail === "on" ? "xvdb" : "xvdc";
  const server = await startXentoolOf({ host, prefix: [] }, vdev, [
    image,
    "--mode",
    "w!",
    "--jail",
    jail,
    ...options,
  ]);
  return { ...server, name: jail === "on" ? JAILED : FREE };
}

async function measureLoads(host: string, image: string, direct: boolean): Promise<unknown> {
  const options = direct ? ["--direct"] : [];
  const servers = [await serve(host, image, "on", options), await serve(host, image, "off", options)];
  try {
    const rivals = servers.map((server) => ({
      name: server.name,
      measure: (load: Load) => measureServer({ host, prefix: [] }, server, load, SECONDS),
    }));
    const loadBefore = loadavg()[0];
    const rows = LOADS.map((load) => compare(rivals, load, TURNS));
    const io = direct ? "direct" : "buffered";
    printTable(`${io} (load ${loadBefore?.toFixed(1)})`, rows);
    printCells([
      ["processor s/GB", "with the jail", "without"],
      ...rows.map(({ load, contenders }) => [
        load,
        ...[JAILED, FREE].map((name) => String(contenders[name]?.cpuSecondsPerGB)),
      ]),
    ]);
    return { io, loadBefore, rows };
  } finally {
    await stopServers(servers);
  }
}

/** Milliseconds until a disk is offered, of each start. */
async function measureStarts(host: string, image: string): Promise<Record<string, number>> {
  const took = { on: [] as number[], off: [] as number[] };
  for (let turn = 0; turn < 2 * STARTS; turn++) {
    const jail = turn % 2 === 0 ? "on" : "off";
    const began = performance.now();
    const server = await serve(host, image, jail, []);
    took[jail].push(performance.now() - began);
    await stopServers([server]);
  }
  const [on, off] = [median(took.on), median(took.off)];
  const result = { jailed: Math.round(on), free: Math.round(off), moreMs: Number((on - off).toFixed(1)) };
  console.error(`\nms until the disk is offered: ${JSON.stringify(result)}`);
  return result;
}

const dir = mkdtempSync(join(tmpdir(), "xentool-bench-"));
const host = startHost();
try {
  const image = join(dir, "raw.img");
  makeImage(image, IMAGE_MIB);
  const starts = await measureStarts(host, image);
  const tables = [await measureLoads(host, image, false), await measureLoads(host, image, true)];
  console.log(JSON.stringify({ imageMiB: IMAGE_MIB, turns: TURNS, secondsEach: SECONDS, starts, tables }));
} finally {
  xentool(["sim", "stop", "--dir", host]);
  rmSync(dir, { recursive: true });
}
