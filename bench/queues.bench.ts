// What several queues cost and bring, on one plane: requests a second of 1, 2 and 4 queues at each depth, in many short
// turns that alternate, because these machines are noisy; medians, and the processor time of both ends for a request.
// JSON on stdout.
import { mkdtempSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { readUntil } from "../test/support/process.ts";
import { cpuSeconds, makeImage, median, startHost, XENTOOL, xentool } from "./measure.ts";

const SECONDS = Number(process.env["SECONDS_EACH"] ?? 0.5);
const ROUNDS = 7;
const IMAGE_MIB = 64;
const QUEUES = [1, 2, 4];
const DEPTHS = [1, 32, 128];
const PATTERNS = ["randread", "randwrite"];

interface Turn {
  readonly iops: number;
  readonly p99Us: number;
  /** Microseconds of processor time for a request. */
  readonly serverUs: number;
  readonly guestUs: number;
}

function turn(host: string, server: number, rw: string, depth: number, queues: number): Turn {
  const before = cpuSeconds(server);
  const load = ["--rw", rw, "--iodepth", String(depth), "--queues", String(queues)];
  const bench = ["blkfront", "bench", "--vdev", "xvdb", ...load, "--runtime", String(SECONDS), "--json"];
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
  return {
    iops: result.iops,
    p99Us: result.latencyUs.p99,
    serverUs: ((cpuSeconds(server) - before) * 1e6) / requests,
    guestUs: ((result.cpuUserMs + result.cpuSystemMs) * 1e3) / requests,
  };
}

function medians(turns: readonly Turn[]): Turn {
  const of = (key: keyof Turn): number => Number(median(turns.map((it) => it[key])).toFixed(1));
  return { iops: of("iops"), p99Us: of("p99Us"), serverUs: of("serverUs"), guestUs: of("guestUs") };
}

/** The rows of one pattern and depth, one for each number of queues. */
function compare(host: string, server: number, rw: string, depth: number): unknown[] {
  const turns = new Map<number, Turn[]>(QUEUES.map((queues) => [queues, []]));
  for (let round = 0; round < ROUNDS; round++)
    for (const [queues, done] of turns) done.push(turn(host, server, rw, depth, queues));
  const rows = [...turns].map(([queues, done]) => ({ rw, depth, queues, ...medians(done) }));
  return rows.map((row) => {
    const toOneQueue = Number((row.iops / (rows[0]?.iops ?? 1)).toFixed(2));
    console.error(`  ${rw} 4k depth ${depth}, ${row.queues} queues: ${row.iops} IOPS, ${toOneQueue} of one`);
    return { ...row, toOneQueue };
  });
}

const dir = mkdtempSync(join(tmpdir(), "xentool-bench-"));
const host = startHost();
try {
  const image = join(dir, "disk.img");
  makeImage(image, IMAGE_MIB);
  const args = ["blkback", "serve", image, "--domid", "1", "--vdev", "xvdb", "--max-queues", "4"];
  const server = Bun.spawn([XENTOOL, ...args], {
    env: { ...process.env, XENTOOL_SIM: host },
    stdio: ["ignore", "pipe", "pipe"],
  });
  await readUntil(server.stderr, "offering");
  const rows = PATTERNS.flatMap((rw) => DEPTHS.flatMap((depth) => compare(host, server.pid, rw, depth)));
  server.kill("SIGTERM");
  await server.exited;
  console.log(JSON.stringify({ secondsEach: SECONDS, rounds: ROUNDS, rows }));
} finally {
  xentool(["sim", "stop", "--dir", host]);
  rmSync(dir, { recursive: true });
}
