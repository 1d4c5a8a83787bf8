// A server that is killed at every single point between two of its stores, and its successor killed too, at a point of
// its own: the third one answers what is left. Each request is answered once, reads tell what they may, and the disk
// holds what was written last.
import { expect, test } from "bun:test";
import { closeSync, readFileSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { offeredDisk, DEFAULT_OFFER } from "../../src/blkback/device/features.ts";
import { Journal } from "../../src/blkback/data-plane/journal.ts";
import { BackDataPlane } from "../../src/blkback/data-plane/data-plane.ts";
import { closeImage, openImage } from "../../src/block/image.ts";
import { FileTarget } from "../../src/block/targets/file.ts";
import type { EvtchnPort } from "../../src/core/types.ts";
import { allocateMemory } from "../../src/native/memory.ts";
import { Reactor } from "../../src/native/reactor.ts";
import { shim, type Pointer } from "../../src/native/shim.ts";
import { ABI_X86_64 } from "../../src/protocol/blkif.ts";
import { RING_MARK, RING_REQ_PROD, RING_RSP_PROD } from "../../src/protocol/ring.ts";
import { FakeGrants, GUEST } from "./blkback-fakes.ts";
import { removeDirectory, temporaryDirectory } from "../support/temporary.ts";

const [READ, WRITE, FLUSH] = [0, 1, 3];
const SLOTS = 32;
const BLOCKS = 4;
/** Operation and block. A write fills its block with its number, counted from 1. Rounds are asked for one by one. */
const ROUNDS: readonly (readonly [op: number, block: number])[][] = [
  [
    [WRITE, 0],
    [READ, 0],
    [WRITE, 0],
    [WRITE, 1],
  ],
  [
    [READ, 1],
    [WRITE, 1],
    [FLUSH, 0],
    [READ, 0],
    [WRITE, 2],
    [READ, 2],
  ],
];
const REQUESTS = ROUNDS.flat();

class Killed extends Error {}

/** Counts the points that a server passes, and kills it at one of them. */
class Fate {
  passed = 0;
  readonly #end: number;

  constructor(end: number) {
    this.#end = end;
  }

  /** Has `method` of `object` pass a point before it does anything, and one after. */
  threaten<Key extends string>(object: Record<Key, (...args: never[]) => unknown>, method: Key): void {
    const work = object[method].bind(object);
    object[method] = (...args) => {
      this.#pass();
      const result = work(...args);
      this.#pass();
      return result;
    };
  }

  #pass(): void {
    if (++this.passed === this.#end) throw new Killed();
  }
}

/** A guest, its ring and its disk, in this process. */
class World {
  readonly ring = allocateMemory(4096);
  readonly grants = new FakeGrants(REQUESTS.length);
  readonly answers = new Map<number, number>();
  readonly #dir = temporaryDirectory();
  readonly #image = join(this.#dir, "disk.img");
  #round = 0;
  #asked = 0;
  #taken = 0;

  constructor() {
    shim.xt_ring_init(this.ring.address as Pointer);
    writeFileSync(this.#image, new Uint8Array(BLOCKS * 4096));
  }

  /** Serves round by round until everything is answered, or until fate strikes. Answers whether it did not. */
  serve(fate: Fate): boolean {
    const image = openImage(this.#image, { readOnly: false, direct: false, sectorSizeBytes: 512 });
    const reactor = Reactor.open(64, "sync");
    const fd = shim.xt_eventfd();
    const { words } = this.ring;
    const state = {
      slots: SLOTS,
      reqProd: words[RING_REQ_PROD],
      rspProd: words[RING_RSP_PROD],
      mark: words[RING_MARK],
    };
    const opened: { close(): void }[] = [reactor, { close: () => closeImage(image) }];
    try {
      const journal = Journal.open(join(this.#dir, "journal"), state, (mark) => (words[RING_MARK] = mark));
      opened.push(journal);
      for (const method of ["take", "commit", "answer", "pushed"] as const) fate.threaten(journal, method);
      const plane = this.#plane(journal, reactor, fd, image);
      fate.threaten(reactor, "wait");
      opened.push(plane);
      for (;;) {
        while (plane.step() > 0 || plane.unanswered > 0);
        this.take();
        if (!this.#ask()) return true;
      }
    } catch (error) {
      if (!(error instanceof Killed)) throw error;
      return false;
    } finally {
      for (const it of opened) it.close();
      closeSync(fd);
      this.take();
    }
  }

  /** What the guest finds on its ring. */
  take(): void {
    const view = new DataView(this.ring.bytes.buffer);
    for (const prod = this.ring.words[RING_RSP_PROD]; this.#taken < prod; this.#taken++) {
      const at = 64 + (this.#taken % SLOTS) * 112;
      const id = Number(view.getBigUint64(at, true));
      expect([view.getInt16(at + 10, true), this.answers.has(id)]).toEqual([0, false]);
      this.answers.set(id, this.grants.pages[id * 4096]);
    }
  }

  get disk(): number[] {
    const bytes = readFileSync(this.#image);
    return Array.from({ length: BLOCKS }, (_, block) => bytes[block * 4096]);
  }

  close(): void {
    this.ring.close();
    removeDirectory(this.#dir);
  }

  #plane(journal: Journal, reactor: Reactor, fd: number, image: ReturnType<typeof openImage>): BackDataPlane {
    return new BackDataPlane({
      domid: GUEST,
      abi: ABI_X86_64,
      lanes: [{ ring: this.ring, port: 1 as EvtchnPort, counters: new Float64Array(8192), journal }],
      channels: {
        fd,
        notify: () => 0,
        pending: () => 0,
        unmask: () => 0,
        bindInterdomain: () => 1 as EvtchnPort,
        bindUnbound: () => 1 as EvtchnPort,
        unbind: () => {},
        restrict: () => true,
        close: () => {},
      },
      grants: this.grants,
      reactor,
      openTarget: (onEnd) => new FileTarget(image, reactor, onEnd),
      disk: offeredDisk(DEFAULT_OFFER, image.info),
      grantMode: "copy",
    });
  }

  /** Puts the next round on the ring; false: there is none. */
  #ask(): boolean {
    const round = ROUNDS[this.#round++];
    if (round === undefined) return false;
    const view = new DataView(this.ring.bytes.buffer);
    for (const [op, block] of round) {
      const id = this.#asked++;
      const at = 64 + (id % SLOTS) * 112;
      this.grants.pages.fill(op === WRITE ? id + 1 : 0xff, id * 4096, (id + 1) * 4096);
      view.setUint8(at, op);
      view.setUint8(at + 1, op === FLUSH ? 0 : 1);
      view.setBigUint64(at + 8, BigInt(id), true);
      view.setBigUint64(at + 16, BigInt(block * 8), true);
      view.setUint32(at + 24, this.grants.ref(id), true);
      view.setUint8(at + 28, 0);
      view.setUint8(at + 29, 7);
    }
    Atomics.store(this.ring.words, RING_REQ_PROD, this.#asked);
    return true;
  }
}

/** What request `id`, a read, may have read: what was written last before it, or while it may have waited. */
function mayRead(id: number): number[] {
  const block = REQUESTS[id]?.[1];
  const writes = REQUESTS.flatMap(([op, at], number) => (op === WRITE && at === block ? [number] : []));
  const before = writes.filter((number) => number < id).at(-1);
  const until = id < (ROUNDS[0] as []).length ? (ROUNDS[0] as []).length : REQUESTS.length;
  const after = writes.filter((number) => number > id && number < until);
  return [before === undefined ? 0 : before + 1, ...after.map((number) => number + 1)];
}

function killAt(first: number, second: number): { passed: number; lasted: boolean } {
  const world = new World();
  try {
    const fate = new Fate(first);
    const lasted = world.serve(fate);
    if (!lasted) world.serve(new Fate(second));
    expect(world.serve(new Fate(Infinity))).toBe(true);
    expect(world.answers.size).toBe(REQUESTS.length);
    for (const [id, value] of world.answers)
      if (REQUESTS[id]?.[0] === READ) expect(mayRead(id)).toContain(value);
    expect(world.disk).toEqual([3, 6, 9, 0]);
    return { passed: fate.passed, lasted };
  } catch (error) {
    throw new Error(`killed at point ${first}, then at ${second}`, { cause: error });
  } finally {
    world.close();
  }
}

test("killed anywhere, and again anywhere", () => {
  const points = killAt(Infinity, Infinity).passed;
  expect(points).toBeGreaterThan(50);
  for (let first = 1; first <= points; first++)
    for (let second = 1 + (first % 13); second <= points; second += 13)
      expect(killAt(first, second).lasted).toBe(false);
}, 120_000);
