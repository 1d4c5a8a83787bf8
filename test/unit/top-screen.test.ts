// The screen of `xentool top`, drawn for terminals of several sizes: nothing is wider or longer than the screen, what
// does not fit is said to be missing, and the most remarkable comes first.
import { describe, expect, test } from "bun:test";
import { sparkline } from "../../cmd/lib/sparkline.ts";
import type { DiskRow, RingRow, TopView } from "../../cmd/lib/top-model.ts";
import { drawTop, lineOfTop, share } from "../../cmd/lib/top-screen.ts";
import { SORTS } from "../../cmd/lib/top-sorts.ts";
import { UNLIMITED, UNLIMITED_DISK } from "../../src/blkback/limits/rates.ts";

function disk(domid: number, reads: number, more: Partial<DiskRow> = {}): DiskRow {
  return {
    domid,
    vdev: "xvda",
    reads,
    writes: 0,
    flushes: 0,
    discards: 0,
    readBytes: reads * 4096,
    writeBytes: 0,
    errors: 0,
    medianUs: 128,
    p99Us: 16_384,
    seconds: 1,
    state: "Connected",
    queue: 3,
    waiting: 1,
    held: 0,
    limits: UNLIMITED_DISK,
    source: `/images/guest-${domid}.img`,
    history: [1, 2, reads],
    ...more,
  };
}

function ring(domid: number, requests: number, more: Partial<RingRow> = {}): RingRow {
  return {
    domid,
    name: `guest-${domid}`,
    requests,
    bytes: requests * 40,
    isEstimate: false,
    mostly: { type: "READ", share: 0.8 },
    verdict: "healthy",
    waitsMs: 0,
    history: [requests],
    ...more,
  };
}

function view(disks: DiskRow[], rings: RingRow[], notes: string[] = []): TopView {
  return { time: new Date(2026, 0, 2, 3, 4, 5), intervalMs: 1000, disks, rings, notes };
}

const STANDARD = { width: 80, height: 24 };

test("80 × 24 holds what matters", () => {
  const limits = { iops: { ...UNLIMITED, total: 500 }, bandwidth: UNLIMITED };
  const lines = drawTop(
    view(
      [disk(5, 1234), disk(6, 20, { limits, held: 9, state: "InitWait", medianUs: 0, p99Us: 0 })],
      [
        ring(5, 7),
        ring(7, 2345, { isEstimate: true }),
        ring(8, 0, { verdict: "guest-waits", waitsMs: 3200, mostly: null }),
      ],
    ),
    "load",
    STANDARD,
  );
  expect(lines).toEqual([
    "xentool top  03:04:05, over 1 s, sorted by load",
    "",
    "disk        IOPS trend   MiB/s median  99 % queue wait limit    state  source",
    "5/xvda      1234    ▁▁█    4.8  128µs  16ms     3    1          in use guest-5.…",
    "6/xvda        20    ▁▁█    0.1                  3    1 500/s    free   guest-6.…",
    "",
    "rings of other domains; this one's programs use a socket and are not shown",
    "domain             req/s trend    KiB/s who waits          mostly",
    "7 guest-7          ~2345      █    91.6                    READ 80 %",
    "5 guest-5              7      █     0.3                    READ 80 %",
    "8 guest-8              0            0.0 guest for 3.2 s",
    "q quit    sort: l load  b bytes  t latency  w waiting  n name",
  ]);
});

test("a narrow screen keeps the columns that tell who is busy and who waits", () => {
  const at = (width: number): string[] =>
    drawTop(
      view(
        [disk(5, 1234)],
        [ring(7, 2345, { isEstimate: true }), ring(8, 0, { verdict: "server-waits", waitsMs: 65_000 })],
        ["xenstored has not answered yet: domains and names may be old"],
      ),
      "load",
      { width, height: 14 },
    );
  expect(at(40)).toEqual([
    "xentool top  03:04:05, over 1 s, sorted…",
    "xenstored has not answered yet: domains",
    "  and names may be old",
    "",
    "disk        IOPS  MiB/s  99 % wait",
    "5/xvda      1234    4.8  16ms    1",
    "",
    "rings of other domains, not of this one",
    "domain             req/s who waits",
    "7 guest-7          ~2345",
    "8 guest-8              0 xenstored for …",
    "q quit    sort: l load  b bytes  t late…",
  ]);
  expect(at(60).slice(3, 10)).toEqual([
    "disk        IOPS  MiB/s median  99 % queue wait state",
    "5/xvda      1234    4.8  128µs  16ms     3    1 in use",
    "",
    "rings of other domains, not of this one",
    "domain             req/s who waits          mostly",
    "7 guest-7          ~2345                    READ 80 %",
    "8 guest-8              0 xenstored for 65 s READ 80 %",
  ]);
});

const many = view(
  Array.from({ length: 40 }, (_, at) => disk(at, at * 1e6, { queue: 512, waiting: 512, vdev: "xvdabcdefg" })),
  Array.from({ length: 50 }, (_, at) =>
    ring(at, at * 1e7, { name: "x".repeat(90), waitsMs: 1e9, verdict: "guest-waits" }),
  ),
  ["xenstored has not answered yet: domains and names may be old"],
);

test.each([
  [80, 24],
  [132, 50],
  [40, 12],
  [20, 5],
  [200, 200],
  [1, 1],
  [80, 2],
])("%d × %d is never exceeded, whatever there is to show", (width, height) => {
  for (const sort of SORTS)
    for (const each of [many, view([], []), view([disk(1, 1)], [])]) {
      const lines = drawTop(each, sort, { width, height });
      expect(lines.length).toBeLessThanOrEqual(height);
      expect(Math.max(...lines.map((line) => Bun.stringWidth(line)))).toBeLessThanOrEqual(width);
    }
});

test("what does not fit is counted", () => {
  const lines = drawTop(many, "name", STANDARD);
  const shown = lines.filter((line) => /^\d+\/xvdab/.test(line)).length;
  expect(lines).toContain(`and ${40 - shown} more`);
  expect(shown).toBeGreaterThan(4);
});

test("what one table does not need is the other's", () => {
  expect([share(17, 1, 50), share(17, 50, 1), share(17, 50, 50), share(17, 3, 4), share(0, 5, 5)]).toEqual([
    [1, 16],
    [16, 1],
    [8, 9],
    [3, 4],
    [0, 0],
  ]);
});

test("names that would move the cursor are shown escaped", () => {
  const hostile = "\x1b[2J\x07\u202e";
  const text = drawTop(
    view([disk(1, 1, { source: hostile })], [ring(1, 1, { name: hostile })], [hostile]),
    "load",
    {
      width: 200,
      height: 50,
    },
  ).join("\n");
  expect(/[\p{Cc}\p{Cf}]/u.test(text.replaceAll("\n", ""))).toBe(false);
  expect(lineOfTop(view([], [ring(1, 1, { name: hostile })]))).toContain("\\x1b[2J");
});

describe("sorted", () => {
  const disks = [
    disk(1, 10, { p99Us: 8, readBytes: 1, waiting: 0 }),
    disk(2, 5, { p99Us: 16, readBytes: 3, waiting: 0, queue: 0 }),
    disk(3, 1, { p99Us: 4, readBytes: 2, waiting: 7 }),
  ];
  test.each([
    ["load", [1, 2, 3]],
    ["bytes", [2, 3, 1]],
    ["latency", [2, 1, 3]],
    ["waiting", [3, 1, 2]],
    ["name", [1, 2, 3]],
  ] as const)("by %s", (sort, order) => {
    const rows = drawTop(view(disks, []), sort, STANDARD).filter((line) => /^\d\/xvda/.test(line));
    expect(rows.map((row) => Number(row[0]))).toEqual([...order]);
  });
});

test("in a pipe it is one line", () => {
  const waits = ring(8, 0, { verdict: "server-waits", waitsMs: 65_000, name: null });
  expect(lineOfTop(view([disk(5, 1234), disk(6, 1)], [ring(7, 2345), waits]))).toBe(
    "03:04:05  2 disks, 1235 IOPS, 4.8 MiB/s; busiest 5/xvda 1234 IOPS, 99 % 16ms; 2 rings, 2345 req/s; " +
      "loudest domain 7 (guest-7) 2345 req/s, READ 80 %; waiting: domain 8: xenstored for 65 s",
  );
  expect(lineOfTop(view([], [], ["xenstored: gone"]))).toBe(
    "03:04:05  0 disks, 0 IOPS, 0.0 MiB/s; 0 rings, 0 req/s; xenstored: gone",
  );
});

test("sparklines", () => {
  expect(sparkline([], 4)).toBe("    ");
  expect(sparkline([0, 0], 4)).toBe("    ");
  expect(sparkline([1, 2, 3, 4, 5, 6, 7, 8], 8)).toBe("▁▂▃▄▅▆▇█");
  expect(sparkline([100, 0, 1], 2)).toBe(" █");
  expect(sparkline([5], 3)).toBe("  █");
});
