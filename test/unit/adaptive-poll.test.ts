// How long to look before sleeping, from how long looks and sleeps took.
import { expect, test } from "bun:test";
import { AdaptivePoll } from "../../src/core/adaptive-poll.ts";

test("a short sleep begins looking, and long ones soon end it", () => {
  const poll = new AdaptivePoll(50);
  expect(poll.us).toBe(0);
  poll.slept(49);
  expect(poll.us).toBe(50);
  const shorter = [50, 1000, Infinity, 50].map((us) => (poll.slept(us), poll.us));
  expect(shorter).toEqual([25, 12.5, 0, 0]);
});

test("with a bound of 0 there is no look, and one that is set later counts", () => {
  const poll = new AdaptivePoll(0);
  poll.slept(0);
  expect(poll.us).toBe(0);
  poll.maxUs = 50;
  poll.slept(0);
  expect(poll.us).toBe(50);
});

/** Of `waits`, how many looked, when something comes `us` after each wait began and a look that long finds it. */
function looksOf(poll: AdaptivePoll, waits: number, us: number): number {
  let looks = 0;
  for (let i = 0; i < waits; i++) {
    const found = us <= poll.us;
    if (poll.us > 0) {
      looks++;
      poll.looked(Math.min(us, poll.us));
    }
    if (!found) poll.slept(us - Math.min(us, poll.us));
  }
  return looks;
}

test("what comes soon on average is looked for, though one or another look takes long", () => {
  const poll = new AdaptivePoll(1000, 250);
  expect(looksOf(poll, 1000, 200)).toBeGreaterThan(990);
  looksOf(poll, 1, 900);
  expect(looksOf(poll, 1000, 200)).toBe(1000);
});

test("what comes late is looked for more and more seldom, until it comes soon again", () => {
  const poll = new AdaptivePoll(1000, 250);
  const first = looksOf(poll, 100, 600);
  expect(first).toBeGreaterThan(5);
  expect(first).toBeLessThan(80);
  expect(looksOf(poll, 10_000, 600)).toBeLessThan(700);
  // The longest rest ends.
  looksOf(poll, 512, 20);
  expect(looksOf(poll, 1000, 20)).toBeGreaterThan(990);
});

test("long sleeps of the past do not let looks go on that take nearly as long", () => {
  const poll = new AdaptivePoll(2000, 250);
  for (let i = 0; i < 100; i++) poll.slept(1900);
  expect(looksOf(poll, 10_000, 1000)).toBeLessThan(1500);
});

test("looks that find nothing end, too", () => {
  const poll = new AdaptivePoll(1000, 250);
  let looked = 0;
  for (let i = 0; i < 10_000; i++) {
    // The event comes only once we sleep: where both ends share one processor.
    if (poll.us > 0) {
      looked += poll.us;
      poll.looked(poll.us);
    }
    poll.slept(100);
  }
  expect(looked / 10_000).toBeLessThan(50);
});

test("eight looks in a row without success are followed by a rest, which doubles each time and ends", () => {
  const poll = new AdaptivePoll(50);
  const sleeps: number[] = [];
  for (let round = 0; round < 9; round++) {
    let resting = 0;
    for (; poll.us === 0; resting++) poll.slept(10);
    sleeps.push(resting);
    for (let look = 1; look <= 8; look++) {
      expect(poll.us).toBe(50);
      poll.ended(false);
      if (look < 8) poll.slept(10);
    }
    expect(poll.us).toBe(0);
  }
  expect(sleeps).toEqual([1, 9, 17, 33, 65, 129, 257, 513, 513]);
});

test("one success among eight keeps looking going, and makes the next rest a short one", () => {
  const poll = new AdaptivePoll(50);
  poll.slept(10);
  for (let look = 0; look < 800; look++) {
    poll.ended(look % 8 === 7);
    poll.slept(10);
    expect(poll.us).toBe(50);
  }
  for (let look = 0; look < 8; look++) poll.ended(false);
  for (let sleep = 0; sleep < 8; sleep++) {
    poll.slept(10);
    expect(poll.us).toBe(0);
  }
  poll.slept(10);
  expect(poll.us).toBe(50);
});
