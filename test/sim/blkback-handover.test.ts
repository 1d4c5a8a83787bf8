// Handovers from one `watch` to the next in which somebody stops or dies in the middle: each guest is served by one of
// the two in the end, whichever it is.
import { afterEach, beforeEach, expect, test } from "bun:test";
import { existsSync } from "node:fs";
import { createDevice, destroyDevice } from "../../src/blkback/toolstack.ts";
import { childrenOf, guestProcessOf, readUntil, type Child } from "../support/process.ts";
import { chosenSeed, Random } from "../support/random.ts";
import { WorkingGuests } from "./working-guests.ts";

const GUESTS = 3;
const ANSWERS = 20;

let world: WorkingGuests;
let watch: Child;
/** All that the test has seen of the watches and their processes. */
let seen: Set<number>;

beforeEach(async () => {
  const seed = chosenSeed();
  console.log(`handover: SEED=${seed}`);
  world = await WorkingGuests.start(GUESTS, new Random(seed));
  watch = world.watch("-v");
  await world.connect();
  await world.workMore(ANSWERS);
  seen = new Set([watch.pid, ...childrenOf(watch.pid)]);
});

afterEach(async () => {
  await world.finish();
  for (const pid of seen) if (isAlive(pid)) process.kill(pid, "SIGTERM");
  while ([...seen].some(isAlive)) await Bun.sleep(5);
  await world.close();
});

function isAlive(pid: number): boolean {
  return existsSync(`/proc/${pid}/exe`);
}

interface Stuck {
  readonly successor: number;
  /** The first of the processes that were stopped, so that they do not leave. */
  readonly stopped: number;
}

/** A handover in which the successor has all guests but some. */
async function stuckHandover(domids = [GUESTS]): Promise<Stuck> {
  const stopped = domids.map((domid) => guestProcessOf(watch.pid, domid) as number);
  for (const pid of stopped) process.kill(pid, "SIGSTOP");
  watch.kill("SIGUSR2");
  const successor = Number(/process (\d+) takes over/.exec(await said("takes over"))?.[1]);
  await world.work(true, () => childrenOf(watch.pid).every((pid) => [...stopped, successor].includes(pid)));
  for (const pid of [successor, ...childrenOf(successor)]) seen.add(pid);
  // Nobody had to be killed for that.
  expect(stopped.filter(isAlive)).toEqual(stopped);
  const others = world.guests.filter(({ address }) => !domids.includes(address.frontend));
  await world.workMore(ANSWERS, others);
  // Or else the machine is so busy that all of it took longer than a process may take to leave.
  expect(stopped.filter(isAlive)).toEqual(stopped);
  return { successor, stopped: stopped[0] };
}

/** Guests work on until the old watch has said so. */
async function said(text: string): Promise<string> {
  const read = readUntil(watch.stderr, text);
  await world.workUntil(read);
  return read;
}

/** The old watch serves all guests. */
async function servesOn(): Promise<void> {
  await world.workMore(ANSWERS);
  for (let domid = 1; domid <= GUESTS; domid++) expect(guestProcessOf(watch.pid, domid)).toBeNumber();
  for (const pid of childrenOf(watch.pid)) seen.add(pid);
}

test("a process that does not leave is killed, and the successor has all guests", async () => {
  const { successor } = await stuckHandover();
  await world.workUntil(watch.exited);
  expect(await watch.exited).toBe(0);
  await world.workMore(ANSWERS);
  expect(childrenOf(successor)).toHaveLength(GUESTS);
});

test("guests whose processes do not leave hold up no other guest", async () => {
  await stuckHandover([1, 2]);
  await world.workUntil(watch.exited);
  await world.workMore(ANSWERS);
});

test("a process that does not end keeps no watch from ending", async () => {
  process.kill(guestProcessOf(watch.pid, 1) as number, "SIGSTOP");
  watch.kill("SIGTERM");
  expect(await watch.exited).toBe(143);
  watch = world.watch("-v");
  await world.workMore(ANSWERS);
  for (const pid of [watch.pid, ...childrenOf(watch.pid)]) seen.add(pid);
});

test("a watch that is to end in a handover leaves no process behind", async () => {
  const { successor, stopped } = await stuckHandover();
  watch.kill("SIGTERM");
  expect(await watch.exited).toBe(143);
  expect([successor, stopped].filter(isAlive)).toEqual([]);
  watch = world.watch("-v");
  await world.workMore(ANSWERS);
  for (const pid of [watch.pid, ...childrenOf(watch.pid)]) seen.add(pid);
});

test("a successor that dies while a guest's process takes its time gives back at once what it has", async () => {
  const { successor, stopped } = await stuckHandover();
  process.kill(successor, "SIGKILL");
  const text = await said("nothing is handed over: the next `watch` has ended");
  expect(text).not.toContain("does not end");
  await world.workMore(ANSWERS, world.guests.slice(0, -1));
  process.kill(stopped, "SIGCONT");
  await servesOn();
});

test("a successor that hangs gets no more guests, and gives back what it has", async () => {
  const { successor, stopped } = await stuckHandover();
  process.kill(successor, "SIGSTOP");
  process.kill(stopped, "SIGCONT");
  await said("nothing is handed over: the next `watch` does not answer");
  await servesOn();
});

test("a guest that was handed over and gets another disk is served by the successor at once", async () => {
  const { successor, stopped } = await stuckHandover();
  const [{ address, guest, model }] = world.guests;
  await world.work(false, () => guest.waiting === 0);
  await guest.setState(6);
  await guest.untilBackend(6);
  await destroyDevice(world.xenstore, address);
  while (guestProcessOf(successor, 1) !== undefined) await Bun.sleep(5);
  await createDevice(world.xenstore, { address, readOnly: false, params: model.path, deviceType: "disk" });
  await guest.connect();
  expect(isAlive(stopped)).toBe(true);
  for (const pid of childrenOf(successor)) seen.add(pid);
  process.kill(stopped, "SIGCONT");
  await world.workUntil(watch.exited);
  await world.workMore(ANSWERS);
});
