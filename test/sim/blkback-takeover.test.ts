// Servers that are killed at random while guests ask for more than they can answer, and guests that go on, begin anew
// on a new ring, or are followed by others with the same number while nobody serves: no write is done that was not
// asked for on the ring that is there, none is lost that was acknowledged, and each request is answered once. Disks
// have one, two and four queues, and limits or none.
import { expect, test } from "bun:test";
import { chosenSeed, Random } from "../support/random.ts";
import { TakeoverWorld } from "./takeover-world.ts";

const KILLS = Number(process.env["KILLS"] ?? 50);
/** Disks of so many queues, whose server has limits or none. */
const WAYS = [1, 2, 4].flatMap((queues) => [`${queues} queues, limited`, `${queues} queues, without limits`]);
/** With so many kills each way to be hit has come. */
const ENOUGH_KILLS = 500;

test("kills and guests that move on", async () => {
  const seed = chosenSeed();
  console.log(`takeover: SEED=${seed}`);
  const world = await TakeoverWorld.start(new Random(seed));
  let leaks: string[];
  try {
    for (let kills = 0; kills < KILLS; kills++) await world.round();
    await world.finish();
    const hits = [...world.hits].toSorted(([one], [other]) => one.localeCompare(other));
    console.log(hits.map(([hit, times]) => `${hit}: ${times}`).join("; "));
    if (KILLS >= ENOUGH_KILLS) expect(hits.map(([hit]) => hit)).toEqual(WAYS);
  } finally {
    leaks = await world.close();
  }
  expect(leaks).toEqual([]);
}, 600_000);
