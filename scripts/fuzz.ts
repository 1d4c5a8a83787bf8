// npm run fuzz [-- NAME…]: a million cases for each test/fuzz/NAME.fuzz.ts; `npm test` runs a smoke of each.
// CASES=N runs more or fewer, SEED=N repeats a run.
import { readdirSync } from "node:fs";
import { join } from "node:path";
import { bun, CommandFailed, cmake, main, root, run } from "./lib.ts";

const SUFFIX = ".fuzz.ts";
const CASES = 1_000_000;

await main(() => {
  const all = readdirSync(join(root, "test/fuzz"))
    .filter((file) => file.endsWith(SUFFIX))
    .map((file) => file.slice(0, -SUFFIX.length));
  const wanted = process.argv.slice(2);
  const unknown = wanted.find((name) => !all.includes(name));
  if (unknown !== undefined)
    throw new CommandFailed(`no fuzzer is called ${unknown}; there are: ${all.join(", ")}`);
  cmake("shim");
  const cases = process.env["CASES"] ?? String(CASES);
  for (const name of wanted.length > 0 ? wanted : all) {
    const seed = process.env["SEED"] ?? String(Date.now() % 2 ** 32);
    console.log(`${name}: ${cases} cases, SEED=${seed}`);
    run(bun, ["scripts/fuzz-run.ts", join(root, "test/fuzz", name + SUFFIX), cases, seed]);
  }
});
