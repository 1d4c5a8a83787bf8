// What several queues cost and bring, on one thread and on two: requests a second of 1, 2 and 4 queues at each depth,
// in many short turns that alternate, because these machines are noisy; medians, and the processor time of both ends
// for a request. JSON on stdout.
import { mkdtempSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { counted } from "../src/core/counted.ts";
import { readUntil } from "../test/support/process.ts";
import { cpuSeconds, makeImage, median, startHost, XENTOOL, xentool } from "./measure.ts";

const SECONDS = Number(process.env["SECONDS_EACH"] ?? 0.5);
/** Each thread compiles its own copy of our code as it runs. */
const RAMP_SECONDS = Number(process.env["RAMP_SECONDS"] ?? 0.5);
const ROUNDS = 7;
const IMAGE_MIB = 64;
interface Way {
  readonly queues: number;
  readonly threads: number;
}

/** More threads than queues would be as many as queues. */
const WAYS: readonly Way[] = [
  { queues: 1, threads: 1 },
  { queues: 2, threads: 1 },
  { queues: 2, threads: 2 },
  { queues: 4, threads: 1 },
  { queues: 4, threads: 2 },
];
/** By number of threads. */
const DISKS = ["", "xvdb", "xvdc"];
const LOADS = [
  { rw: "randread", bs: "4k", depths: [1, 32, 128] },
  { rw: "randwrite", bs: "4k", depths: [1, 32, 128] },
  { rw: "randread", bs: "1M", depths: [4, 32] },
];

/** A number of threads, and the process that serves a disk with so many. */
type Servers = ReadonlyMap<number, number>;

interface Turn {
  readonly iops: number;
  readonly p99Us: number;
  /** Microseconds of processor time for a request. */
  readonly serverUs: number;
  readonly guestUs: number;
}

function turn(host: string, server: number, load: readonly string[], { queues, threads }: Way): Turn {
  const before = cpuSeconds(server);
  const at = ["--vdev", DISKS[threads] ?? "", "--queues", String(queues)];
  const bench = ["blkfront", "bench", ...at, ...load, "--runtime", String(SECONDS), "--json"];
  const result = JSON.parse(xentool(bench, { XENTOOL_SIM: host, XENTOOL_DOMID: "1" })) as {
    queues: number;
    iops: number;
    reads: number;
    writes: number;
    cpuUserMs: number;
    cpuSystemMs: number;
    latencyUs: { p99: number };
  };
  if (result.queues !== queues) throw new Error(`${result.queues} queues, where ${queues} were asked for`);
  const requests = result.reads + result.writes;
  // The server's time is that of the whole turn.
  const all = (requests * (RAMP_SECONDS + SECONDS)) / SECONDS;
  return {
    iops: result.iops,
    p99Us: result.latencyUs.p99,
    serverUs: ((cpuSeconds(server) - before) * 1e6) / all,
    guestUs: ((result.cpuUserMs + result.cpuSystemMs) * 1e3) / requests,
  };
}

function medians(turns: readonly Turn[]): Turn {
  const of = (key: keyof Turn): number => Number(median(turns.map((it) => it[key])).toFixed(1));
  return { iops: of("iops"), p99Us: of("p99Us"), serverUs: of("serverUs"), guestUs: of("guestUs") };
}

/** The rows of one load, one for each number of queues and threads. */
function compare(host: string, servers: Servers, rw: string, bs: string, depth: number): unknown[] {
  const load = ["--rw", rw, "--bs", bs, "--iodepth", String(depth), "--ramp", String(RAMP_SECONDS)];
  const turns = new Map<Way, Turn[]>(WAYS.map((way) => [way, []]));
  for (let round = 0; round < ROUNDS; round++)
    for (const [way, done] of turns) done.push(turn(host, servers.get(way.threads) ?? 0, load, way));
  const rows = [...turns].map(([way, done]) => ({ rw, bs, depth, ...way, ...medians(done) }));
  return rows.map((row) => {
    const toOneQueue = Number((row.iops / (rows[0]?.iops ?? 1)).toFixed(2));
    const way = `${counted(row.queues, "queue")}, ${counted(row.threads, "thread")}`;
    console.error(`  ${rw} ${bs} depth ${depth}, ${way}: ${row.iops} IOPS, ${toOneQueue} of one`);
    return { ...row, toOneQueue };
  });
}

async function serve(
  host: string,
  image: string,
  threads: number,
): Promise<Bun.Subprocess<"ignore", "pipe", "pipe">> {
  makeImage(image, IMAGE_MIB);
  const at = [
    "--domid",
    "1",
    "--vdev",
    DISKS[threads] ?? "",
    "--max-queues",
    "4",
    "--threads",
    String(threads),
  ];
  const server = Bun.spawn([XENTOOL, "blkback", "serve", image, ...at], {
    env: { ...process.env, XENTOOL_SIM: host },
    stdio: ["ignore", "pipe", "pipe"],
  });
  await readUntil(server.stderr, "offering");
  return server;
}

const dir = mkdtempSync(join(tmpdir(), "xentool-bench-"));
const host = startHost();
try {
  const running = [await serve(host, join(dir, "1.img"), 1), await serve(host, join(dir, "2.img"), 2)];
  const servers = new Map(running.map(({ pid }, index) => [index + 1, pid]));
  const rows = LOADS.flatMap(({ rw, bs, depths }) =>
    depths.flatMap((depth) => compare(host, servers, rw, bs, depth)),
  );
  for (const server of running) {
    server.kill("SIGTERM");
    await server.exited;
  }
  console.log(JSON.stringify({ secondsEach: SECONDS, rounds: ROUNDS, rows }));
} finally {
  xentool(["sim", "stop", "--dir", host]);
  rmSync(dir, { recursive: true });
}
