// Disks whose bytes another program has, through xentool and through QEMU's qdisk: a qcow2, each its own copy, because
// two writers would ruin one; one NBD export of nbdkit's memory; and new qcow2 images, each write to another
// cluster. Same frontend, same run, short turns. JSON on stdout, tables on stderr. Needs up to 20 GB in $TMPDIR.
//   bun bench/sources.bench.ts [--long] [qcow2] [nbd] [new-qcow2] [new-qcow2-with-tables]
import { mkdtempSync, rmSync } from "node:fs";
import { loadavg, tmpdir } from "node:os";
import { join } from "node:path";
import { nbdkit } from "../test/support/nbd-servers.ts";
import { finished, start } from "../test/support/process.ts";
import { measureServer, startQemuOf, startXentoolOf, stopServers, type DiskServer } from "./disk-servers.ts";
import { makeImage, startHost, xentool, type Load } from "./measure.ts";
import { compare, LOADS, printTable, type Turn } from "./side-by-side.ts";

const IS_LONG = process.argv.includes("--long");
const TURNS = Number(process.env["TURNS"] ?? (IS_LONG ? 11 : 3));
const SECONDS = Number(process.env["SECONDS_EACH"] ?? (IS_LONG ? 2 : 0.5));
const IMAGE_MIB = 128;
const QEMU = "QEMU";
/** So large that a random write hardly ever meets a cluster that a turn before has allocated. */
const NEW_IMAGE = { size: "32G", turns: 3 };
const RANDOM_WRITES = LOADS.filter(({ rw }) => rw === "randwrite");

interface Source {
  readonly name: string;
  /** For `blkback serve`. */
  readonly ours: readonly string[];
  /** Nodes of QEMU's; the last one is `disk`. */
  readonly theirs: readonly object[];
  readonly loads: readonly Load[];
  readonly turns: number;
}

async function run(...argv: readonly string[]): Promise<void> {
  const { status, stderr } = await finished(start(argv));
  if (status !== 0) throw new Error(`${argv.join(" ")} failed: ${stderr}`);
}

/** A qcow2 each. */
function twoImages(ours: string, theirs: string): Pick<Source, "ours" | "theirs"> {
  return {
    ours: [ours, "--format", "qcow2"],
    theirs: [
      { driver: "file", filename: theirs, "node-name": "file" },
      { driver: "qcow2", file: "file", "node-name": "disk" },
    ],
  };
}

async function measure(host: string, { name, ours, theirs, loads, turns }: Source): Promise<unknown> {
  const ground = { host, prefix: [] };
  const servers = [await startXentoolOf(ground, "xvdb", ours)];
  const measureOnce = (server: DiskServer, load: Load): Turn => measureServer(ground, server, load, SECONDS);
  try {
    const blockdevs = theirs.flatMap((node) => ["-blockdev", JSON.stringify(node)]);
    servers.push(startQemuOf(ground, "xvdc", QEMU, blockdevs));
    for (const server of servers.toReversed()) measureOnce(server, LOADS[0] as Load);
    const rivals = servers.map((server) => ({
      name: server.name,
      measure: (load: Load) => measureOnce(server, load),
    }));
    const loadBefore = loadavg()[0];
    const rows = loads.map((load) => compare(rivals, load, turns));
    printTable(`${name} (load ${loadBefore?.toFixed(1)})`, rows);
    return { source: name, loadBefore, rows };
  } finally {
    await stopServers(servers);
  }
}

/** An image that nothing was written to yet, made with these options of `qemu-img create`. */
async function measureNew(host: string, name: string, options: readonly string[]): Promise<unknown> {
  const images = [join(dir, "our-new.qcow2"), join(dir, "their-new.qcow2")] as const;
  const create = ["qemu-img", "create", "-q", "-f", "qcow2", ...options];
  for (const image of images) await run(...create, image, NEW_IMAGE.size);
  const source = { name, ...twoImages(...images), loads: RANDOM_WRITES, turns: NEW_IMAGE.turns };
  const table = await measure(host, source);
  for (const image of images) rmSync(image);
  return table;
}

const dir = mkdtempSync(join(tmpdir(), "xentool-bench-"));
const host = startHost();
try {
  const raw = join(dir, "raw.img");
  makeImage(raw, IMAGE_MIB);
  const copies = [join(dir, "ours.qcow2"), join(dir, "theirs.qcow2")] as const;
  for (const copy of copies) await run("qemu-img", "convert", "-O", "qcow2", raw, copy);
  await using server = await nbdkit([], () => ["memory", `${IMAGE_MIB}M`]);
  await run("nbdcopy", raw, server.uri);
  const unix = { type: "unix", path: join(server.dir, "nbd.sock") };
  const nbdNode = { driver: "nbd", server: unix, export: "vm 7", "node-name": "disk" };
  const all = { loads: LOADS, turns: TURNS };
  const measures: Readonly<Record<string, () => Promise<unknown>>> = {
    qcow2: () => measure(host, { name: "a qcow2", ...twoImages(...copies), ...all }),
    nbd: () => measure(host, { name: "an NBD export", ours: [server.uri], theirs: [nbdNode], ...all }),
    "new-qcow2": () => measureNew(host, "a new qcow2", []),
    "new-qcow2-with-tables": () =>
      measureNew(host, "a new qcow2 with its tables", ["-o", "preallocation=metadata"]),
  };
  const named = process.argv.slice(2).filter((argument) => !argument.startsWith("--"));
  const tables: unknown[] = [];
  for (const name of named.length > 0 ? named : Object.keys(measures)) {
    const one = measures[name];
    if (one === undefined) throw new Error(`${name} is none of ${Object.keys(measures).join(", ")}`);
    tables.push(await one());
  }
  console.log(JSON.stringify({ imageMiB: IMAGE_MIB, turns: TURNS, secondsEach: SECONDS, tables }));
} finally {
  xentool(["sim", "stop", "--dir", host]);
  rmSync(dir, { recursive: true });
}
