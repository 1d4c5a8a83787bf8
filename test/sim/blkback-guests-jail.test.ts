// The processes of `watch` in their jails, probed from inside: what each has given up, and that one which tries to
// break out ends alone, while its disk goes on with the next one.
import { afterEach, beforeEach, expect, test } from "bun:test";
import { mkdirSync, readdirSync, rmSync, statSync, writeFileSync } from "node:fs";
import { constants } from "node:os";
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

/** The users of guests' processes, when we are root. */
const USUAL_BASE = 65_536;
const isRoot = process.geteuid?.() === 0;
const STRICT = ["--jail", "strict", ...(isRoot ? [] : ["--uid-base", "0"])];

function expectUser(pid: number, uid: number): void {
  const gid = uid === 0 ? 0 : statSync(world.host.dir).gid;
  for (const status of threadsOf(pid)) {
    expect(status).toMatch(new RegExp(`^Uid:(\\t${uid}){4}$`, "m"));
    expect(status).toMatch(new RegExp(`^Gid:(\\t${gid}){4}$`, "m"));
    if (uid !== 0) expect(status).toMatch(/^Groups:\s*$/m);
  }
}

const processOf = (domid: number): number | undefined => guestProcessOf(server.pid, domid);

async function watch(...more: string[]): Promise<readonly [number, number]> {
  server = world.watchWith(probe.env, ...more);
  await world.connect();
  await world.workMore(ANSWERS);
  return [processOf(1) as number, processOf(2) as number];
}

test("every thread has given up all that the jail takes, and gets nothing", async () => {
  const pids = await watch(...STRICT);
  for (const [index, pid] of pids.entries()) {
    expectJailed(pid);
    if (isRoot) expectUser(pid, USUAL_BASE + index + 1);
    expectRefused(await probe.ask(pid, `xentool@${index + 1}`));
  }
  await world.workMore(ANSWERS);
  await world.finish();
});

test.each(["Worker", "xentool@1"])(
  "breaking out of thread %s ends that process alone, and another one takes its disk over",
  async (name) => {
    const [victim, other] = await watch(...STRICT);
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

test("what a process planted in its directory goes with it, and what its disk needs stays", async () => {
  const [victim] = await watch(...STRICT);
  const own = join(world.host.dir, "blkback", "1");
  const before = readdirSync(own).sort();
  for (const name of ["strange", "2-51728.journal", "1-51728.journal.99", "1-51744.writes"])
    writeFileSync(join(own, name), "planted");
  mkdirSync(join(own, "1-51728.writes", "deep"), { recursive: true });
  process.kill(victim, "SIGKILL");
  await readUntil(server.stderr, "another one takes its disks over");
  await world.workMore(MORE_THAN_ON_RINGS);
  expect(readdirSync(own).sort()).toEqual(before);
  await world.finish();
});

const WATCH = [executable, "blkback", "watch", "--kind", "vbd", "--any-script"];

function watchUnder(how: readonly string[], ...options: string[]): Child {
  const env = { ...process.env, XENTOOL_SIM: world.host.dir, XENTOOL_DOMID: "0", ...probe.env };
  return start([...how, ...WATCH, ...options], { env });
}

test("without Landlock, a process gets at no file of another guest's, nor of root's", async () => {
  const journal = join(world.host.dir, "blkback", "2", "2-51728.journal");
  probe = new JailProbe(join(world.dir, "answers"), journal);
  server = watchUnder(NO_LANDLOCK);
  await world.connect();
  await world.workMore(ANSWERS);
  expect(statSync(journal).uid).toBe(isRoot ? USUAL_BASE + 2 : (process.geteuid?.() ?? 0));
  const threads = await probe.ask(processOf(1) as number, "xentool@1");
  // One of its questions is for a file that Landlock would not have let it make.
  rmSync("/tmp/xentool-jail-leak");
  const ofControl = threads.find(({ name }) => name === "xentool@1")?.errnos;
  // Everybody's, which Landlock would keep from it.
  expect(ofControl?.get("open")).toBe(0);
  expect(ofControl?.get("secret")).toBe(isRoot ? constants.errno.EACCES : 0);
  await world.finish();
});

test.each([
  ["the host lacks", NO_LANDLOCK, "Landlock"],
  ["it may not do", ["setpriv", "--bounding-set=-setuid"], "a user for each guest"],
])("watch says once for all its guests what %s, and serves none with strict", async (_what, how, lacks) => {
  const without = (...options: string[]): Child => watchUnder(how, ...options);
  const strict = await finished(without("--jail", "strict"));
  expect([strict.status, strict.stderr]).toEqual([3, expect.stringContaining(`insists on: ${lacks}\n`)]);
  server = without();
  await world.connect();
  await world.workMore(ANSWERS);
  await world.finish();
  server.kill("SIGTERM");
  const said = await server.stderr.text();
  expect(said.split(`the jail does without what this host lacks: ${lacks}\n`)).toHaveLength(2);
});

test("whoever the last server was, the next one finds what that left", async () => {
  const bases = [USUAL_BASE, 0, 200_000];
  for (const base of bases) {
    const watching = world.watchWith({}, "--uid-base", String(base));
    server = watching;
    if (base === bases[0]) await world.connect();
    // Until then, guests have answers that the last server left in the ring.
    await world.work(true, () => processOf(1) !== undefined);
    await world.workMore(ANSWERS);
    if (isRoot) expectUser(processOf(1) as number, base === 0 ? 0 : base + 1);
    for (const { guest } of world.guests) guest.ask();
    watching.kill("SIGKILL");
    await watching.exited;
  }
  server = world.watchWith({}, "--isolation", "thread");
  await world.workMore(ANSWERS);
  await world.finish();
}, 120_000);

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
