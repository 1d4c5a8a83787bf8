// What the planes of one disk have in common: flushes run one at a time and everybody's turn comes, a flush that failed
// has failed for all, and none begins before all are ready.
import { afterEach, describe, expect, spyOn, test } from "bun:test";
import { readSync } from "node:fs";
import { DiskCounters } from "../../src/blkback/data-plane/disk-counters.ts";
import { IoFailures } from "../../src/blkback/data-plane/io-failures.ts";
import { KIND_READ, KIND_WRITE } from "../../src/blkback/data-plane/requests.ts";
import {
  closeSharedDisk,
  createSharedDisk,
  SharedDisk,
  type SharedDiskHandle,
} from "../../src/blkback/data-plane/shared-disk.ts";
import { STAT } from "../../src/blkback/stats/stats.ts";
import { codeOf } from "../../src/core/errors.ts";
import { chosenSeed, Random } from "../support/random.ts";
import { inEveryWay } from "./blkback-fakes.ts";

const EIO = -5;
let handle: SharedDiskHandle | undefined;

function attach(planes: number): SharedDisk[] {
  const made = createSharedDisk(planes);
  handle = made;
  return Array.from({ length: planes }, (_, seat) => new SharedDisk(made, seat));
}

function close(): void {
  if (handle !== undefined) closeSharedDisk(handle);
  handle = undefined;
}
afterEach(close);

function isWoken({ wakeFd }: SharedDisk): boolean {
  if (wakeFd === undefined) return false;
  try {
    return readSync(wakeFd, new Uint8Array(8)) === 8;
  } catch (error) {
    expect(codeOf(error)).toBe("EAGAIN");
    return false;
  }
}

/** Each plane flushes `times` times, in an order that `choose` decides. */
function flushAll(planes: number, times: number, choose: (count: number) => number): void {
  const states = attach(planes).map((shared) => ({
    shared,
    left: times,
    /** It has asked, and was refused; it does not ask again before it is woken. */
    waits: false,
    flushes: false,
    passedBy: 0,
  }));
  for (;;) {
    for (const state of states) if (isWoken(state.shared)) state.waits = false;
    const able = states.filter(({ left, waits, flushes }) => flushes || (left > 0 && !waits));
    if (able.length === 0) break;
    const state = able[choose(able.length)];
    if (state.flushes) {
      state.flushes = false;
      state.left--;
      state.shared.endFlush();
    } else if (state.shared.beginFlush()) {
      state.flushes = true;
      state.passedBy = 0;
      for (const other of states) if (other.waits) other.passedBy++;
    } else state.waits = true;
    expect(states.filter(({ flushes }) => flushes).length).toBeLessThan(2);
    for (const { passedBy } of states) expect(passedBy).toBeLessThan(planes);
  }
  expect(states.map(({ left }) => left)).toEqual(states.map(() => 0));
  close();
}

describe("flushes run one at a time, and nobody is forgotten or passed by for long", () => {
  test.each([
    [1, 3],
    [2, 2],
    [3, 1],
  ])("of %d planes, %d times each, in every order", (planes, times) => {
    inEveryWay((choose) => flushAll(planes, times, choose));
  });

  test("of many planes, in any order", () => {
    const seed = chosenSeed();
    console.log(`shared-disk: SEED=${seed}`);
    const random = new Random(seed);
    for (let round = 0; round < 200; round++)
      flushAll(1 + random.below(16), 5, (count) => random.below(count));
  });
});

test("a flush that failed has failed for all planes, and counts as one", () => {
  const log = spyOn(process.stderr, "write").mockImplementation(() => true);
  const [one, other] = attach(2).map((shared) => {
    const counters = new Float64Array(8192);
    return { counters, failures: new IoFailures(new DiskCounters(counters, 1), [], shared) };
  });
  expect(other.failures.forbids(KIND_WRITE)).toBe(false);
  one.failures.flushFailed(EIO);
  log.mockRestore();
  expect(other.failures.forbids(KIND_WRITE)).toBe(true);
  expect(other.failures.forbids(KIND_READ)).toBe(false);
  expect(other.failures.flushErrno).toBe(EIO);
  const counted = [one, other].map(({ counters }) => [counters[STAT.flushErrors], counters[STAT.flushErrno]]);
  expect(counted).toEqual([
    [1, -EIO],
    [0, -EIO],
  ]);
});

test("none is told to begin before all are ready, and then all are", () => {
  const planes = attach(3);
  for (const plane of planes) {
    expect(planes.map((it) => it.areAllReady || isWoken(it))).toEqual([false, false, false]);
    plane.ready();
  }
  expect(planes.map((it) => it.areAllReady)).toEqual([true, true, true]);
  expect(planes.map(isWoken)).toEqual([true, true, false]);
});
