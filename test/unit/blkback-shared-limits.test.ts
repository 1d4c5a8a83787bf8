// A disk's limits hold for all its planes together, and those that are held back get the same share. Time moves only
// when all wait.
import { expect, test } from "bun:test";
import { RateLimiter } from "../../src/blkback/limits/rate-limiter.ts";
import { parseRate, UNLIMITED_DISK, type DiskRates, type Quantity } from "../../src/blkback/limits/rates.ts";
import { closeSharedDisk, createSharedDisk, SharedDisk } from "../../src/blkback/data-plane/shared-disk.ts";
import { TestClock } from "./blkback-fakes.ts";

const SECONDS = 10;
const BYTES = 4096;

interface Plane {
  readonly clock: TestClock;
  readonly limiter: RateLimiter;
  /** Requests that may pass without another one being answered first. */
  readonly depth: number;
  passed: number;
}

const limit = (quantity: Quantity, text: string): DiskRates => ({
  ...UNLIMITED_DISK,
  [quantity]: parseRate(quantity, "", text),
});

/** How many requests pass on each plane: as many as `depths` says are answered and asked anew between two passes. */
function passed(
  rates: DiskRates,
  depths: readonly number[],
  isStuck = (_seat: number): boolean => false,
): number[] {
  const handle = createSharedDisk(depths.length);
  const planes = depths.map((depth, seat): Plane => {
    const clock = new TestClock();
    return { clock, limiter: new RateLimiter(clock, rates, new SharedDisk(handle, seat)), depth, passed: 0 };
  });
  const pass = (plane: Plane): void => {
    const { limiter, depth } = plane;
    limiter.beginPass();
    let left = depth;
    while (left > 0 && limiter.isOpen(false)) {
      limiter.pass(false, BYTES);
      plane.passed++;
      left--;
    }
    // What has passed is answered at once, and the guest asks again.
    const holds = depth > 0 && !limiter.isOpen(false);
    limiter.endPass(holds);
    if (depth > 0 && !holds) pass(plane);
  };
  const [{ clock }] = planes;
  const end = clock.nowMs + SECONDS * 1000;
  for (const plane of planes) pass(plane);
  for (;;) {
    const awake = planes.filter((_, seat) => !isStuck(seat));
    const next = awake.reduce((a, b) => (b.clock.dueMs < a.clock.dueMs ? b : a));
    if (next.clock.dueMs > end) break;
    next.clock.wait();
    for (const it of planes) it.clock.nowMs = next.clock.nowMs;
    pass(next);
  }
  closeSharedDisk(handle);
  return planes.map((it) => it.passed);
}

const sum = (numbers: readonly number[]): number => numbers.reduce((total, it) => total + it, 0);

function expectNear(actual: number, expected: number, share: number): void {
  expect(Math.abs(actual - expected) / expected).toBeLessThan(share);
}

const RATES: [string, DiskRates, number][] = [
  ["100 IOPS", limit("iops", "100"), 100],
  ["4000 IOPS", limit("iops", "4000"), 4000],
  ["50000 IOPS", limit("iops", "50000"), 50_000],
  ["4000 IOPS, burst=1", limit("iops", "4000,burst=1"), 4000],
  ["10 MiB/s", limit("bandwidth", "10M"), (10 << 20) / BYTES],
  ["read:2000", limit("iops", "read:2000"), 2000],
];

test.each(RATES)(
  "%s: planes that always have requests waiting get the same share, and together all",
  (...it) => {
    const [, rates, perSecond] = it;
    for (const depths of [[256], [256, 256], [256, 32, 256], [64, 64, 64, 64]]) {
      const counts = passed(rates, depths);
      expectNear(sum(counts), perSecond * SECONDS, 0.02);
      for (const count of counts) expectNear(count, (perSecond * SECONDS) / depths.length, 0.1);
    }
  },
);

test.each(RATES)("%s: a plane gets all that others do not ask for", (_name, rates, perSecond) => {
  const counts = passed(rates, [0, 256, 0]);
  expect(counts[0] + counts[2]).toBe(0);
  expectNear(counts[1], perSecond * SECONDS, 0.02);
});

test.each(RATES)("%s: a plane that is held back and then hangs costs the others nothing", (...it) => {
  const [, rates, perSecond] = it;
  expectNear(sum(passed(rates, [256, 256, 256], (seat) => seat === 1)), perSecond * SECONDS, 0.02);
});
