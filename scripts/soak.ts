// npm run soak [-- SECONDS]: servers of disks are killed at random under verified load, beside a guest that means no
// good, for a minute or for as long as is said. SEED=N repeats a run's choices, though not its timing.
import { buildAll } from "./build-all.ts";
import { bun, CommandFailed, main, run } from "./lib.ts";

const SECONDS = 60;

await main(() => {
  const seconds = Number(process.argv[2] ?? SECONDS);
  if (!(seconds > 0)) throw new CommandFailed("usage: npm run soak [-- SECONDS]");
  buildAll();
  const seed = process.env["SEED"] ?? String(Date.now() % 2 ** 32);
  console.log(`soak: ${seconds} s, SEED=${seed}`);
  run(bun, ["test/sim/soak-run.ts", String(seconds), seed]);
});
