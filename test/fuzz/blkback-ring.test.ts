// A smoke of the block ring's fuzz; `npm run fuzz` runs a million cases.
import { test } from "bun:test";
import { run } from "./blkback-ring.fuzz.ts";
import { chosenSeed } from "../support/random.ts";

test("twenty thousand requests", async () => {
  const seed = chosenSeed();
  console.log(`blkback-ring: SEED=${seed}`);
  await run(20_000, seed);
}, 60_000);
