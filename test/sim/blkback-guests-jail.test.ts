// The processes of `watch` in their jails, probed from inside: what each has given up, and that one which tries to
// break out ends alone, while its disk goes on with the next one.
import { afterEach, beforeEach, expect, test } from "bun:test";
import { join } from "node:path";
import { executable, runXentool } from "../e2e/executable.ts";
import { expectJailed, expectRefused, JailProbe, poke, threadsOf } from "../support/jail-probe.ts";
import { finished, guestProcessOf, readUntil, start, type Child } from "../support/process.ts";
import { chosenSeed, Random } from "../support/random.ts";
import { WorkingGuests } from "./working-guests.ts";
import { testProgram } from "./xsring-harness.ts";

const ANSWERS = 20;
const NO_LANDLOCK = [testProgram("without_calls"), "444", "445", "446", "--"];

/** Four rings of four pages: so many answers of the process that ended may be there still. */
const MORE_THAN_ON_RINGS = 4 * 128 + 1;

let world: WorkingGuests;
let probe: JailProbe;
let server: Child;

beforeEach(async () => {
  const seed = chosenSeed();
  console.log(`guests' jails: SEED=${seed}`);
  world = await WorkingGuests.start(2, new Random(seed));
  probe = new JailProbe(join(world.dir, "answers"));
});

afterEach(async () => {
  server.kill("SIGTERM");
  await server.exited;
  await world.close();
});

const processOf = (domid: number): number | undefined => guestProcessOf(server.pid, domid);

async function watch(...more: string[]): Promise<readonly [number, number]> {
  server = world.watchWith(probe.env, ...more);
  await world.connect();
  await world.workMore(ANSWERS);
  return [processOf(1) as number, processOf(2) as number];
}

test("every thread has given up all that the jail takes, and gets nothing", async () => {
  const pids = await watch("--jail", "strict");
  for (const [index, pid] of pids.entries()) {
    expectJailed(pid);
    expectRefused(await probe.ask(pid, `xentool@${index + 1}`));
  }
  await world.workMore(ANSWERS);
  await world.finish();
});

test.each(["Worker", "xentool@1"])(
  "breaking out of thread %s ends that process alone, and another one takes its disk over",
  async (name) => {
    const [victim, other] = await watch("--jail", "strict");
    // The thread of a plane that has just ended may still be there, beside that of the next one.
    expect(await poke(victim, "SIGVTALRM", name)).toBeGreaterThan(0);
    const said = await readUntil(server.stderr, "another one takes its disks over");
    expect(said).toContain(`"${name}" asked for execve`);
    expect(said).toContain("domain 1: its process ended (SIGSYS)");
    await world.workMore(MORE_THAN_ON_RINGS);
    expect(processOf(1)).not.toBe(victim);
    expect(processOf(2)).toBe(other);
    expectJailed(processOf(1) as number);
    await world.finish();
  },
);

test("watch says once for all its guests what the host lacks, and serves none with strict", async () => {
  const env = { ...process.env, XENTOOL_SIM: world.host.dir, XENTOOL_DOMID: "0" };
  const words = [executable, "blkback", "watch", "--kind", "vbd", "--any-script"];
  const without = (...options: string[]): Child => start([...NO_LANDLOCK, ...words, ...options], { env });
  const strict = await finished(without("--jail", "strict"));
  expect([strict.status, strict.stderr]).toEqual([3, expect.stringContaining("insists on: Landlock\n")]);
  server = without();
  await world.connect();
  await world.workMore(ANSWERS);
  await world.finish();
  server.kill("SIGTERM");
  const said = await server.stderr.text();
  expect(said.split("the jail does without what this host lacks: Landlock\n")).toHaveLength(2);
});

test("--jail off gives up nothing", async () => {
  const [pid] = await watch("--jail", "off");
  for (const status of threadsOf(pid)) expect(status).toMatch(/^Seccomp:\t0$/m);
  await world.finish();
});

test("a jail is that of a process: not with --isolation thread", async () => {
  server = world.watch("--isolation", "thread", "--jail", "strict");
  expect(await server.exited).toBe(2);
  const { host } = world;
  const served = await runXentool(["blkback", "watch", "--help"], { env: { XENTOOL_SIM: host.dir } });
  expect(served.stdout).toContain("--jail");
  for (const { guest } of world.guests) guest.close();
});
