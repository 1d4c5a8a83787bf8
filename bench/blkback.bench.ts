// A disk through the ring, served by xentool and by QEMU, and fio on the very same file: same image, same frontend,
// same run. Three conditions: as the machine is, with one more process that is always busy, and with real-time priority
// where that is allowed. Buffered and direct I/O have images of their own, because what one has written is still
// written back while the other is measured. JSON on stdout, tables on stderr.
//   bun bench/blkback.bench.ts [--long]
import { mkdtempSync, rmSync } from "node:fs";
import { loadavg, tmpdir } from "node:os";
import { join } from "node:path";
import { spawnSync } from "node:child_process";
import {
  measureServer,
  qemuEngines,
  startQemu,
  startXentool,
  stopServers,
  type DiskServer,
} from "./disk-servers.ts";
import { makeImage, measureRaw, REAL_TIME, startHost, xentool, type Load } from "./measure.ts";
import { compare, LOADS, printTable, type Turn } from "./side-by-side.ts";

const IS_LONG = process.argv.includes("--long");
const TURNS = Number(process.env["TURNS"] ?? (IS_LONG ? 11 : 3));
const SECONDS = Number(process.env["SECONDS_EACH"] ?? (IS_LONG ? 1 : 0.25));
const IMAGE_MIB = 128;

const ALL_LOADS: readonly Load[] = [
  ...LOADS,
  { rw: "read", bs: "1M", depth: 4 },
  { rw: "write", bs: "1M", depth: 4 },
];

interface Condition {
  readonly name: string;
  readonly prefix: readonly string[];
  readonly busy: boolean;
}

function conditions(): Condition[] {
  const [program = "", ...args] = REAL_TIME;
  const mayHurry = spawnSync(program, [...args, "true"]).status === 0;
  if (!mayHurry) console.error("  real-time priority is not allowed here, so it is not measured");
  return [
    { name: "as it is", prefix: [], busy: false },
    { name: "with a busy third process", prefix: [], busy: true },
    ...(mayHurry ? [{ name: "with real-time priority", prefix: REAL_TIME, busy: false }] : []),
  ];
}

interface Place {
  readonly host: string;
  readonly image: string;
  readonly direct: boolean;
  readonly condition: Condition;
}

function measureOnce(place: Place, server: DiskServer | undefined, load: Load): Turn {
  const { host, image, direct, condition } = place;
  if (server === undefined) return measureRaw(image, load, direct, SECONDS, condition.prefix);
  return measureServer({ host, prefix: condition.prefix }, server, load, SECONDS);
}

/** Starts every server, one after the other, and lets each warm up. */
async function startServers(place: Place): Promise<DiskServer[]> {
  const ground = { ...place, prefix: place.condition.prefix };
  const servers = [await startXentool(ground, "xvdb")];
  for (const [index, engine] of qemuEngines(place.image, place.direct).entries()) {
    const server = startQemu(ground, `xvd${"cde"[index]}`, engine);
    servers.push(server);
    measureOnce(place, server, LOADS[0] as Load);
  }
  measureOnce(place, servers[0], LOADS[0] as Load);
  return servers;
}

async function measure(place: Place): Promise<unknown> {
  const { direct, condition } = place;
  const busy = condition.busy ? Bun.spawn(["sh", "-c", "while :; do :; done"]) : undefined;
  const servers = await startServers(place);
  try {
    const loadBefore = loadavg()[0];
    const rivals = [undefined, ...servers].map((server) => ({
      name: server?.name ?? "file",
      measure: (load: Load) => measureOnce(place, server, load),
    }));
    const rows = ALL_LOADS.map((load) => compare(rivals, load, TURNS));
    const what = direct ? "direct" : "buffered";
    printTable(`${what}, ${condition.name} (load ${loadBefore?.toFixed(1)})`, rows);
    return { condition: condition.name, io: what, loadBefore, rows };
  } finally {
    busy?.kill();
    await stopServers(servers);
  }
}

const dir = mkdtempSync(join(tmpdir(), "xentool-bench-"));
const host = startHost();
try {
  const images = [false, true].map((direct) => ({ direct, image: join(dir, `${String(direct)}.img`) }));
  for (const { image } of images) makeImage(image, IMAGE_MIB);
  const tables = [];
  for (const condition of conditions())
    for (const { direct, image } of images) tables.push(await measure({ host, image, direct, condition }));
  console.log(JSON.stringify({ imageMiB: IMAGE_MIB, turns: TURNS, secondsEach: SECONDS, tables }));
} finally {
  xentool(["sim", "stop", "--dir", host]);
  rmSync(dir, { recursive: true });
}
