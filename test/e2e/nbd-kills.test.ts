// A guest on an NBD server that forgets what was not flushed when it dies. The server is killed, xentool is, and both
// are, under load: the guest sees no error, and reads what it was told was written.
import { expect, test } from "bun:test";
import { chosenSeed, Random } from "../support/random.ts";
import { onForgetfulServer } from "./forgetful-server.ts";
import { KillWorld, type Victim } from "./kill-world.ts";

const ROUNDS = Number(process.env["NBD_KILLS"] ?? 6);
const VICTIMS: readonly Victim[] = ["the other program", "xentool", "both"];

test(
  "servers that are killed, alternating: nothing acknowledged is lost",
  async () => {
    const seed = chosenSeed();
    console.log(`NBD kills: SEED=${seed}`);
    const world = await KillWorld.start(new Random(seed), onForgetfulServer);
    let left: string[];
    try {
      for (let round = 0; round < ROUNDS; round++) await world.round(VICTIMS[round % VICTIMS.length]);
      await world.finish();
    } finally {
      left = await world.close();
    }
    expect(left).toEqual([]);
  },
  60_000 + ROUNDS * 5000,
);
