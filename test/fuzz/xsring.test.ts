// A smoke of the fuzzer; `npm run fuzz` runs a million cases.
import { test } from "bun:test";
import { run } from "./xsring.fuzz.ts";
import { chosenSeed } from "../support/random.ts";

const seed = chosenSeed();

test(`random pages are drawn, followed and planned for (SEED=${seed})`, async () => {
  await run(3_000, seed);
}, 60_000);
