// What may start when: every sequence of a few requests on a tiny disk, every order in which they arrive and end,
// against the rule itself. A request starts exactly when the rule allows it: never before, nor after the next pass.
import { describe, expect, test } from "bun:test";
import {
  OperationTable,
  STAGE_IO,
  STAGE_POST_FLUSH,
  STAGE_PRE_FLUSH,
} from "../../src/blkback/data-plane/operations.ts";
import {
  KIND_BARRIER,
  KIND_DISCARD,
  KIND_FLUSH,
  KIND_READ,
  KIND_WRITE,
  RequestTable,
} from "../../src/blkback/data-plane/requests.ts";
import { RateLimiter } from "../../src/blkback/limits/rate-limiter.ts";
import { changesDisk, Scheduler } from "../../src/blkback/data-plane/scheduler.ts";
import { SharedDisk } from "../../src/blkback/data-plane/shared-disk.ts";
import { FakePath, inEveryWay } from "./blkback-fakes.ts";

interface Asked {
  readonly kind: number;
  readonly from: number;
  readonly to: number;
}

const SIZE = 8;
/** The disk has three units of so many bytes; a transfer is of one or two of them. */
const UNIT = 4096;
const RANGES = [
  [0, 1],
  [1, 2],
  [0, 2],
] as const;
const ALPHABET: readonly Asked[] = [
  ...RANGES.flatMap(([from, to]) => [KIND_READ, KIND_WRITE].map((kind) => ({ kind, from, to }))),
  { kind: KIND_DISCARD, from: 1, to: 2 },
  { kind: KIND_FLUSH, from: 0, to: 0 },
  { kind: KIND_BARRIER, from: 0, to: 0 },
  { kind: KIND_BARRIER, from: 1, to: 2 },
];
const hasData = ({ kind, from, to }: Asked): boolean => kind !== KIND_DISCARD && to > from;

/** A scheduler under test, and what the rule says of its requests. */
class Bench {
  readonly #requests = new RequestTable(SIZE, 0);
  readonly #operations = new OperationTable(SIZE);
  readonly #path: FakePath;
  readonly #scheduler: Scheduler;
  /** In the order of arrival: what was asked, its row, and the operation that it is in. */
  readonly #all: { asked: Asked; row: number; op: number | undefined; done: boolean; retried: boolean }[] =
    [];

  constructor(room = SIZE, joins = true) {
    this.#path = new FakePath(room, joins);
    const limiter = new RateLimiter({ nowMs: 0, originMs: 0, setTimer: () => {} });
    const shared = SharedDisk.alone();
    this.#scheduler = new Scheduler(SIZE, this.#requests, this.#operations, this.#path, limiter, shared);
  }

  get active(): number[] {
    return [...this.#operations.active.subarray(0, this.#operations.activeCount)];
  }

  get merged(): number {
    return this.#scheduler.merged;
  }

  get isOver(): boolean {
    return this.#all.every((it) => it.done);
  }

  arrive(asked: Asked): void {
    const row = this.#requests.take(0);
    this.#requests.kind[row] = asked.kind;
    this.#requests.start[row] = asked.from * UNIT;
    this.#requests.length[row] = (asked.to - asked.from) * UNIT;
    this.#requests.segmentCount[row] = hasData(asked) ? 1 : 0;
    this.#all.push({ asked, row, op: undefined, done: false, retried: false });
    this.#scheduler.add(row);
  }

  /** A pass, and whether it started just what the rule allows; with `isShort` memory may keep more waiting. */
  pass(isShort = false): void {
    this.#scheduler.pass();
    const started = [...this.#scheduler.started.subarray(0, this.#scheduler.startedCount)];
    for (const op of started) this.#checkStart(op);
    if (!isShort)
      for (const [index, it] of this.#all.entries())
        if (it.op === undefined && !it.done) expect(this.#isForbidden(index)).toBe(true);
    if (this.active.length === 0) expect(this.#scheduler.waitingCount).toBe(0);
  }

  /** Ends `op`; a merged one that `fails` goes back request by request. */
  end(op: number, fails: boolean): void {
    this.#path.release(op);
    this.#scheduler.end(op);
    for (const it of this.#all.filter((one) => one.op === op)) {
      it.op = undefined;
      it.done = !fails;
      it.retried = fails;
      if (fails) this.#scheduler.putBack(it.row);
      else this.#requests.release(it.row);
    }
  }

  isMerged(op: number): boolean {
    return this.#operations.first[op] !== this.#operations.last[op];
  }

  close(): void {
    expect(this.#path.begun.size).toBe(0);
    this.#requests.close();
  }

  #checkStart(op: number): void {
    const { kind, first, start, end, stage, sequence } = this.#operations;
    const chain: number[] = [];
    for (let row = first[op]; row >= 0; row = this.#requests.next[row])
      chain.push(this.#all.findIndex((it) => it.row === row && !it.done));
    let at = start[op];
    for (const index of chain) {
      const it = this.#all[index];
      if (it === undefined || it.op !== undefined || it.done)
        throw new Error("started twice, or never asked for");
      expect(it.asked.kind).toBe(kind[op]);
      expect(it.asked.from * UNIT).toBe(at);
      if (chain.length > 1) expect([it.retried, it.asked.kind <= KIND_WRITE]).toEqual([false, true]);
      at += (it.asked.to - it.asked.from) * UNIT;
      it.op = op;
    }
    expect(at).toBe(end[op]);
    expect(sequence[op]).toBe(chain[0]);
    const isEmpty = start[op] === end[op];
    expect(stage[op]).toBe(
      kind[op] !== KIND_BARRIER ? STAGE_IO : isEmpty ? STAGE_POST_FLUSH : STAGE_PRE_FLUSH,
    );
    // All of the chain count as started: they may not be in each other's way either.
    for (const index of chain) expect(this.#isForbidden(index)).toBe(false);
  }

  /** The rule: what an earlier request that has not ended forbids to this one. */
  #isForbidden(index: number): boolean {
    const { asked, op } = this.#all[index] as { asked: Asked; op: number | undefined };
    const flushes = this.#all.some(
      (it, other) => other !== index && it.op !== undefined && it.op !== op && it.asked.kind === KIND_FLUSH,
    );
    if (asked.kind === KIND_FLUSH && flushes) return true;
    return this.#all.slice(0, index).some((earlier) => {
      if (earlier.done || (op !== undefined && earlier.op === op)) return false;
      const { kind, from, to } = earlier.asked;
      if (kind === KIND_BARRIER || asked.kind === KIND_BARRIER) return true;
      if (asked.kind === KIND_FLUSH) return changesDisk(kind);
      return from < asked.to && asked.from < to && (kind !== KIND_READ || asked.kind !== KIND_READ);
    });
  }
}

/** Lets `bench` come to its end in one of the possible ways. */
function finish(bench: Bench, choose: (count: number) => number, fails: boolean, isShort: boolean): void {
  for (;;) {
    bench.pass(isShort);
    const { active } = bench;
    if (active.length === 0) break;
    const op = active[choose(active.length)];
    bench.end(op, fails && bench.isMerged(op) && choose(2) === 1);
  }
  expect(bench.isOver).toBe(true);
  bench.close();
}

describe("every sequence", () => {
  test("of three requests, arriving and ending in every order", () => {
    const ways = inEveryWay((choose) => {
      const bench = new Bench();
      for (let i = 0; i < 3; i++) {
        bench.arrive(ALPHABET[choose(ALPHABET.length)]);
        if (i === 2 || choose(2) === 0) continue;
        bench.pass();
        const { active } = bench;
        const ends = choose(active.length + 1);
        if (ends < active.length) bench.end(active[ends], false);
      }
      finish(bench, choose, true, false);
    });
    expect(ways).toBeGreaterThan(10_000);
  });

  test("of four requests at once", () => {
    const ways = inEveryWay((choose) => {
      const bench = new Bench();
      for (let i = 0; i < 4; i++) bench.arrive(ALPHABET[choose(ALPHABET.length)]);
      finish(bench, (count) => count - 1, false, false);
    });
    expect(ways).toBe(ALPHABET.length ** 4);
  });

  test("of three requests with memory for one of them at a time, or none to merge with", () => {
    const ways = inEveryWay((choose) => {
      const joins = choose(2) === 1;
      const room = 1 + choose(2);
      const bench = new Bench(room, joins);
      for (let i = 0; i < 3; i++) bench.arrive(ALPHABET[choose(ALPHABET.length)]);
      finish(bench, choose, true, true);
    });
    expect(ways).toBeGreaterThan(4000);
  });
});

describe("merging", () => {
  function mergedOf(asked: readonly Asked[], joins = true): number {
    const bench = new Bench(SIZE, joins);
    for (const it of asked) bench.arrive(it);
    bench.pass();
    const { merged } = bench;
    while (!bench.isOver) {
      for (const op of bench.active) bench.end(op, false);
      bench.pass();
    }
    bench.close();
    return merged;
  }
  const write = (from: number, to: number): Asked => ({ kind: KIND_WRITE, from, to });
  const read = (from: number, to: number): Asked => ({ kind: KIND_READ, from, to });
  const MOST = (1 << 20) / UNIT;

  test.each<[string, readonly Asked[], number]>([
    ["neighbours in order", [write(0, 1), write(1, 2), write(2, 3)], 2],
    ["reads, too", [read(4, 6), read(6, 7)], 1],
    ["not a gap", [write(0, 1), write(2, 3)], 0],
    ["not backwards", [write(1, 2), write(0, 1)], 0],
    ["not a read with a write", [read(0, 1), write(1, 2)], 0],
    [
      "not discards",
      [
        { ...write(0, 1), kind: KIND_DISCARD },
        { ...write(1, 2), kind: KIND_DISCARD },
      ],
      0,
    ],
    ["not what another one came between", [write(0, 1), write(5, 6), write(1, 2)], 0],
    ["up to 1 MiB", [write(0, MOST - 1), write(MOST - 1, MOST)], 1],
    ["not beyond", [write(0, MOST - 1), write(MOST - 1, MOST + 1)], 0],
  ])("%s", (_name, asked, merged) => expect(mergedOf(asked)).toBe(merged));

  test("not where the data path cannot", () => expect(mergedOf([write(0, 1), write(1, 2)], false)).toBe(0));
});
