// How limits are written, and that a limiter keeps them: on a clock that the test moves, so that nothing here waits or
// depends on the machine.
import { describe, expect, test } from "bun:test";
import { RateLimiter } from "../../src/blkback/limits/rate-limiter.ts";
import {
  parseRate,
  rateText,
  ratesAsNumbers,
  ratesFromNumbers,
  UNLIMITED,
  UNLIMITED_DISK,
  type DiskRates,
  type Quantity,
  type Rate,
} from "../../src/blkback/limits/rates.ts";
import { parseSize, sizeText } from "../../src/core/sizes.ts";
import { TestClock } from "./blkback-fakes.ts";

describe("as written", () => {
  test.each<[Quantity, string, Partial<Rate>]>([
    ["iops", "500", { total: 500 }],
    ["iops", "500,burst=2000", { total: 500, burst: 2000 }],
    ["iops", "read:1000,write:200", { read: 1000, write: 200 }],
    ["iops", "write:1,burst=7", { write: 1, burst: 7 }],
    ["iops", "none", {}],
    ["bandwidth", "10M", { total: 10 << 20 }],
    ["bandwidth", "read:1G,write:1536k,burst=64M", { read: 2 ** 30, write: 1536 << 10, burst: 64 << 20 }],
  ])("%s %s", (quantity, text, rate) => {
    const parsed = parseRate(quantity, "--x", text);
    expect(parsed).toEqual({ ...UNLIMITED, ...rate });
    expect(rateText(quantity, parsed)).toBe(text);
  });

  test.each<[Quantity, string]>([
    ["iops", ""],
    ["iops", "0"],
    ["iops", "-1"],
    ["iops", "1.5"],
    ["iops", "10k"],
    ["iops", "9999999999"],
    ["iops", "burst=5"],
    ["iops", "500,500"],
    ["iops", "500,read:100"],
    ["iops", "read:1,read:2"],
    ["iops", "none,burst=1"],
    ["iops", "500, burst=2"],
    ["iops", "both:5"],
    ["bandwidth", "10MB"],
    ["bandwidth", "9999T"],
    ["bandwidth", "10M\n"],
  ])("%s %j means nothing", (quantity, text) => {
    expect(() => parseRate(quantity, "--x", text)).toThrow(/^--x: ".*" is not a limit such as /);
  });

  test("sizes in powers of 1024", () => {
    expect(["0", "512", "64k", "64K", "10M", "1g", "2T"].map(parseSize)).toEqual([
      0,
      512,
      65_536,
      65_536,
      10 << 20,
      2 ** 30,
      2 ** 41,
    ]);
    expect(["", "k", "1.5k", "1kB", " 1", "1e3", "0x10"].map(parseSize)).toEqual(Array(7).fill(undefined));
    expect([0, 1000, 1536, 3 << 20, 2 ** 50].map(sizeText)).toEqual(["0", "1000", "1536", "3M", "1024T"]);
  });

  test("and as numbers", () => {
    const rates = { iops: { total: 1, read: 2, write: 3, burst: 4 }, bandwidth: { ...UNLIMITED, read: 9 } };
    expect(ratesFromNumbers(ratesAsNumbers(rates))).toEqual(rates);
  });
});

interface Load {
  readonly reads?: number;
  readonly writes?: number;
  readonly bytes?: number;
  /** How late timers are. */
  readonly lateMs?: number;
}

/** What passes in `seconds` while requests are always waiting, in the proportion of `load`. */
function passed(
  rates: DiskRates,
  seconds: number,
  { reads = 1, writes = 0, bytes = 4096, lateMs = 0 }: Load,
) {
  const clock = new TestClock();
  const limiter = new RateLimiter(clock, rates);
  const counts = { reads: 0, writes: 0, bytes: 0, clock };
  const end = clock.nowMs + seconds * 1000;
  // Each direction waits in a line of its own, as in the scheduler.
  const pass = (isWrite: boolean): boolean => {
    if (!limiter.isOpen(isWrite)) return false;
    limiter.pass(isWrite, bytes);
    counts[isWrite ? "writes" : "reads"]++;
    counts.bytes += bytes;
    return true;
  };
  while (clock.nowMs < end) {
    let any = false;
    for (let i = 0; i < reads; i++) any = pass(false) || any;
    for (let i = 0; i < writes; i++) any = pass(true) || any;
    if (!any) clock.wait(lateMs);
  }
  return counts;
}

function within2Percent(actual: number, expected: number): void {
  expect(Math.abs(actual - expected) / expected).toBeLessThan(0.02);
}

const iops = (text: string): DiskRates => ({ ...UNLIMITED_DISK, iops: parseRate("iops", "", text) });
const bandwidth = (text: string): DiskRates => ({
  ...UNLIMITED_DISK,
  bandwidth: parseRate("bandwidth", "", text),
});

describe("a limiter keeps", () => {
  test.each([10, 500, 4000, 50_000, 1_000_000])("%d requests a second", (rate) => {
    within2Percent(passed(iops(String(rate)), 10, {}).reads, rate * 10);
  });

  test.each([512, 4096, 1 << 20])("10 MiB a second in requests of %d bytes", (bytes) => {
    within2Percent(passed(bandwidth("10M"), 10, { bytes }).bytes, 10 * (10 << 20));
  });

  test("a limit of both quantities: the tighter one counts", () => {
    const both = { ...iops("1000"), bandwidth: parseRate("bandwidth", "", "100M") };
    within2Percent(passed(both, 10, { bytes: 4096 }).reads, 10_000);
    within2Percent(passed(both, 10, { bytes: 1 << 20 }).bytes, 10 * (100 << 20));
  });

  test("each direction's own limit, and what is not limited is not held back", () => {
    const { reads, writes } = passed(iops("read:1000,write:200"), 10, { reads: 1, writes: 1 });
    within2Percent(reads, 10_000);
    within2Percent(writes, 2000);
    const limiter = new RateLimiter(new TestClock(), iops("read:1"));
    for (let i = 0; i < 1000; i++) {
      expect(limiter.isOpen(true)).toBe(true);
      limiter.pass(true, 4096);
    }
    limiter.pass(false, 4096);
    expect(limiter.isOpen(false)).toBe(false);
  });

  test("a limit when timers are late by less than the bucket holds", () => {
    within2Percent(passed(iops("5000"), 10, { lateMs: 50 }).reads, 50_000);
  });

  test("a small burst without losing what it cannot hold between two wake-ups", () => {
    within2Percent(passed(iops("100000,burst=1"), 10, {}).reads, 1_000_000);
  });

  test("with at most one wake-up a millisecond, and one for each request of a slow disk", () => {
    expect(passed(iops("1000000"), 10, {}).clock.wakeUps).toBeLessThanOrEqual(10_001);
    expect(passed(iops("10"), 10, {}).clock.wakeUps).toBeLessThanOrEqual(101);
  });
});

describe("a bucket", () => {
  /** How many pass without waiting. */
  function atOnce(limiter: RateLimiter): number {
    let count = 0;
    for (; limiter.isOpen(false); count++) limiter.pass(false, 4096);
    return count;
  }

  test.each([
    ["500", 51],
    ["500,burst=700", 700],
    ["3", 1],
  ])("of %s lets %d pass after a pause, however long it was", (text, count) => {
    const clock = new TestClock();
    const limiter = new RateLimiter(clock, iops(text));
    for (const pauseMs of [10_000, 1e6]) {
      clock.nowMs += pauseMs;
      expect(atOnce(limiter)).toBe(count);
    }
  });

  test("begins empty, also when the limit changes", () => {
    const clock = new TestClock();
    const limiter = new RateLimiter(clock, iops("500,burst=700"));
    expect(atOnce(limiter)).toBe(1);
    clock.nowMs += 10_000;
    limiter.change(iops("1000,burst=700"));
    expect(atOnce(limiter)).toBe(1);
  });

  test("pays a request off that is larger than it, before the next one passes", () => {
    const clock = new TestClock();
    const limiter = new RateLimiter(clock, bandwidth("1M"));
    clock.nowMs += 1000;
    expect(limiter.isOpen(false)).toBe(true);
    limiter.pass(false, 8 << 20);
    expect(limiter.isOpen(false)).toBe(false);
    const since = clock.nowMs;
    clock.wait();
    // 8 s of debt, less what the bucket may owe.
    expect(clock.nowMs - since).toBe(7900);
    expect(atOnce(limiter)).toBe(1);
  });

  test("a change counts for what waits already: it is woken earlier, or passes", () => {
    const clock = new TestClock();
    const limiter = new RateLimiter(clock, iops("1"));
    clock.nowMs += 1000;
    expect(atOnce(limiter)).toBe(1);
    const slow = clock.nowMs;
    limiter.change(iops("100"));
    expect(atOnce(limiter)).toBe(1);
    expect(limiter.isOpen(false)).toBe(false);
    clock.wait();
    expect(clock.nowMs - slow).toBe(10);
    limiter.change(UNLIMITED_DISK);
    expect([limiter.isOpen(false), limiter.isOpen(true)]).toEqual([true, true]);
  });
});
