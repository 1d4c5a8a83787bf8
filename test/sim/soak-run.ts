// Run by Bun: verified load on disks whose servers are killed, beside a guest that means no good. Arguments: for how
// many seconds, and the seed.
import { argv } from "node:process";
import { Mischief } from "./mischief.ts";
import { Random } from "../support/random.ts";
import { TakeoverWorld } from "./takeover-world.ts";

const SAY_EVERY_MS = 60_000;
const MISCHIEF = 9;

const [seconds, seed] = argv.slice(2).map(Number) as [number, number];
const world = await TakeoverWorld.start(new Random(seed));
const mischief = new Mischief(world, MISCHIEF);
const end = performance.now() + seconds * 1000;
let kills = 0;
let failure: unknown;

const say = (): void => {
  const { flaps, oddValues, lies, reconnects, attachments } = mischief.done;
  console.log(
    `${kills} kills, ${attachments} attachments, ${reconnects} reconnects, ${flaps} states, ` +
      `${oddValues} odd values, ${lies} lies`,
  );
};

const isOver = (): boolean => failure !== undefined || performance.now() > end;
let leaks: string[];
try {
  const misbehaving = mischief.run(isOver).catch((error: unknown) => (failure ??= error));
  for (let said = performance.now(); !isOver(); kills++) {
    await world.round();
    if (performance.now() - said < SAY_EVERY_MS) continue;
    said = performance.now();
    say();
  }
  await Promise.all([misbehaving, world.finish()]);
} catch (error) {
  failure ??= error;
} finally {
  leaks = await world.close();
}
say();
if (failure !== undefined) throw new Error("not clean", { cause: failure });
if (leaks.length > 0) throw new Error(`left: ${leaks.join("; ")}`);
console.log("all of it was clean");
