// A server that is slow, not dead: what it was sent on a connection that we have given up must not be carried out after
// what we send on the next one, because an older write would then undo a newer one.
import { afterEach, expect, test } from "bun:test";
import { beginConnection } from "../../src/block/targets/nbd/dial.ts";
import type { OnDialled } from "../../src/block/targets/nbd/link.ts";
import type { NbdTargetOptions } from "../../src/block/targets/nbd/target.ts";
import { IO_FLUSH, IO_READ, IO_WRITE } from "../../src/native/reactor.ts";
import { NBD_CMD_READ, NBD_CMD_WRITE } from "../../src/protocol/nbd.ts";
import { chosenSeed, Random } from "../support/random.ts";
import {
  chunk,
  dataAt,
  simple,
  TargetAndPeer,
  type Connection,
  type SeenRequest,
} from "./nbd-target-peer.ts";

const EIO = -5;
/** Long enough for replies on a busy machine. */
const SILENCE_MS = 300;
const NEVER_MS = 600_000;
/** A connection is lost only when it is cut. */
const NEVER = { silenceMs: NEVER_MS, endingMs: NEVER_MS };
/** Flushes, trims, several connections. */
const FLAGS = 1 | 4 | 32 | 256;

let fixture: TargetAndPeer | undefined;
afterEach(() => {
  fixture?.close();
  fixture = undefined;
});

/** A server whose disk is one byte, and which carries out what `isLate` holds when `carryOut` is called. */
class LateServer {
  byte = 0;
  readonly late: (() => void)[] = [];
  readonly peer: TargetAndPeer;

  constructor(
    isLate: (request: SeenRequest) => boolean,
    { silenceMs = SILENCE_MS, ...more }: Partial<NbdTargetOptions>,
    flags = 1 | 4 | 32,
  ) {
    const reply = (request: SeenRequest, connection: Connection): Uint8Array | undefined => {
      if (!isLate(request)) return this.#reply(request);
      this.late.push(() => void connection.write(this.#reply(request)));
      return undefined;
    };
    this.peer = new TargetAndPeer({ reply, flags }, silenceMs, { holdMs: Infinity, ...more });
    fixture = this.peer;
  }

  carryOut(): void {
    for (const one of this.late.splice(0)) one();
  }

  write(tag: number, byte: number, offset = 0): void {
    const { memory, target } = this.peer;
    memory.bytes.fill(byte, tag * 512, tag * 512 + 512);
    target.start(IO_WRITE, tag, offset, 512, memory.address + tag * 512);
  }

  #reply(request: SeenRequest): Uint8Array {
    if (request.command === NBD_CMD_WRITE) this.byte = request.data[0] ?? 0;
    if (request.command !== NBD_CMD_READ) return simple(request);
    return chunk(request, 1, true, dataAt(request.offset, Buffer.alloc(request.length, this.byte)));
  }
}

test("a server that was silent has carried out all changes before anything is sent on a new connection", async () => {
  let isLate = true;
  const server = new LateServer(() => isLate, { endingMs: NEVER_MS });
  const { peer } = server;
  server.write(1, 1);
  await peer.until(() => peer.target.failure?.includes("nothing came") === true);
  isLate = false;
  await peer.settle();
  expect([peer.opened, peer.target.isStuck]).toEqual([1, false]);
  server.carryOut();
  expect(await peer.ended(1)).toEqual([[1, 512]]);
  server.write(2, 2);
  expect(await peer.ended(1)).toEqual([[2, 512]]);
  expect([server.byte, peer.opened]).toEqual([2, 2]);
});

test("when one connection is lost, the others' changes are replied to before they are made anew", async () => {
  const lost: Connection[] = [];
  const server = new LateServer(({ data }) => data[0] === 1, NEVER, FLAGS);
  const { peer } = server;
  await peer.until(() => peer.target.isServing);
  server.write(1, 1);
  await peer.until(() => server.late.length === 1);
  peer.become({
    reply: (_, connection) => {
      lost.push(connection);
      return undefined;
    },
  });
  server.write(3, 3, 4096);
  await peer.until(() => lost.length === 1);
  peer.become({ reply: (request) => simple(request) });
  lost[0].terminate();
  await peer.until(() => !peer.target.isServing);
  await peer.settle();
  expect(peer.opened).toBe(4);
  server.carryOut();
  expect(await peer.ended(2)).toEqual([
    [1, 512],
    [3, 512],
  ]);
});

test("a server that never replies is waited for so long and no longer", async () => {
  const server = new LateServer(({ data }) => data[0] === 1 && server.peer.opened === 1, { endingMs: 10 });
  server.write(1, 1);
  expect(await server.peer.ended(1)).toEqual([[1, 512]]);
  expect([server.late.length, server.peer.opened]).toEqual([1, 2]);
});

test("changes without a reply have the next connection made anew, and only these", async () => {
  let isLate = true;
  const server = new LateServer(() => isLate, NEVER);
  const { peer } = server;
  const { memory, target } = peer;
  const dieNow = async (count: number): Promise<void> => {
    await peer.until(() => server.late.length === count);
    server.late.length = 0;
    isLate = false;
    peer.die();
    await peer.ended(count);
    isLate = true;
  };
  server.write(1, 1);
  await dieNow(1);
  expect(peer.anew).toEqual([false, true]);
  target.start(IO_READ, 1, 0, 512, memory.address);
  target.start(IO_FLUSH, 2, 0, 0, 0);
  await dieNow(2);
  expect(peer.anew).toEqual([false, true, false]);
});

test("a connection that was asked for before does not pass for one that is made anew", async () => {
  const told: boolean[] = [];
  const asked: OnDialled[] = [];
  const dial = (onDialled: OnDialled, anew: boolean): void => {
    told.push(anew);
    asked.push(onDialled);
  };
  let isLate = true;
  const server = new LateServer(() => isLate, { dial, silenceMs: NEVER_MS }, FLAGS);
  const { peer } = server;
  const answer = (): void => {
    const connection = beginConnection({ address: peer.path, port: undefined, exportName: "a" });
    (asked.shift() as OnDialled)(connection);
  };
  answer();
  // The second connection does not come in time.
  await peer.until(() => peer.target.isServing);
  server.write(1, 1);
  await peer.until(() => server.late.length === 1);
  isLate = false;
  peer.die();
  await peer.until(() => peer.target.isStuck);
  await peer.settle();
  expect(told).toEqual([false, false]);
  while (!peer.target.isServing) {
    if (asked.length > 0) answer();
    await peer.turn();
  }
  expect(told.slice(0, 4)).toEqual([false, false, true, false]);
  expect(await peer.ended(1)).toEqual([[1, 512]]);
});

test("what changes nothing is not waited for", async () => {
  const server = new LateServer(() => server.peer.opened === 1, { endingMs: NEVER_MS });
  const { peer } = server;
  peer.target.start(IO_READ, 1, 0, 512, peer.memory.address);
  peer.target.start(IO_FLUSH, 2, 0, 0, 0);
  expect(await peer.ended(2)).toEqual([
    [1, 512],
    [2, 0],
  ]);
});

test("whoever leaves the disk to another server waits for replies, but not for long", async () => {
  const server = new LateServer(() => true, { endingMs: NEVER_MS });
  const { target } = server.peer;
  server.write(1, 1);
  await server.peer.until(() => target.failure !== undefined);
  expect(target.isStuck).toBe(false);
  target.limitEnding(1);
  await server.peer.until(() => target.isStuck);
});

test("whoever leaves the disk to another server waits for replies to what it sends again, too", async () => {
  let isLate = false;
  const server = new LateServer(({ command }) => isLate && command === NBD_CMD_WRITE, NEVER);
  const { peer } = server;
  const { target } = peer;
  server.write(1, 1);
  await peer.ended(1);
  isLate = true;
  peer.die();
  await peer.until(() => server.late.length === 1);
  server.write(2, 2);
  target.limitEnding(NEVER_MS);
  expect([target.isStuck, target.isEnding]).toEqual([false, true]);
  await peer.settle();
  expect([target.isStuck, server.late.length, peer.opened]).toEqual([false, 1, 2]);
  server.carryOut();
  await peer.until(() => target.isStuck);
});

test("a disk that is closed is not held by replies that do not come", async () => {
  const server = new LateServer(() => true, { endingMs: NEVER_MS });
  const { target } = server.peer;
  server.write(1, 1);
  await server.peer.until(() => target.failure !== undefined);
  target.limitHold(1);
  expect(await server.peer.ended(1)).toEqual([[1, EIO]]);
});

const SECTORS = 16;
const FLUSH = SECTORS;
const STEPS = 1500;
/** Here connections may be given up for no good reason. */
const HASTE_MS = 20;

/** A server that lives: it carries out what it is asked in any order and as late as it likes, on any connection. */
class LivingServer {
  readonly content = new Uint8Array(SECTORS);
  readonly peer: TargetAndPeer;
  readonly #random: Random;
  #pending: { readonly request: SeenRequest; readonly connection: Connection }[] = [];

  constructor(random: Random) {
    this.#random = random;
    const reply = (request: SeenRequest, connection: Connection): undefined =>
      void this.#pending.push({ request, connection });
    const how = { holdMs: Infinity, endingMs: NEVER_MS };
    this.peer = new TargetAndPeer({ reply, flags: FLAGS }, HASTE_MS, how);
    fixture = this.peer;
  }

  get isLate(): boolean {
    return this.#pending.length > 0;
  }

  /** What came on a connection that we have closed is later than anything else. */
  carryOutOne(isLast = false): void {
    const open = this.#pending.filter(({ connection }) => connection.readyState > 0);
    const from = open.length > 0 || !(isLast || this.#random.chance(0.01)) ? open : this.#pending;
    if (from.length === 0) return;
    const one = this.#random.pick(from);
    this.#pending.splice(this.#pending.indexOf(one), 1);
    one.connection.write(this.#done(one.request));
  }

  /** Closes a connection, and has then either done all that came on it, or never does it. */
  closeOne(): void {
    if (this.#pending.length === 0) return;
    const { connection } = this.#random.pick(this.#pending);
    const does = this.#random.chance(0.5);
    for (const one of this.#pending) if (does && one.connection === connection) this.#done(one.request);
    this.#pending = this.#pending.filter((one) => one.connection !== connection);
    connection.terminate();
  }

  #done(request: SeenRequest): Uint8Array {
    if (request.command === NBD_CMD_WRITE) this.content[request.offset / 512] = request.data[0];
    return simple(request);
  }
}

test("whatever is late and whatever is lost, no old write comes after a newer one", async () => {
  const seed = chosenSeed();
  console.log(`late server: SEED=${seed}`);
  const random = new Random(seed);
  const server = new LivingServer(random);
  const { peer } = server;
  /** By sector: what was written last, each time one more, and what the guest knows to be written. */
  const expected = new Uint8Array(SECTORS);
  const known = new Uint8Array(SECTORS);
  const free = new Set([...expected.keys(), FLUSH]);
  const reap = (): void => {
    for (const [tag, result] of peer.ends.splice(0)) {
      expect(result).toBe(tag === FLUSH ? 0 : 512);
      free.add(tag);
      if (tag < FLUSH) known[tag] = expected[tag];
    }
    // While it is sent again what it had, it goes back and forth.
    if (peer.target.isServing)
      for (const [at, byte] of server.content.entries()) expect(byte >= known[at]).toBe(true);
  };
  const ask = (tag: number): void => {
    if (tag === FLUSH) return peer.target.start(IO_FLUSH, tag, 0, 0, 0);
    const at = peer.memory.address + tag * 512;
    peer.memory.bytes.fill(++expected[tag], tag * 512, tag * 512 + 512);
    peer.target.start(IO_WRITE, tag, tag * 512, 512, at);
  };
  for (let step = 0; step < STEPS; step++) {
    const tag = random.below(SECTORS + 1);
    if (free.delete(tag)) ask(tag);
    if (random.chance(0.8)) server.carryOutOne();
    if (random.chance(0.01)) server.closeOne();
    await peer.turn();
    reap();
  }
  await peer.until(() => {
    server.carryOutOne();
    reap();
    return free.size === SECTORS + 1 && peer.target.isServing;
  });
  while (server.isLate) server.carryOutOne(true);
  expect(server.content).toEqual(expected);
});
