// Successors that die, or hang, at each step of a handover: the old `watch` has the guests then, and is found where it
// was. In the place of its executable it finds a program that plays a successor without serving anybody.
import { afterEach, beforeEach, expect, test } from "bun:test";
import { copyFileSync, renameSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { executable } from "../e2e/executable.ts";
import { guestProcessOf, readUntil, start, type Child } from "../support/process.ts";
import { chosenSeed, Random } from "../support/random.ts";
import { WorkingGuests } from "./working-guests.ts";

const GUESTS = 3;
const ANSWERS = 20;

let world: WorkingGuests;
let watch: Child;
let metrics: string;

beforeEach(async () => {
  const seed = chosenSeed();
  console.log(`failed handover: SEED=${seed}`);
  world = await WorkingGuests.start(GUESTS, new Random(seed));
  metrics = join(world.dir, "metrics");
});

afterEach(async () => {
  await world.finish();
  watch.kill("SIGTERM");
  expect(await watch.exited).toBe(143);
  await world.close();
});

async function startWatch(...more: readonly string[]): Promise<void> {
  copyFileSync(executable, join(world.dir, "xentool"));
  const words = ["blkback", "watch", "--kind", "vbd", "--any-script", "--metrics", `unix:${metrics}`];
  const env = { ...process.env, XENTOOL_SIM: world.host.dir, XENTOOL_DOMID: "0" };
  watch = start([join(world.dir, "xentool"), ...words, ...more], { env });
  await world.connect();
  await world.workMore(ANSWERS);
}

/** What starts from now on as the successor goes as far as `step`, and does `then`. */
function putSuccessor(step: string, then: string): void {
  const script = join(world.dir, "successor.ts");
  writeFileSync(
    script,
    `const at = (step: string): void => {
       if (step === ${JSON.stringify(step)}) { ${then} }
     };
     at("start");
     const say = (report: object): void => void process.send?.(report);
     process.on("message", (order: any) => {
       at("over" in order ? "over" : "take");
       if ("over" in order) return;
       say({ heard: order.take });
       at("heard");
       say({ taken: order.take });
       at("taken");
     });
     say({ ready: true, says: "serves" });
     at("ready");`,
  );
  const next = join(world.dir, "next");
  writeFileSync(next, `#!/bin/sh\nexec ${process.execPath} ${script}\n`, { mode: 0o755 });
  renameSync(next, join(world.dir, "xentool"));
}

async function servesOn(): Promise<void> {
  await world.workMore(ANSWERS);
  const answer = await fetch("http://watch/metrics", { unix: metrics });
  expect(await answer.text()).toContain("xentool");
}

test.each(["start", "ready", "take", "heard", "taken", "over"])(
  "one that dies at %p leaves the guests to the old watch, which others find again",
  async (step) => {
    await startWatch();
    putSuccessor(step, `process.kill(process.pid, "SIGKILL");`);
    watch.kill("SIGUSR2");
    await world.workUntil(readUntil(watch.stderr, "nothing is handed over: the next `watch` has ended"));
    await servesOn();
    for (let domid = 1; domid <= GUESTS; domid++) expect(guestProcessOf(watch.pid, domid)).toBeNumber();
  },
);

test("one that hangs when all guests are its gives them back", async () => {
  await startWatch();
  putSuccessor("over", "");
  watch.kill("SIGUSR2");
  await world.workUntil(readUntil(watch.stderr, "nothing is handed over: the next `watch` does not answer"));
  await servesOn();
});

test("with a thread for each disk, too", async () => {
  await startWatch("--isolation", "thread");
  putSuccessor("over", `process.kill(process.pid, "SIGKILL");`);
  watch.kill("SIGUSR2");
  await world.workUntil(readUntil(watch.stderr, "nothing is handed over: the next `watch` has ended"));
  await servesOn();
});
