// `watch` with its processes, real ones that are killed while their guests work: a guest whose process dies loses
// nothing and waits for the next one, and the others do not even wait.
import { afterEach, beforeEach, expect, test } from "bun:test";
import { copyFileSync, existsSync, linkSync, readlinkSync, renameSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { backendDir } from "../../src/blkback/address.ts";
import { createDevice, destroyDevice } from "../../src/blkback/toolstack.ts";
import { executable } from "../e2e/executable.ts";
import { childrenOf, guestProcessOf, readUntil, start, type Child } from "../support/process.ts";
import { chosenSeed, Random } from "../support/random.ts";
import { WorkingGuests } from "./working-guests.ts";

const GUESTS = 3;
const ANSWERS = 20;
const ROUNDS = 2;

let world: WorkingGuests;
let watches: Child[];

beforeEach(async () => {
  const seed = chosenSeed();
  console.log(`guests' processes: SEED=${seed}`);
  world = await WorkingGuests.start(GUESTS, new Random(seed));
  watches = [];
});

afterEach(async () => {
  const children = watches.flatMap(({ pid }) => (existsSync(`/proc/${pid}`) ? childrenOf(pid) : []));
  for (const watch of watches) watch.kill("SIGTERM");
  await Promise.all(watches.map(({ exited }) => exited));
  expect(children.filter(isAlive)).toEqual([]);
  await world.close();
});

function watch(...more: string[]): Child {
  const child = world.watch(...more);
  watches.push(child);
  return child;
}

function isAlive(pid: number): boolean {
  return existsSync(`/proc/${pid}/exe`);
}

async function otherProcess(server: Child, domid: number, than: number | undefined): Promise<number> {
  for (;;) {
    const pid = guestProcessOf(server.pid, domid);
    if (pid !== undefined && pid !== than) return pid;
    await Bun.sleep(5);
  }
}

test("each guest has a process, and what kills one costs the others nothing", async () => {
  const server = watch();
  await world.connect();
  await world.workMore(ANSWERS);
  const [victim, ...others] = world.guests;
  const [pid, ...pids] = [1, 2, 3].map((domid) => guestProcessOf(server.pid, domid) as number);
  expect(new Set([pid, ...pids]).size).toBe(GUESTS);
  for (let round = 0, last = pid; round < ROUNDS; round++) {
    victim.guest.ask();
    process.kill(last, "SIGKILL");
    await world.workMore(ANSWERS, others);
    last = await otherProcess(server, 1, last);
    await world.workMore(ANSWERS);
  }
  expect([2, 3].map((domid) => guestProcessOf(server.pid, domid))).toEqual(pids);
  await world.finish();
});

test("one that is asked to end, by whomever, is followed by another", async () => {
  const server = watch();
  await world.connect();
  const pid = guestProcessOf(server.pid, 1) as number;
  process.kill(pid, "SIGTERM");
  await readUntil(server.stderr, "domain 1: its process ended (status 0); another one takes its disks over");
  await world.workMore(ANSWERS);
  expect(guestProcessOf(server.pid, 1)).not.toBe(pid);
  await world.finish();
});

test("what a terminal sends to all of them is for watch, which ends them", async () => {
  const server = watch();
  await world.connect();
  const pids = childrenOf(server.pid);
  for (const pid of pids) for (const signal of ["SIGINT", "SIGHUP"]) process.kill(pid, signal);
  await world.workMore(ANSWERS);
  expect(childrenOf(server.pid)).toEqual(pids);
  server.kill("SIGINT");
  await world.workUntil(server.exited);
  expect(await server.exited).toBe(130);
  expect(pids.filter(isAlive)).toEqual([]);
  watch();
  await world.workMore(ANSWERS);
  await world.finish();
});

test("without watch they end, and the next watch goes on where they stopped", async () => {
  for (let round = 0; round < ROUNDS; round++) {
    const server = watch();
    if (round === 0) await world.connect();
    await world.workMore(ANSWERS);
    const pids = childrenOf(server.pid);
    for (const { guest } of world.guests) guest.ask();
    server.kill("SIGKILL");
    await server.exited;
    // The next one comes while they still end, or not.
    if (round === 0) await world.work(true, () => !pids.some(isAlive));
  }
  watch();
  await world.workMore(ANSWERS);
  await world.finish();
});

test("without watch one that hangs keeps no lock", async () => {
  const server = watch();
  await world.connect();
  await world.workMore(ANSWERS);
  const hung = guestProcessOf(server.pid, 1) as number;
  process.kill(hung, "SIGSTOP");
  server.kill("SIGKILL");
  await server.exited;
  watch();
  await world.workMore(ANSWERS);
  expect(isAlive(hung)).toBe(false);
  await world.finish();
});

test("a signal that asks watch for a handover is nothing to the process of a guest", async () => {
  const server = watch();
  await world.connect();
  const pids = childrenOf(server.pid);
  for (const pid of pids) process.kill(pid, "SIGUSR2");
  await world.workMore(ANSWERS);
  expect(childrenOf(server.pid)).toEqual(pids);
  await world.finish();
});

test("all of them killed at once", async () => {
  for (let round = 0; round < ROUNDS; round++) {
    const server = watch();
    if (round === 0) await world.connect();
    await world.workMore(ANSWERS);
    const pids = childrenOf(server.pid);
    for (const { guest } of world.guests) guest.ask();
    server.kill("SIGKILL");
    for (const pid of pids) process.kill(pid, "SIGKILL");
    await server.exited;
  }
  watch();
  await world.workMore(ANSWERS);
  await world.finish();
});

/** A watch that is none of our children. */
async function end(pid: number, signal: NodeJS.Signals): Promise<void> {
  const children = childrenOf(pid);
  process.kill(pid, signal);
  await world.work(true, () => ![pid, ...children].some(isAlive));
}

function successorIn(said: string): number {
  return Number(/process (\d+) takes over/.exec(said)?.[1]);
}

test.each([["process"], ["thread"]])(
  "handover with --isolation %s: the next watch is ready before the first guest is let go",
  async (isolation) => {
    const server = watch("-v", "--isolation", isolation);
    await world.connect();
    await world.workMore(ANSWERS);
    server.kill("SIGUSR2");
    const said = readUntil(server.stderr, "serving the disks").then(async (before) => {
      return before + (await readUntil(server.stderr, "serving the disks"));
    });
    await world.workUntil(server.exited);
    expect(await server.exited).toBe(0);
    const text = await said;
    const pid = successorIn(text);
    await world.workMore(ANSWERS);
    expect(childrenOf(pid)).toHaveLength(isolation === "process" ? GUESTS : 0);
    if (isolation === "process") {
      const after = text.slice(text.indexOf("takes over"));
      const [prepared, letGo] = ["a process for its disks", "its disks are let go"].map((it) =>
        after.split(it),
      );
      expect([prepared.length, letGo.length], text).toEqual([GUESTS + 1, GUESTS + 1]);
      expect(letGo[0].split("a process for its disks")).toHaveLength(GUESTS + 1);
    }
    await world.finish();
    await end(pid, "SIGTERM");
  },
);

test("the successor is what lies in our place by now, also when we were moved away", async () => {
  const place = join(world.dir, "xentool");
  copyFileSync(executable, place);
  const env = { XENTOOL_SIM: world.host.dir, XENTOOL_DOMID: "0" };
  const server = start([place, "-v", "blkback", "watch", "--kind", "vbd", "--any-script"], { env });
  watches.push(server);
  await world.connect();
  renameSync(place, `${place}.old`);
  linkSync(`${place}.old`, place);
  server.kill("SIGUSR2");
  const pid = successorIn(await readUntil(server.stderr, "takes over"));
  const found = readlinkSync(`/proc/${pid}/exe`);
  await world.workUntil(server.exited);
  await world.workMore(ANSWERS);
  await world.finish();
  await end(pid, "SIGTERM");
  expect(found).toBe(place);
});

test("a handover whose successor dies: guests are served as before, and the next one succeeds", async () => {
  const server = watch();
  await world.connect();
  server.kill("SIGUSR2");
  const pid = successorIn(await readUntil(server.stderr, "takes over"));
  await end(pid, "SIGKILL");
  await readUntil(server.stderr, "nothing is handed over: the next `watch` has ended");
  await world.workMore(ANSWERS);
  server.kill("SIGUSR2");
  const next = successorIn(await readUntil(server.stderr, "takes over"));
  await world.workUntil(server.exited);
  expect(await server.exited).toBe(0);
  await world.workMore(ANSWERS);
  await world.finish();
  await end(next, "SIGTERM");
});

test("a process ends when its guest has no disk any more; a new disk has a new one", async () => {
  const server = watch();
  await world.connect();
  const [{ address, model, guest }] = world.guests;
  const pid = guestProcessOf(server.pid, 1) as number;
  await guest.setState(6);
  await guest.untilBackend(6);
  await destroyDevice(world.xenstore, address);
  while (guestProcessOf(server.pid, 1) !== undefined) await Bun.sleep(5);
  expect(isAlive(pid)).toBe(false);
  await createDevice(world.xenstore, { address, readOnly: false, params: model.path, deviceType: "disk" });
  await guest.connect();
  expect(guestProcessOf(server.pid, 1)).not.toBe(pid);
  await world.workMore(ANSWERS);
  await world.finish();
});

test("a disk that its guest made look like a container stays a disk in the guest's next domain", async () => {
  watch();
  await world.connect();
  const [{ address, guest, model }] = world.guests;
  await world.work(false, () => guest.waiting === 0);
  writeFileSync(model.path, Buffer.concat([Buffer.from("QFI\xfb", "latin1"), Buffer.alloc((1 << 20) - 4)]));
  await guest.setState(6);
  await guest.untilBackend(6);
  await destroyDevice(world.xenstore, address);
  const next = { ...address, devid: 51744, frontend: world.guests[1].address.frontend };
  await createDevice(world.xenstore, {
    address: next,
    readOnly: false,
    params: model.path,
    deviceType: "disk",
  });
  await world.xenstore.waitFor(`${backendDir(next)}/hotplug-status`, (it) => it !== null, {
    timeoutMs: 20_000,
  });
  expect(await world.xenstore.read(`${backendDir(next)}/hotplug-status`)).toBe("connected");
  await destroyDevice(world.xenstore, next);
  for (const it of world.guests) {
    it.guest.close();
    if (it.address !== address) await destroyDevice(world.xenstore, it.address);
  }
});
