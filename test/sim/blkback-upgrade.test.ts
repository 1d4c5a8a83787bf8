// An upgrade while guests work: one server of twenty disks in use follows another, as `systemctl restart` has it.
// Guests notice a slow request, never an error, and every disk holds what its guest was told. STALLS=1 prints how long
// they waited.
import { expect, test } from "bun:test";
import { readUntil } from "../support/process.ts";
import { chosenSeed, Random } from "../support/random.ts";
import { WorkingGuests } from "./working-guests.ts";

const DISKS = Number(process.env["DISKS"] ?? 20);
const UPGRADES = 3;
/** Answers to each guest between two upgrades. */
const ANSWERS = 30;

test("servers follow each other under load", async () => {
  const seed = chosenSeed();
  console.log(`upgrade: SEED=${seed}`);
  const random = new Random(seed);
  const world = await WorkingGuests.start(DISKS, random);
  const serve = () => world.watch("--grants", random.pick(["copy", "map", "persistent"]));

  let server = serve();
  await world.connect();
  await world.workMore(ANSWERS);
  for (let upgrade = 0; upgrade < UPGRADES; upgrade++) {
    for (const it of world.guests) it.stallMs = 0;
    const fromMs = performance.now();
    server.kill("SIGTERM");
    await world.workUntil(server.exited);
    expect(await server.exited).toBe(143);
    const endedMs = performance.now();
    server = serve();
    let readyMs = 0;
    const ready = readUntil(server.stderr, "serving the disks").then(() => (readyMs = performance.now()));
    await world.workMore(ANSWERS);
    await ready;
    if (process.env["STALLS"] !== undefined) {
      const stalls = world.guests.map(({ stallMs }) => Math.round(stallMs)).toSorted((a, b) => a - b);
      const [median, longest] = [stalls[stalls.length >> 1], stalls.at(-1)];
      console.log(
        `ended in ${Math.round(endedMs - fromMs)} ms, ready after ${Math.round(readyMs - endedMs)} ms; ` +
          `without an answer: median ${median} ms, longest ${longest} ms`,
      );
    }
  }
  await world.finish();
  server.kill("SIGTERM");
  expect(await server.exited).toBe(143);
  await world.close();
}, 300_000);
