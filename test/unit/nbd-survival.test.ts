// An NBD target and its successors through everything at once: a server that answers in any order, forgets, refuses,
// fails flushes and dies; connections that are cut, also while writes are sent again; and xentool, killed at any moment
// with its log of writes as it is then. No acknowledged write is lost, and no older one comes back.
import { expect, test } from "bun:test";
import { copyFileSync } from "node:fs";
import { join } from "node:path";
import { beginConnection } from "../../src/block/targets/nbd/dial.ts";
import { NbdTarget, type NbdTargetOptions } from "../../src/block/targets/nbd/target.ts";
import { WholeBlocks } from "../../src/block/targets/nbd/whole-blocks.ts";
import { WriteLog } from "../../src/block/targets/nbd/write-log.ts";
import type { ClosableTarget } from "../../src/block/target.ts";
import { IO_DISCARD, IO_FLUSH, IO_READ, IO_WRITE, Reactor, type OnEnd } from "../../src/native/reactor.ts";
import {
  NBD_CMD_FLUSH,
  NBD_CMD_READ,
  NBD_CMD_TRIM,
  NBD_CMD_WRITE,
  NBD_FLAG_CAN_MULTI_CONN,
  NBD_FLAG_HAS_FLAGS,
  NBD_FLAG_SEND_FLUSH,
  NBD_FLAG_SEND_TRIM,
} from "../../src/protocol/nbd.ts";
import { chosenSeed, Random } from "../support/random.ts";
import { chunk, dataAt, simple, SIZE, TargetAndPeer } from "./nbd-target-peer.ts";
import type { Connection, SeenRequest } from "./nbd-target-peer.ts";

const SECTORS = 96;
const SECTOR = 512;
const DEPTH = 10;
const MOST_SECTORS = 32;
/** Small enough that it is full again and again. */
const LOG_BYTES = 64 * 1024;
const STEPS = 1500;
/** Most often it writes. */
const OPS = [IO_READ, IO_READ, IO_WRITE, IO_WRITE, IO_WRITE, IO_WRITE, IO_WRITE, IO_DISCARD] as const;
const [EIO, ENOSPC, ENOTSUP, ESHUTDOWN] = [5, 28, 95, 108];

interface Asked {
  readonly request: SeenRequest;
  readonly connection: Connection;
}

/** Every sector has the number of the write that it is of. */
class FaultyServer {
  readonly view = new Uint32Array(SECTORS);
  readonly durable = new Uint32Array(SECTORS);
  isCalm = false;
  readonly #random: Random;
  readonly #flushes: boolean;
  #asked: Asked[] = [];
  /** Lost by a flush that failed: no other one brings them to where they are durable. */
  readonly #lost = new Set<number>();

  constructor(random: Random, flushes: boolean) {
    this.#random = random;
    this.#flushes = flushes;
  }

  readonly ask = (request: SeenRequest, connection: Connection): undefined =>
    void this.#asked.push({ request, connection });

  /** Replies to a request, whichever; some wait for long. */
  reply(): void {
    const open = this.#asked.filter(({ connection }) => connection.readyState > 0);
    if (open.length === 0) return;
    const one = this.#random.pick(open);
    if (!this.isCalm && (one.request.cookie[7] ?? 0) % 3 === 0 && this.#random.chance(0.97)) return;
    this.#asked.splice(this.#asked.indexOf(one), 1);
    one.connection.write(this.#replyTo(one.request));
  }

  /** A connection is cut. What came on it is done by now, or never will be. */
  cutOne(): void {
    if (this.#asked.length === 0) return;
    const { connection } = this.#random.pick(this.#asked);
    this.drop((it) => it === connection);
    connection.terminate();
  }

  drop(isIts: (connection: Connection) => boolean): void {
    const gone = this.#asked.filter(({ connection }) => isIts(connection));
    this.#asked = this.#asked.filter(({ connection }) => !isIts(connection));
    while (gone.length > 0) {
      const [{ request }] = gone.splice(this.#random.below(gone.length), 1);
      if (this.#random.chance(0.5)) this.#carryOut(request);
    }
  }

  /** It dies, and with it some of what no flush had made durable. */
  forget(): void {
    this.drop(() => true);
    for (let at = 0; at < SECTORS; at++) {
      if (!this.#lost.has(at) && this.#random.chance(0.4)) this.durable[at] = this.view[at];
      this.view[at] = this.durable[at];
    }
    this.#lost.clear();
  }

  #fails(share: number): boolean {
    return !this.isCalm && this.#random.chance(share);
  }

  #replyTo(request: SeenRequest): Uint8Array {
    const { command, offset, length } = request;
    if (this.#fails(0.003)) return refusal(request, ESHUTDOWN);
    if (command === NBD_CMD_FLUSH) return simple(request, this.#flush());
    if (command === NBD_CMD_READ) {
      const data = Buffer.alloc(length);
      for (let at = 0; at < length; at += SECTOR) data.writeUInt32BE(this.view[(offset + at) / SECTOR], at);
      return chunk(request, 1, true, dataAt(offset, data));
    }
    const isRefused = this.#fails(0.01);
    this.#carryOut(request, isRefused ? 0.5 : 1);
    return simple(request, isRefused ? this.#random.pick([EIO, ENOSPC]) : 0);
  }

  /** A share below 1: it fails on the way. */
  #carryOut({ command, offset, length, data }: SeenRequest, share = 1): void {
    if (command !== NBD_CMD_WRITE && command !== NBD_CMD_TRIM) return;
    for (let at = 0; at < length; at += SECTOR) {
      if (share < 1 && !this.#random.chance(share)) continue;
      const sector = (offset + at) / SECTOR;
      this.view[sector] = command === NBD_CMD_WRITE ? data.readUInt32BE(at) : 0;
      this.#lost.delete(sector);
      if (!this.#flushes) this.durable[sector] = this.view[sector];
    }
  }

  #flush(): number {
    const fails = this.#fails(0.03);
    for (let at = 0; at < SECTORS; at++) {
      if (fails && this.#random.chance(0.5)) this.#lost.add(at);
      else if (!fails && !this.#lost.has(at)) this.durable[at] = this.view[at];
    }
    return fails ? this.#random.pick([EIO, ENOSPC, ENOTSUP]) : 0;
  }
}

function refusal(request: SeenRequest, error: number): Uint8Array {
  if (request.command !== NBD_CMD_READ) return simple(request, error);
  const payload = Buffer.alloc(6);
  payload.writeUInt32BE(error);
  return chunk(request, 0x8001, true, payload);
}

interface Operation {
  readonly tag: number;
  readonly op: typeof IO_READ | typeof IO_WRITE | typeof IO_FLUSH | typeof IO_DISCARD;
  readonly from: number;
  readonly count: number;
  /** Of a write. */
  readonly number: number;
  /** Of a flush: by sector, the acknowledged write that it makes durable, unless a later one is begun meanwhile. */
  readonly covers: ReadonlyMap<number, number>;
  done: number;
}

interface Variant {
  readonly flags: number;
  readonly blockBytes: number;
}

/** A guest, whose requests a successor carries out again as the journal has them. */
class World {
  readonly server: FaultyServer;
  nbd!: NbdTarget;
  reactor!: Reactor;
  flushFailed = false;
  readonly #random: Random;
  readonly #variant: Variant;
  /** Its own target is not used. */
  readonly #peer: TargetAndPeer;
  #target!: ClosableTarget;
  #log = 0;
  #successors = 0;
  #wantsFlush = false;
  /** In the order in which they were begun. */
  #operations: Operation[] = [];
  #numbers = 0;
  readonly #begun = new Uint32Array(SECTORS);
  /** By sector: what it may hold; undefined: anything, after a trim. */
  readonly #allowed: (Set<number> | undefined)[] = Array.from({ length: SECTORS }, () => new Set([0]));

  constructor(random: Random, variant: Variant) {
    const { flags, blockBytes } = variant;
    this.#random = random;
    this.#variant = variant;
    this.server = new FaultyServer(random, (flags & NBD_FLAG_SEND_FLUSH) !== 0);
    const reply = this.server.ask;
    this.#peer = new TargetAndPeer({ reply, flags, minBlockBytes: blockBytes }, 60_000, { log: undefined });
    this.#peer.target.close(false);
    this.#open();
  }

  get isIdle(): boolean {
    return this.#operations.length === 0 && this.nbd.isServing;
  }

  async turn(): Promise<void> {
    this.reactor.wait(1, 200);
    this.reactor.dispatch();
    await new Promise((go) => setImmediate(go));
  }

  /** Begins something, if it may begin: what overlaps waits, and a flush for the changes before it. */
  begin(): void {
    const random = this.#random;
    const tags = new Set(this.#operations.map(({ tag }) => tag));
    const tag = Array.from({ length: DEPTH }, (_, at) => at).find((it) => !tags.has(it));
    if (tag === undefined) return;
    if (this.#wantsFlush) {
      if (this.#operations.every(({ op }) => op === IO_READ)) this.flush(tag);
      return;
    }
    this.#wantsFlush = random.chance(0.02);
    const op = random.pick(OPS);
    const count = 1 + random.below(random.chance(0.2) ? MOST_SECTORS : 6);
    const from = random.below(SECTORS - count + 1);
    const overlaps = (it: Operation): boolean => from < it.from + it.count && it.from < from + count;
    if (this.#operations.some(overlaps)) return;
    const number = op === IO_READ ? 0 : ++this.#numbers;
    if (op !== IO_READ) this.#begun.fill(number, from, from + count);
    this.#start({ tag, op, from, count, number, covers: new Map(), done: 0 });
  }

  flush(tag: number): void {
    this.#wantsFlush = false;
    const acknowledged = [...this.#begun.entries()].filter(
      ([at, number]) => this.#allowed[at]?.size === 1 && this.#allowed[at].has(number),
    );
    const covers = new Map(acknowledged);
    this.#start({ tag, op: IO_FLUSH, from: 0, count: 0, number: 0, covers, done: 0 });
  }

  killServer(): void {
    this.server.forget();
    this.#peer.die();
  }

  /** The successor finds the log as it is now, perhaps at a server that takes less at once. */
  killXentool(): void {
    copyFileSync(this.#logPath, join(this.#peer.dir, `log${this.#log + 1}`));
    this.#log++;
    this.#close();
    this.server.drop(() => true);
    this.flushFailed = false;
    this.#open();
    for (const operation of this.#operations) {
      operation.done = 0;
      this.#submit(operation);
    }
  }

  check(): void {
    for (const [at, number] of this.server.view.entries()) this.#expectAllowed(at, number);
  }

  close(): void {
    this.#close();
    this.#peer.close();
  }

  get #logPath(): string {
    return join(this.#peer.dir, `log${this.#log}`);
  }

  #open(): void {
    const { flags, blockBytes } = this.#variant;
    const successor = ++this.#successors;
    const reactor = (this.reactor = Reactor.open(64, "sync", 40));
    const address = { address: this.#peer.path, port: undefined, exportName: "a" };
    const maxBlockBytes = this.#random.pick([4096, 8192]);
    this.#peer.become({ maxBlockBytes });
    const seen = { sizeBytes: SIZE, flags, structured: true, preferredBlockBytes: 4096 };
    const how: NbdTargetOptions = {
      exportName: "a",
      seen: { ...seen, minBlockBytes: blockBytes, maxBlockBytes },
      readOnly: false,
      connections: 3,
      depth: DEPTH,
      silenceMs: 60_000,
      isOurs: false,
      endingMs: Infinity,
      holdMs: Infinity,
      dial: (onDialled) => onDialled(beginConnection(address)),
      log: WriteLog.open(this.#logPath, "a", LOG_BYTES),
    };
    const openNbd = (onEnd: OnEnd): NbdTarget => (this.nbd = new NbdTarget(how, reactor, onEnd));
    const onEnd = (tag: number, result: number): void => {
      if (successor === this.#successors) this.#ended(tag, result);
    };
    this.#target =
      blockBytes > SECTOR ? new WholeBlocks(openNbd, blockBytes, reactor, onEnd) : openNbd(onEnd);
  }

  #close(): void {
    this.#successors++;
    this.#target.close(false);
    this.reactor.close();
  }

  #start(operation: Operation): void {
    this.#operations.push(operation);
    this.#submit(operation);
  }

  #submit({ tag, op, from, count, number, done }: Operation): void {
    const { bytes, address } = this.#peer.memory;
    const at = tag * MOST_SECTORS * SECTOR;
    const view = new DataView(bytes.buffer);
    if (op === IO_WRITE) for (let i = 0; i < count; i++) view.setUint32(at + i * SECTOR, number);
    this.#target.start(op, tag, from * SECTOR + done, count * SECTOR - done, address + at + done);
  }

  #ended(tag: number, result: number): void {
    const operation = this.#operations.find((it) => it.tag === tag);
    if (operation === undefined) throw new Error("an operation ended twice");
    const { op, from, count, number, covers } = operation;
    if ((op === IO_READ || op === IO_WRITE) && result > 0) {
      operation.done += result;
      if (operation.done < count * SECTOR) return this.#submit(operation);
    }
    this.#operations.splice(this.#operations.indexOf(operation), 1);
    if (op === IO_READ) this.#checkRead(tag, from, count);
    else if (op === IO_FLUSH && result < 0) this.flushFailed = true;
    else if (op === IO_FLUSH) this.#checkDurable(covers);
    else
      for (let at = from; at < from + count; at++) {
        if (op === IO_DISCARD) this.#allowed[at] = undefined;
        else if (result < 0) this.#allowed[at]?.add(number);
        else this.#allowed[at] = new Set([number]);
      }
  }

  #checkRead(tag: number, from: number, count: number): void {
    const view = new DataView(this.#peer.memory.bytes.buffer);
    for (let i = 0; i < count; i++)
      this.#expectAllowed(from + i, view.getUint32((tag * MOST_SECTORS + i) * SECTOR));
  }

  #checkDurable(covers: ReadonlyMap<number, number>): void {
    for (const [at, number] of covers)
      if (this.#begun[at] === number) expect([at, this.server.durable[at]]).toEqual([at, number]);
  }

  #expectAllowed(at: number, number: number): void {
    const allowed = this.#allowed[at];
    if (allowed?.has(number) === false)
      throw new Error(`sector ${at} has number ${number}, not ${[...allowed].join(" or ")}`);
  }
}

const BASE = NBD_FLAG_HAS_FLAGS | NBD_FLAG_SEND_TRIM;
const variants: readonly (readonly [string, Variant])[] = [
  ["that flushes", { flags: BASE | NBD_FLAG_SEND_FLUSH, blockBytes: 512 }],
  [
    "of several connections that flushes",
    { flags: BASE | NBD_FLAG_SEND_FLUSH | NBD_FLAG_CAN_MULTI_CONN, blockBytes: 512 },
  ],
  ["without flushes", { flags: BASE, blockBytes: 512 }],
  ["of several connections without flushes", { flags: BASE | NBD_FLAG_CAN_MULTI_CONN, blockBytes: 512 }],
  [
    "of several connections that flushes, with larger blocks",
    { flags: BASE | NBD_FLAG_SEND_FLUSH | NBD_FLAG_CAN_MULTI_CONN, blockBytes: 4096 },
  ],
  ["without flushes, with larger blocks", { flags: BASE, blockBytes: 4096 }],
];
test.each(variants)(
  "a server %s, and xentool, whatever becomes of them",
  async (_, variant) => {
    const seed = chosenSeed();
    console.log(`survival: SEED=${seed}`);
    const random = new Random(seed);
    const world = new World(random, variant);
    const { server } = world;
    try {
      for (let step = 0; step < STEPS; step++) {
        for (let i = random.below(4); i > 0; i--) world.begin();
        for (let i = random.below(random.chance(0.1) ? 12 : 4); i > 0; i--) server.reply();
        // While writes are sent again, the next misfortune is near.
        const danger = world.nbd.isServing ? 1 : 8;
        if (random.chance(0.01 * danger)) server.cutOne();
        if (random.chance(0.004 * danger)) world.killServer();
        // After a failed flush the guest has another target, too.
        if (world.flushFailed || random.chance(0.004)) world.killXentool();
        await world.turn();
      }
      server.isCalm = true;
      world.killXentool();
      const settle = async (): Promise<void> => {
        for (const since = performance.now(); !world.isIdle;) {
          if (performance.now() - since > 20_000) throw new Error(`not after 20 s: ${world.nbd.failure}`);
          for (let i = 0; i < 20; i++) server.reply();
          await world.turn();
        }
      };
      await settle();
      world.check();
      world.flush(0);
      await settle();
      expect([world.flushFailed, world.nbd.hasUnstable]).toEqual([false, false]);
    } finally {
      world.close();
    }
  },
  60_000,
);
