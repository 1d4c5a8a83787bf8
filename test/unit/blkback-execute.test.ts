// An operation on a target that transfers as little as it likes and fails where it likes: what is submitted next, and
// how the operation ends.
import { describe, expect, test } from "bun:test";
import type { BlockTarget, TargetInfo } from "../../src/block/target.ts";
import { DONE, Executor, UNDER_WAY } from "../../src/blkback/data-plane/execute.ts";
import {
  OperationTable,
  STAGE_POST_FLUSH,
  STAGE_PRE_FLUSH,
} from "../../src/blkback/data-plane/operations.ts";
import {
  KIND_BARRIER,
  KIND_DISCARD,
  KIND_FLUSH,
  KIND_READ,
  KIND_SECURE_DISCARD,
  KIND_WRITE,
} from "../../src/blkback/data-plane/requests.ts";
import {
  IO_DISCARD,
  IO_FLUSH,
  IO_READ,
  IO_SECURE_DISCARD,
  IO_WRITE,
  type IoOp,
} from "../../src/native/reactor.ts";
import { FakePath, inEveryWay } from "./blkback-fakes.ts";

const EIO = -5;
const ADDRESS = 1 << 20;
const START = 8192;
const SECTOR = 512;

interface Started {
  readonly op: IoOp;
  readonly offset: number;
  readonly length: number;
  readonly address: number;
}

class FakeTarget implements BlockTarget {
  readonly info = {} as TargetInfo;
  readonly started: Started[] = [];

  start(op: IoOp, _tag: number, offset: number, length: number, address: number): void {
    this.started.push({ op, offset, length, address });
  }
}

/** An operation of `sectors` sectors that has come to its first step. */
function begin(kind: number, sectors: number): { target: FakeTarget; executor: Executor; op: number } {
  const operations = new OperationTable(4);
  const target = new FakeTarget();
  const executor = new Executor(operations, new FakePath(4, false), target);
  const op = operations.open(0, kind, START, sectors * SECTOR, 0, kind !== KIND_READ && kind !== KIND_FLUSH);
  operations.address[op] = ADDRESS;
  if (kind === KIND_BARRIER) operations.stage[op] = sectors > 0 ? STAGE_PRE_FLUSH : STAGE_POST_FLUSH;
  executor.submit(op);
  return { target, executor, op };
}

test.each<[string, number, IoOp]>([
  ["read", KIND_READ, IO_READ],
  ["write", KIND_WRITE, IO_WRITE],
])("a %s goes on where the target stopped, in every way to cut four sectors", (_name, kind, io) => {
  const ways = inEveryWay((choose) => {
    const { target, executor, op } = begin(kind, 4);
    let done = 0;
    for (;;) {
      const left = 4 * SECTOR - done;
      expect(target.started.at(-1)).toEqual({
        op: io,
        offset: START + done,
        length: left,
        address: ADDRESS + done,
      });
      // Halves of sectors, too: a target may stop anywhere.
      const moved = (1 + choose((left * 2) / SECTOR)) * (SECTOR / 2);
      done += moved;
      const outcome = executor.advance(op, moved);
      expect(outcome).toBe(done === 4 * SECTOR ? DONE : UNDER_WAY);
      if (outcome === DONE) break;
    }
    expect(executor.submitted).toBe(target.started.length);
  });
  expect(ways).toBe(2 ** 7);
});

test.each([KIND_READ, KIND_WRITE])(
  "nothing transferred is the end of the image, also in the middle",
  (kind) => {
    const { executor, op, target } = begin(kind, 4);
    expect(executor.advance(op, SECTOR)).toBe(UNDER_WAY);
    expect(executor.advance(op, 0)).toBe(EIO);
    expect(target.started).toHaveLength(2);
  },
);

describe.each([
  ["interrupted", -4],
  ["put off", -11],
])("a step that was only %s", (_name, errno) => {
  test.each([
    ["read", KIND_READ],
    ["write", KIND_WRITE],
    ["discard", KIND_DISCARD],
    ["secure discard", KIND_SECURE_DISCARD],
  ])("is tried again: a %s", (_kind, kind) => {
    const { executor, op, target } = begin(kind, 2);
    const [step] = target.started;
    expect(executor.advance(op, errno)).toBe(UNDER_WAY);
    expect(target.started).toEqual([step, step]);
    expect(executor.submitted).toBe(2);
    // A failure that is one ends it as ever.
    expect(executor.advance(op, EIO)).toBe(EIO);
    expect(target.started).toHaveLength(2);
  });

  test("is never a flush, of which nothing shows what else it met", () => {
    for (const [kind, sectors] of [
      [KIND_FLUSH, 0],
      [KIND_BARRIER, 0],
      [KIND_BARRIER, 2],
    ] as const) {
      const { executor, op, target } = begin(kind, sectors);
      expect(executor.advance(op, errno)).toBe(errno);
      expect(target.started).toHaveLength(1);
    }
    const { executor, op, target } = begin(KIND_BARRIER, 2);
    for (const result of [0, errno, 2 * SECTOR]) expect(executor.advance(op, result)).toBe(UNDER_WAY);
    expect(target.started.map((it) => it.op)).toEqual([IO_FLUSH, IO_WRITE, IO_WRITE, IO_FLUSH]);
    expect(executor.advance(op, errno)).toBe(errno);
  });

  test("goes on where it was", () => {
    const { executor, op, target } = begin(KIND_WRITE, 4);
    expect(executor.advance(op, SECTOR)).toBe(UNDER_WAY);
    expect(executor.advance(op, errno)).toBe(UNDER_WAY);
    expect(target.started[2]).toEqual(target.started[1]);
    expect(executor.advance(op, 3 * SECTOR)).toBe(DONE);
  });

  test("fails if nothing else ever comes of it, and the next operation is tried as often", () => {
    const operations = new OperationTable(1);
    const target = new FakeTarget();
    const executor = new Executor(operations, new FakePath(1, false), target);
    const tries = [0, 0].map(() => {
      const before = target.started.length;
      const op = operations.open(0, KIND_READ, 0, SECTOR, 0, false);
      executor.submit(op);
      while (executor.advance(op, errno) === UNDER_WAY) expect(target.started.length).toBeLessThan(10_000);
      operations.close(op, false);
      return target.started.length - before;
    });
    expect(tries[0]).toBeGreaterThan(100);
    expect(tries[1]).toBe(tries[0]);
  });
});

test.each<[string, number, Started]>([
  ["a flush", KIND_FLUSH, { op: IO_FLUSH, offset: 0, length: 0, address: 0 }],
  ["a discard", KIND_DISCARD, { op: IO_DISCARD, offset: START, length: 2 * SECTOR, address: 0 }],
  [
    "a secure discard",
    KIND_SECURE_DISCARD,
    { op: IO_SECURE_DISCARD, offset: START, length: 2 * SECTOR, address: 0 },
  ],
])("%s is one step", (_name, kind, started) => {
  const { executor, op, target } = begin(kind, kind === KIND_FLUSH ? 0 : 2);
  expect(target.started).toEqual([started]);
  expect(executor.isFlushing(op)).toBe(kind === KIND_FLUSH);
  expect(executor.advance(op, 0)).toBe(DONE);
  const again = begin(kind, 2);
  expect(again.executor.advance(again.op, EIO)).toBe(EIO);
});

describe("a barrier", () => {
  const FLUSH: Started = { op: IO_FLUSH, offset: 0, length: 0, address: 0 };

  test("without data is one flush", () => {
    const { executor, op, target } = begin(KIND_BARRIER, 0);
    expect(target.started).toEqual([FLUSH]);
    expect(executor.advance(op, 0)).toBe(DONE);
  });

  test("with data is flush, write, flush, and any of them may fail or come in pieces", () => {
    const write: Started = { op: IO_WRITE, offset: START, length: 2 * SECTOR, address: ADDRESS };
    const rest: Started = { op: IO_WRITE, offset: START + SECTOR, length: SECTOR, address: ADDRESS + SECTOR };
    const ways = inEveryWay((choose) => {
      const { executor, op, target } = begin(KIND_BARRIER, 2);
      const cut = choose(2) === 1;
      const steps = cut ? [FLUSH, write, rest, FLUSH] : [FLUSH, write, FLUSH];
      const failing = choose(steps.length + 1);
      for (const [index, step] of steps.entries()) {
        expect(target.started.at(-1)).toEqual(step);
        expect(executor.isFlushing(op)).toBe(step === FLUSH);
        if (index === failing) {
          expect(executor.advance(op, EIO)).toBe(EIO);
          // Who hears of it can still tell which step it was.
          expect(executor.isFlushing(op)).toBe(step === FLUSH);
          break;
        }
        const moved = step === FLUSH ? 0 : cut ? SECTOR : 2 * SECTOR;
        expect(executor.advance(op, moved)).toBe(index === steps.length - 1 ? DONE : UNDER_WAY);
      }
      expect(target.started).toHaveLength(Math.min(failing + 1, steps.length));
    });
    expect(ways).toBe(4 + 5);
  });
});
