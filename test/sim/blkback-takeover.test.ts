// Servers that are killed at random while guests ask for more than they can answer, and guests that go on, begin anew
// on a new ring, or are followed by others with the same number while nobody serves: no write is done that was not
// asked for on the ring that is there, none is lost that was acknowledged, and each request is answered once.
import { expect, test } from "bun:test";
import { chosenSeed, Random } from "../support/random.ts";
import { TakeoverWorld } from "./takeover-world.ts";

const TAKEOVERS = Number(process.env["TAKEOVERS"] ?? 200);

test("kills and guests that move on", async () => {
  const seed = chosenSeed();
  console.log(`takeover: SEED=${seed}`);
  const world = await TakeoverWorld.start(new Random(seed));
  let leaks: string[];
  try {
    for (let takeovers = 0; takeovers < TAKEOVERS;) takeovers += await world.round();
    await world.finish();
  } finally {
    leaks = await world.close();
  }
  expect(leaks).toEqual([]);
}, 600_000);
