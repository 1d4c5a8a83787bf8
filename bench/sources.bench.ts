// Disks whose bytes another program has, through xentool and through QEMU's qdisk: a qcow2, each its own copy, because
// two writers would ruin one, and one NBD export of nbdkit's memory. Same frontend, same run, short turns. JSON on
// stdout, tables on stderr.
//   bun bench/sources.bench.ts [--long]
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

interface Source {
  readonly name: string;
  /** For `blkback serve`. */
  readonly ours: readonly string[];
  /** Nodes of QEMU's; the last one is `disk`. */
  readonly theirs: readonly object[];
}

async function run(...argv: readonly string[]): Promise<void> {
  const { status, stderr } = await finished(start(argv));
  if (status !== 0) throw new Error(`${argv.join(" ")} failed: ${stderr}`);
}

async function measure(host: string, { name, ours, theirs }: Source, vdevs: string): Promise<unknown> {
  const [first, second] = [...vdevs].map((letter) => `xvd${letter}`) as [string, string];
  const ground = { host, prefix: [] };
  const servers = [await startXentoolOf(ground, first, ours)];
  const measureOnce = (server: DiskServer, load: Load): Turn => measureServer(ground, server, load, SECONDS);
  try {
    const blockdevs = theirs.flatMap((node) => ["-blockdev", JSON.stringify(node)]);
    servers.push(startQemuOf(ground, second, QEMU, blockdevs));
    for (const server of servers.toReversed()) measureOnce(server, LOADS[0] as Load);
    const rivals = servers.map((server) => ({
      name: server.name,
      measure: (load: Load) => measureOnce(server, load),
    }));
    const loadBefore = loadavg()[0];
    const rows = LOADS.map((load) => compare(rivals, load, TURNS));
    printTable(`${name} (load ${loadBefore?.toFixed(1)})`, rows);
    return { source: name, loadBefore, rows };
  } finally {
    await stopServers(servers);
  }
}

const dir = mkdtempSync(join(tmpdir(), "xentool-bench-"));
const host = startHost();
try {
  const raw = join(dir, "raw.img");
  makeImage(raw, IMAGE_MIB);
  const [ourCopy, theirCopy] = [join(dir, "ours.qcow2"), join(dir, "theirs.qcow2")];
  for (const copy of [ourCopy, theirCopy]) await run("qemu-img", "convert", "-O", "qcow2", raw, copy);
  await using server = await nbdkit([], () => ["memory", `${IMAGE_MIB}M`]);
  await run("nbdcopy", raw, server.uri);
  const unix = { type: "unix", path: join(server.dir, "nbd.sock") };
  const tables = [
    await measure(
      host,
      {
        name: "a qcow2",
        ours: [ourCopy, "--format", "qcow2"],
        theirs: [
          { driver: "file", filename: theirCopy, "node-name": "file" },
          { driver: "qcow2", file: "file", "node-name": "disk" },
        ],
      },
      "bc",
    ),
    await measure(
      host,
      {
        name: "an NBD export",
        ours: [server.uri],
        theirs: [{ driver: "nbd", server: unix, export: "vm 7", "node-name": "disk" }],
      },
      "de",
    ),
  ];
  console.log(JSON.stringify({ imageMiB: IMAGE_MIB, turns: TURNS, secondsEach: SECONDS, tables }));
} finally {
  xentool(["sim", "stop", "--dir", host]);
  rmSync(dir, { recursive: true });
}
