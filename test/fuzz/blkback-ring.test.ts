// A smoke of the block ring's fuzz; `npm run fuzz` runs a million cases.
import { test } from "bun:test";
import { run } from "./blkback-ring.fuzz.ts";

test("twenty thousand requests", async () => {
  const seed = Number(process.env["SEED"] ?? Date.now() % 2 ** 32);
  console.log(`blkback-ring: SEED=${seed}`);
  await run(20_000, seed);
}, 60_000);
