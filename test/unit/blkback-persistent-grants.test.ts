// Which of a guest's pages a ring keeps mapped, and for how long: as many as Linux keeps, a minute without use, and
// never one that a request under way still needs.
import { afterEach, beforeEach, expect, test } from "bun:test";
import { PersistentGrants, NO_PAGE } from "../../src/blkback/data-plane/data/persistent-grants.ts";
import { FakeGrants, GUEST, TestClock } from "./blkback-fakes.ts";

const LIMIT = 1056;
const ROOM = 53;
const PAGES = 3 * LIMIT;
const MINUTE = 60_000;

let grants: FakeGrants;
let clock: TestClock;
let kept: PersistentGrants;
let calls: { refs: number[]; access: string }[];

beforeEach(() => {
  grants = new FakeGrants(PAGES);
  clock = new TestClock();
  calls = [];
  const map = grants.map.bind(grants);
  grants.map = (domid, refs, access) => {
    calls.push({ refs: Array.from(refs), access });
    return map(domid, refs, access);
  };
  kept = new PersistentGrants(GUEST, grants, clock);
});

afterEach(() => {
  kept.close();
  expect([kept.mapped, grants.mapped]).toEqual([0, 0]);
  grants.close();
});

const range = (from: number, count: number): number[] => Array.from({ length: count }, (_, i) => from + i);
const acquire = (page: number): number => kept.acquire(grants.ref(page));

/** Uses each page once. */
function use(pages: readonly number[]): void {
  for (const page of pages) kept.release(acquire(page));
}

/** Which of `pages` have to be mapped when they are used. */
function missing(pages: readonly number[]): number[] {
  calls = [];
  use(pages);
  return calls.map(({ refs }) => refs[0] - grants.ref(0));
}

test("a page is mapped once, for writing, and then used in place, also twice at a time", () => {
  const first = acquire(3);
  expect(acquire(3)).toBe(first);
  kept.bytesOf(first)[7] = 42;
  expect(grants.pages[3 * 4096 + 7]).toBe(42);
  kept.release(first);
  kept.release(first);
  use([3, 3]);
  expect(calls).toEqual([{ refs: [grants.ref(3)], access: "rw" }]);
  expect(grants.mapped).toBe(1);
});

test("a grant that cannot be mapped has no page, and nothing to release", () => {
  grants.revoked.add(grants.ref(1));
  expect(acquire(1)).toBe(NO_PAGE);
  kept.release(NO_PAGE);
  expect(kept.mapped).toBe(0);
  grants.revoked.clear();
  expect(acquire(1)).not.toBe(NO_PAGE);
});

test("above the limit pages are mapped for their request only", () => {
  const held = range(0, LIMIT + 100).map(acquire);
  expect(kept.mapped).toBe(LIMIT + 100);
  for (const place of held) kept.release(place);
  expect([kept.mapped, grants.mapped]).toEqual([LIMIT, LIMIT]);
  // Those released first went; places are used again.
  expect(missing(range(100, LIMIT))).toEqual([]);
});

test("a full ring makes room for a few, at most every tenth of a second, and takes the ones unused for longest", () => {
  use(range(0, LIMIT));
  clock.nowMs += 10;
  use(range(200, LIMIT - 200));
  // Used before all others, but in use again.
  const held = range(0, 5).map(acquire);
  expect(missing([LIMIT])).toEqual([LIMIT]);
  expect(kept.mapped).toBe(LIMIT - ROOM + 1);
  use(range(LIMIT + 1, ROOM - 1));
  expect(kept.mapped).toBe(LIMIT);
  // No room so soon: what comes now is not kept.
  clock.nowMs += 50;
  expect(missing([2 * LIMIT, 2 * LIMIT])).toEqual([2 * LIMIT, 2 * LIMIT]);
  expect(kept.mapped).toBe(LIMIT);
  expect(missing([...range(0, 5), ...range(5 + ROOM, LIMIT - 5 - ROOM)])).toEqual([]);
  clock.nowMs += 51;
  expect(missing([2 * LIMIT, 2 * LIMIT])).toEqual([2 * LIMIT]);
  expect(kept.mapped).toBe(LIMIT - ROOM + 1);
  for (const place of held) kept.release(place);
});

test("when all pages are in use there is no room to make", () => {
  const held = range(0, LIMIT).map(acquire);
  use(range(LIMIT, 10));
  expect(kept.mapped).toBe(LIMIT);
  for (const place of held) kept.release(place);
  expect(missing(range(0, LIMIT))).toEqual([]);
});

test("what is not used for a minute is unmapped, and then nothing wakes us any more", () => {
  use(range(0, 10));
  clock.nowMs += 30_000;
  use(range(5, 5));
  const held = acquire(0);
  clock.wait();
  expect(clock.nowMs).toBe(1000 + MINUTE);
  // 5 to 9, and the one in use.
  expect(kept.mapped).toBe(6);
  clock.wait();
  expect(kept.mapped).toBe(1);
  // The last one is in use, and looked after again from when it is released.
  expect(() => clock.wait()).toThrow("nothing would end this wait");
  kept.release(held);
  clock.wait();
  expect([kept.mapped, grants.mapped]).toEqual([0, 0]);
  expect(() => clock.wait()).toThrow("nothing would end this wait");
});

test("pages that were used one by one are unmapped together, once a second at most", () => {
  for (const page of range(0, 100)) {
    use([page]);
    clock.nowMs += 10;
  }
  clock.wait();
  const before = clock.wakeUps;
  while (kept.mapped > 0) clock.wait();
  expect(clock.wakeUps - before).toBeLessThanOrEqual(2);
});

test("closing unmaps pages in use, too", () => {
  use(range(0, 4));
  acquire(2);
  kept.close();
  expect(grants.mapped).toBe(0);
});
