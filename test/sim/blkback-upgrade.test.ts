// Upgrades while guests work: one server of many disks in use follows another, as `systemctl restart` has it, and
// then as `systemctl reload` has it, where the next one is there before the last one goes. Guests notice a slow
// request, never an error, and every disk holds what its guest was told. STALLS=1 DISKS=20 prints how long they waited.
import { expect, test } from "bun:test";
import { existsSync } from "node:fs";
import { readUntil, type Child } from "../support/process.ts";
import { chosenSeed, Random } from "../support/random.ts";
import { WorkingGuests } from "./working-guests.ts";

const DISKS = Number(process.env["DISKS"] ?? 8);
const ROUNDS = Number(process.env["ROUNDS"] ?? 1);
/** Answers to each guest between two upgrades. */
const ANSWERS = 30;

async function withStalls(world: WorkingGuests, what: string, upgrade: () => Promise<void>): Promise<void> {
  for (const it of world.guests) it.stallMs = 0;
  await upgrade();
  await world.workMore(ANSWERS);
  if (process.env["STALLS"] === undefined) return;
  const stalls = world.guests.map(({ stallMs }) => Math.round(stallMs)).toSorted((a, b) => a - b);
  const at = (share: number): number | undefined => stalls[Math.ceil(stalls.length * share) - 1];
  console.log(`${what}: without an answer: median ${at(0.5)} ms, 90 % ${at(0.9)} ms, longest ${at(1)} ms`);
}

test("servers follow each other under load", async () => {
  const seed = chosenSeed();
  console.log(`upgrade: SEED=${seed}`);
  const random = new Random(seed);
  const world = await WorkingGuests.start(DISKS, random);
  const serve = (): Child => world.watch("--grants", random.pick(["copy", "map", "persistent"]));

  let server = serve();
  await world.connect();
  await world.workMore(ANSWERS);
  await withStalls(world, "no upgrade", async () => {});
  for (let round = 0; round < ROUNDS; round++)
    await withStalls(world, "restart", async () => {
      server.kill("SIGTERM");
      await world.workUntil(server.exited);
      expect(await server.exited).toBe(143);
      server = serve();
    });
  await readUntil(server.stderr, "serving the disks");
  let pid = server.pid;
  // The next one writes to the stderr of the first.
  for (let round = 0; round < ROUNDS; round++)
    await withStalls(world, "handover", async () => {
      process.kill(pid, "SIGUSR2");
      const text = readUntil(server.stderr, "serving the disks");
      await world.workUntil(text);
      pid = Number(/process (\d+) takes over/.exec(await text)?.[1]);
    });
  expect(await server.exited).toBe(0);
  await world.finish();
  process.kill(pid, "SIGTERM");
  while (existsSync(`/proc/${pid}/exe`)) await Bun.sleep(5);
  await world.close();
}, 300_000);
