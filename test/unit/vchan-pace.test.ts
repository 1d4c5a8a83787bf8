// How soon one peer after another is served. What is awaited at once is known without a clock; pauses are
// measured from below only.
import { afterEach, expect, spyOn, test } from "bun:test";
import { PAUSE_MAX_MS, PAUSE_MIN_MS } from "../../src/vchan/bounds.ts";
import { Pace } from "../../src/vchan/pace.ts";

const { signal } = new AbortController();
const now = spyOn(performance, "now");
afterEach(() => now.mockRestore());

/** Whether it resolves before any timer could have fired. */
function isImmediate(next: Promise<boolean>): Promise<boolean> {
  return Promise.race([
    next.then(() => true),
    new Promise<boolean>((resolve) => setImmediate(() => resolve(false))),
  ]);
}

test("the first peer is served at once, and the next after pauses that grow and end with a session that lasted", async () => {
  let clock = 0;
  now.mockImplementation(() => clock);
  const pace = new Pace();
  expect(await isImmediate(pace.next(signal))).toBe(true);
  for (const pauseMs of [PAUSE_MIN_MS, 2 * PAUSE_MIN_MS, 4 * PAUSE_MIN_MS]) {
    const started = Date.now();
    expect(await pace.next(signal)).toBe(true);
    // Date.now() and a timer's clock are rounded differently.
    expect(Date.now() - started).toBeGreaterThanOrEqual(pauseMs - 2);
  }
  clock += PAUSE_MAX_MS;
  expect(await isImmediate(pace.next(signal))).toBe(true);
});

test("a pause ends when everything does", async () => {
  const stop = new AbortController();
  const pace = new Pace();
  await pace.next(stop.signal);
  const next = pace.next(stop.signal);
  expect(await isImmediate(next)).toBe(false);
  stop.abort();
  expect(await next).toBe(false);
  expect(await isImmediate(pace.next(stop.signal))).toBe(true);
});
