// The journal of a ring: what a successor finds after its predecessor was killed at any point, and that it trusts
// nothing that does not add up. A kill is played by opening the file while the first one still has it.
import { afterEach, beforeEach, describe, expect, test } from "bun:test";
import { readdirSync, rmSync, truncateSync } from "node:fs";
import { join } from "node:path";
import { Journal, type RingState } from "../../src/blkback/data-plane/journal.ts";
import { REQUEST } from "../../src/protocol/blkif.ts";
import { removeDirectory, temporaryDirectory } from "../support/temporary.ts";

const WORDS = REQUEST.bytes / 4;
const BASE = 0xffff_fffe; // indices wrap within each test

let dir = "";
let path = "";
let open: Journal[] = [];
beforeEach(() => {
  dir = temporaryDirectory();
  path = join(dir, "j");
});
afterEach(() => {
  for (const journal of open) journal.close();
  open = [];
  expect(readdirSync(dir)).toEqual(["j"]);
  removeDirectory(dir);
});

/** The word of the ring's page that tells it from others. */
let mark = 0;

function at(answered: number, asked: number): RingState {
  const index = (count: number): number => (BASE + count) >>> 0;
  return { slots: 32, rspProd: index(answered), reqProd: index(asked), mark };
}

function takeOver(state: RingState): Journal {
  const journal = Journal.open(path, state, (value) => (mark = value));
  open.push(journal);
  return journal;
}

function begin(): Journal {
  mark = 0;
  return takeOver(at(0, 0));
}

/** Slots of a fetch, whose words are all their request's number. */
function slots(...numbers: number[]): Int32Array {
  return Int32Array.from(numbers.flatMap((number) => Array.from({ length: WORDS }, () => number)));
}

function take(journal: Journal, rows: number[], numbers: number[]): void {
  rows.forEach((row, slot) => journal.take(row, slot, slots(...numbers)));
}

function left(journal: Journal): number[] {
  return Array.from({ length: journal.unansweredCount }, (_, index) => journal.unanswered[index * WORDS]);
}

test("requests answered out of order are not carried out again, the others are, in their order", () => {
  const journal = begin();
  take(journal, [3, 1, 2], [10, 11, 12]);
  journal.commit(3);
  take(journal, [0], [13]);
  journal.commit(1);
  journal.answer(2, 0);
  journal.answer(0, 1);
  journal.pushed(2);
  expect(left(takeOver(at(2, 6)))).toEqual([10, 11]);
});

test("what was taken but not committed is still on the ring, for the next to fetch", () => {
  const journal = begin();
  take(journal, [0, 1], [10, 11]);
  journal.commit(2);
  take(journal, [2], [12]);
  expect(left(takeOver(at(0, 3)))).toEqual([10, 11]);
});

test("killed before publishing, nothing counts as answered; killed after it, all of it does", () => {
  const journal = begin();
  take(journal, [0, 1], [10, 11]);
  journal.commit(2);
  journal.answer(0, 0);
  expect(left(takeOver(at(0, 2)))).toEqual([10, 11]);
  rmSync(path);
  const other = begin();
  take(other, [0, 1], [10, 11]);
  other.commit(2);
  other.answer(0, 0);
  expect(left(takeOver(at(1, 2)))).toEqual([11]);
});

test("a row is used again, and a successor is succeeded", () => {
  const journal = begin();
  for (let round = 0; round < 40; round++) {
    take(journal, [0], [round]);
    journal.commit(1);
    if (round === 39) break;
    journal.answer(0, 0);
    journal.pushed(1);
  }
  const second = takeOver(at(39, 41));
  expect(left(second)).toEqual([39]);
  expect(left(takeOver(at(39, 41)))).toEqual([39]);
  const third = open.at(-1) as Journal;
  take(third, [0], [39]);
  third.commit(1);
  take(third, [1], [40]);
  third.commit(1);
  third.answer(1, 0);
  third.pushed(1);
  expect(left(takeOver(at(40, 41)))).toEqual([39]);
});

test("on a ring where nothing waits no journal is needed", () => {
  expect(left(takeOver(at(4, 4)))).toEqual([]);
});

test("a flush that failed is known to every successor on the ring, and on no other ring", () => {
  const journal = begin();
  expect(journal.flushErrno).toBe(0);
  journal.noteFlushFailure(-28);
  for (let successor = 0; successor < 2; successor++) expect(takeOver(at(0, 0)).flushErrno).toBe(-28);
  mark = 0;
  expect(takeOver(at(0, 0)).flushErrno).toBe(0);
});

test("so is one on a ring without any answer: what it lost may have been answered on another ring of the disk", () => {
  mark = 0;
  const ring = (): RingState => ({ slots: 32, rspProd: 0, reqProd: 1, mark });
  const journal = takeOver(ring());
  take(journal, [0], [10]);
  journal.commit(1);
  journal.noteFlushFailure(-5);
  for (let successor = 0; successor < 2; successor++) {
    const next = takeOver(ring());
    expect([next.flushErrno, left(next)]).toEqual([-5, []]);
  }
  mark = 0;
  expect(takeOver(ring()).flushErrno).toBe(0);
});

describe("an old journal lies there", () => {
  function leaveBehind(): number {
    const journal = begin();
    take(journal, [0, 1], [10, 11]);
    journal.commit(2);
    journal.answer(0, 0);
    journal.pushed(1);
    return mark;
  }

  test.each([
    ["cleared by SHARED_RING_INIT", 0],
    ["another's", 77],
  ])("a ring that begins anew holds everything itself, its mark %s", (_, found) => {
    const old = leaveBehind();
    mark = found;
    for (const asked of [0, 1, 2, 3, 32]) {
      expect(left(takeOver({ slots: 32, rspProd: 0, reqProd: asked, mark }))).toEqual([]);
      expect([0, old, found]).not.toContain(mark);
    }
  });

  test("also one on the same page, by a frontend that clears nothing but the indices", () => {
    leaveBehind();
    expect(left(takeOver({ slots: 32, rspProd: 0, reqProd: 3, mark }))).toEqual([]);
    mark = 0;
    const journal = takeOver({ slots: 32, rspProd: 0, reqProd: 2, mark });
    take(journal, [0, 1], [10, 11]);
    journal.commit(2);
    expect(left(takeOver({ slots: 32, rspProd: 0, reqProd: 2, mark }))).toEqual([]);
  });

  test("a ring of another size has another journal", () => {
    leaveBehind();
    expect(left(takeOver({ slots: 64, rspProd: 0, reqProd: 3, mark }))).toEqual([]);
  });

  test("unless it is the old ring, whose responses count from 0 again after 2^32", () => {
    const journal = begin();
    take(journal, [0, 1], [10, 11]);
    journal.commit(2);
    [0, 1].forEach((row) => journal.answer(row, row));
    journal.pushed(2);
    take(journal, [0, 1], [12, 13]);
    journal.commit(2);
    expect(at(2, 4).rspProd).toBe(0);
    for (let successor = 0; successor < 3; successor++) expect(left(takeOver(at(2, 4)))).toEqual([12, 13]);
  });
});

test("killed between marking the ring and putting its journal in place, the journal is found", () => {
  begin();
  mark = 0; // whatever served it before
  const kill = (): never => {
    throw new Error("killed");
  };
  expect(() => Journal.open(path, at(3, 3), kill)).toThrow("killed");
  expect(left(takeOver(at(3, 3)))).toEqual([]);
  mark = 0;
  expect(() =>
    Journal.open(path, at(3, 3), (value) => {
      mark = value;
      throw new Error("killed");
    }),
  ).toThrow("killed");
  expect(left(takeOver(at(3, 5)))).toEqual([]);
});

test("requests wait among answers: a journal that is missing, short, another ring's or does not add up is no help", () => {
  const refused = "left no journal";
  const journal = begin();
  take(journal, [0, 1], [10, 11]);
  journal.commit(2);
  const tryWith = (state: RingState) => (): void => void takeOver(state);
  expect(tryWith({ ...at(0, 2), mark: 0 })).toThrow(refused);
  expect(tryWith({ ...at(0, 2), mark: mark ^ 1 })).toThrow(refused);
  expect(tryWith({ ...at(0, 2), slots: 64 })).toThrow(refused);
  expect(tryWith(at(1, 2))).toThrow(refused);
  expect(tryWith(at(3, 5))).toThrow(refused);
  // What was refused has touched nothing.
  expect(left(takeOver(at(0, 2)))).toEqual([10, 11]);
  truncateSync(path, 100);
  expect(tryWith(at(0, 2))).toThrow(refused);
  rmSync(path);
  expect(tryWith(at(0, 2))).toThrow(refused);
  begin();
});
