// What the limits of a disk do to the order of its requests: they make them wait, and change nothing else. Time moves
// only when the test waits.
import { afterEach, expect, test } from "bun:test";
import { OperationTable } from "../../src/blkback/data-plane/operations.ts";
import { RateLimiter } from "../../src/blkback/limits/rate-limiter.ts";
import { parseRate, UNLIMITED, UNLIMITED_DISK } from "../../src/blkback/limits/rates.ts";
import {
  KIND_BARRIER,
  KIND_DISCARD,
  KIND_FLUSH,
  KIND_READ,
  KIND_WRITE,
  RequestTable,
} from "../../src/blkback/data-plane/requests.ts";
import { Scheduler } from "../../src/blkback/data-plane/scheduler.ts";
import { SharedDisk } from "../../src/blkback/data-plane/shared-disk.ts";
import { FakePath, TestClock } from "./blkback-fakes.ts";

const SIZE = 512;
const UNIT = 4096;

/** A scheduler on a disk that may be limited, and what it has started, by name. */
class LimitedDisk {
  readonly clock = new TestClock();
  readonly limiter: RateLimiter;
  readonly requests = new RequestTable(SIZE, 0);
  readonly scheduler: Scheduler;
  readonly #operations = new OperationTable(SIZE);
  readonly #path = new FakePath(SIZE, true);
  readonly #names = new Map<number, string>();

  constructor(iops: string) {
    this.limiter = new RateLimiter(this.clock, { ...UNLIMITED_DISK, iops: parseRate("iops", "", iops) });
    const shared = SharedDisk.alone();
    this.scheduler = new Scheduler(SIZE, this.requests, this.#operations, this.#path, this.limiter, shared);
  }

  arrive(name: string, kind: number, from: number, units = 1): number {
    const row = this.requests.take(this.clock.nowMs);
    this.requests.kind[row] = kind;
    this.requests.start[row] = from * UNIT;
    this.requests.length[row] = units * UNIT;
    this.requests.segmentCount[row] = kind === KIND_READ || kind === KIND_WRITE ? 1 : 0;
    this.#names.set(row, name);
    this.scheduler.add(row);
    return row;
  }

  /** A pass, after which everything that it started ends at once. Returns the names. */
  pass(): string[] {
    this.scheduler.pass();
    const ops = [...this.scheduler.started.subarray(0, this.scheduler.startedCount)];
    return ops.flatMap((op) => {
      const rows: number[] = [];
      for (let row = this.#operations.first[op]; row >= 0; row = this.requests.next[row]) rows.push(row);
      this.#end(op);
      return rows.map((row) => {
        this.requests.release(row);
        return this.#names.get(row) ?? "";
      });
    });
  }

  /** All that start, each pass after the next wake-up. */
  passes(): string[][] {
    const all = [this.pass()];
    while (this.scheduler.waitingCount > 0) {
      if (this.scheduler.heldCount > 0) this.clock.wait();
      all.push(this.pass());
    }
    return all.filter((names) => names.length > 0);
  }

  /** Fails the merged operation that a pass has started. */
  failMerged(): void {
    this.scheduler.pass();
    expect(this.scheduler.startedCount).toBe(1);
    const op = this.scheduler.started[0];
    const first = this.#operations.first[op];
    this.#end(op);
    for (let row = first; row >= 0;) {
      const next = this.requests.next[row];
      this.scheduler.putBack(row);
      row = next;
    }
  }

  #end(op: number): void {
    this.#path.release(op);
    this.scheduler.end(op);
  }
}

let disk: LimitedDisk;
afterEach(() => disk.requests.close());

test("requests start in their order, one for each token, and only then count as held back no more", () => {
  disk = new LimitedDisk("10,burst=1");
  const row = disk.arrive("a", KIND_READ, 0);
  const late = disk.arrive("b", KIND_READ, 5);
  disk.arrive("c", KIND_WRITE, 9);
  expect(disk.passes()).toEqual([["a"], ["b"], ["c"]]);
  expect([disk.requests.heldMs[row], disk.requests.heldMs[late]]).toEqual([0, 100]);
});

test("neighbours that have tokens still become one operation, and each is paid for", () => {
  disk = new LimitedDisk("1000,burst=3");
  disk.clock.nowMs += 1000;
  for (const [at, name] of ["a", "b", "c", "d", "e", "f"].entries()) disk.arrive(name, KIND_WRITE, at);
  expect(disk.pass()).toEqual(["a", "b", "c", "d", "e"]);
  expect([disk.scheduler.merged, disk.scheduler.heldCount]).toEqual([4, 1]);
});

test("a flush costs nothing and waits only for the writes before it, not for reads or later writes", () => {
  disk = new LimitedDisk("10,burst=1");
  disk.arrive("r", KIND_READ, 0);
  for (const name of ["w", "x"]) disk.arrive(name, KIND_WRITE, 2);
  disk.arrive("f", KIND_FLUSH, 0, 0);
  for (const name of ["y", "z"]) disk.arrive(name, KIND_WRITE, 4);
  disk.arrive("g", KIND_FLUSH, 0, 0);
  expect(disk.passes().map((names) => names.join(""))).toEqual(["r", "w", "x", "fy", "z", "g"]);
  disk.arrive("h", KIND_FLUSH, 0, 0);
  expect(disk.pass()).toEqual(["h"]);
});

test("nothing passes a barrier that has to wait; an empty one is free", () => {
  disk = new LimitedDisk("10,burst=1");
  disk.arrive("a", KIND_READ, 0);
  disk.arrive("b", KIND_BARRIER, 3);
  disk.arrive("c", KIND_READ, 9);
  disk.arrive("d", KIND_BARRIER, 0, 0);
  disk.arrive("e", KIND_FLUSH, 0, 0);
  expect(disk.passes().map((names) => names.join(""))).toEqual(["a", "b", "c", "d", "e"]);
});

test("a direction without a limit is not held back, unless it overlaps what is", () => {
  disk = new LimitedDisk("write:10,burst=1");
  disk.arrive("a", KIND_WRITE, 0);
  disk.arrive("b", KIND_WRITE, 1);
  disk.arrive("over b", KIND_READ, 1);
  disk.arrive("elsewhere", KIND_READ, 7);
  expect(disk.passes()).toEqual([["a", "elsewhere"], ["b"], ["over b"]]);
});

test("a discard counts as one request, whatever it discards", () => {
  disk = new LimitedDisk("none");
  disk.limiter.change({ ...UNLIMITED_DISK, bandwidth: { ...UNLIMITED, total: 1 } });
  for (let i = 0; i < 3; i++) disk.arrive("d", KIND_DISCARD, i * 1000, 1000);
  expect(disk.pass()).toEqual(["d", "d", "d"]);
});

test("what is tried again was paid for, and is not left waiting for the limit", () => {
  disk = new LimitedDisk("10,burst=1");
  disk.clock.nowMs += 1000;
  disk.arrive("a", KIND_WRITE, 0);
  disk.arrive("b", KIND_WRITE, 1);
  expect(disk.pass()).toEqual(["a"]);
  disk.clock.wait();
  disk.arrive("c", KIND_WRITE, 2);
  disk.limiter.change(UNLIMITED_DISK);
  disk.failMerged();
  disk.limiter.change({ ...UNLIMITED_DISK, iops: parseRate("iops", "", "1,burst=1") });
  disk.limiter.pass(true, UNIT);
  expect(disk.scheduler.mustPass).toBe(true);
  expect(disk.pass()).toEqual(["b", "c"]);
  expect(disk.scheduler.mustPass).toBe(false);
});

test("a limit that goes lets everything start", () => {
  disk = new LimitedDisk("1");
  for (let i = 0; i < SIZE; i++) disk.arrive("r", KIND_READ, i * 2);
  expect(disk.pass()).toHaveLength(1);
  expect(disk.scheduler.heldCount).toBe(SIZE - 1);
  disk.limiter.change(UNLIMITED_DISK);
  expect(disk.pass()).toHaveLength(SIZE - 1);
});
