// What a direct request of 4 KiB takes at least, by a C program (floor.c): alone, and with a guest in another process,
// which sleeps and is woken. Each by a call that waits and by one that is notified of the end. With real-time
// priority where that is allowed. Medians of short turns; JSON on stdout, microseconds.
//   bun bench/floor.bench.ts [--long]
import { spawnSync } from "node:child_process";
import { mkdtempSync, rmSync } from "node:fs";
import { loadavg, tmpdir } from "node:os";
import { join } from "node:path";
import { fileURLToPath } from "node:url";
import { makeImage, median, REAL_TIME, type Percentiles } from "./measure.ts";

const SOURCE = fileURLToPath(new URL("floor.c", import.meta.url));
const TURNS = process.argv.includes("--long") ? 11 : 3;
const MILLISECONDS = "300";
const IMAGE_MIB = 128;

function run(argv: readonly string[]): string {
  const [program = "", ...args] = argv;
  const done = spawnSync(program, args, { encoding: "utf8" });
  if (done.status !== 0) throw new Error(`${argv.join(" ")} failed: ${done.error?.message ?? done.stderr}`);
  return done.stdout;
}

const WAYS = ["read", "write"].flatMap((rw) =>
  ["wait", "async"].flatMap((how) => ["alone", "pipe"].map((where) => [rw, how, where] as const)),
);

const dir = mkdtempSync(join(tmpdir(), "xentool-bench-"));
try {
  const [image, program] = [join(dir, "image"), join(dir, "floor")];
  run(["cc", "-O2", "-std=c11", "-o", program, SOURCE]);
  makeImage(image, IMAGE_MIB);
  const [chrt = "", ...args] = REAL_TIME;
  const prefix = spawnSync(chrt, [...args, "true"]).status === 0 ? REAL_TIME : [];
  const turns = WAYS.map((): Percentiles[] => []);
  for (let turn = 0; turn < TURNS; turn++)
    for (const [index, way] of WAYS.entries())
      turns[index]?.push(JSON.parse(run([...prefix, program, image, ...way, MILLISECONDS])) as Percentiles);
  const rows = WAYS.map((way, index) => {
    const of = (name: keyof Percentiles): number => median((turns[index] ?? []).map((turn) => turn[name]));
    return { way: way.join(" "), p50: of("p50"), p90: of("p90"), p99: of("p99"), p999: of("p999") };
  });
  for (const { way, p50, p90, p99, p999 } of rows)
    console.error(`  ${way.padEnd(18)} ${p50} / ${p90} / ${p99} / ${p999}`);
  console.log(JSON.stringify({ realTime: prefix.length > 0, load: loadavg()[0], turns: TURNS, rows }));
} finally {
  rmSync(dir, { recursive: true });
}
