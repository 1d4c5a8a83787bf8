// npm run bench [-- NAME…] [--long]: runs the benchmarks of bench/, each in a process of its own, and prints one JSON
// document with what each found. Progress and tables are on stderr. Options are passed on: with --long, those that
// compare with other programs take many more and longer turns.
import { spawnSync } from "node:child_process";
import { readdirSync } from "node:fs";
import { availableParallelism, cpus, release } from "node:os";
import { join } from "node:path";
import { buildAll } from "./build-all.ts";
import { bun, CommandFailed, main, root } from "./lib.ts";

const SUFFIX = ".bench.ts";

/** What bench/NAME.bench.ts prints: one JSON document. */
function runBenchmark(name: string, options: readonly string[]): unknown {
  console.error(`bench: ${name}`);
  const done = spawnSync(bun, [join("bench", name + SUFFIX), ...options], {
    cwd: root,
    encoding: "utf8",
    stdio: ["ignore", "pipe", "inherit"],
  });
  if (done.status !== 0) throw new CommandFailed(`bench ${name} failed with status ${done.status}`);
  return JSON.parse(done.stdout);
}

await main(() => {
  const all = readdirSync(join(root, "bench"))
    .filter((file) => file.endsWith(SUFFIX))
    .map((file) => file.slice(0, -SUFFIX.length));
  const options = process.argv.slice(2).filter((argument) => argument.startsWith("--"));
  const wanted = process.argv.slice(2).filter((argument) => !argument.startsWith("--"));
  const unknown = wanted.find((name) => !all.includes(name));
  if (unknown !== undefined)
    throw new CommandFailed(`no benchmark is called ${unknown}; there are: ${all.join(", ")}`);
  buildAll();
  const results = Object.fromEntries(
    (wanted.length > 0 ? wanted : all).map((name) => [name, runBenchmark(name, options)]),
  );
  const host = { kernel: release(), cpu: cpus()[0]?.model ?? "unknown", cores: availableParallelism() };
  console.log(JSON.stringify({ host, results }, undefined, 2));
});
