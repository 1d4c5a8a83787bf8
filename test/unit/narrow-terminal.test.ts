// What is printed for a narrow terminal: nothing is wider than it is, and what tells things apart stays whole.
import { describe, expect, test } from "bun:test";
import { drawDevices } from "../../cmd/lib/blkback-report.ts";
import { formatStats } from "../../cmd/lib/stats-report.ts";
import { shownIn } from "../../cmd/lib/stats-watch.ts";
import { cut, wrap } from "../../cmd/lib/terminal.ts";
import type { ListedDevice } from "../../src/blkback/device/device-list.ts";
import { UNLIMITED_DISK } from "../../src/blkback/limits/rates.ts";
import { IMAGE_FAILED } from "../../src/blkback/data-plane/refusals.ts";
import {
  readAllStats,
  refusalCounter,
  RING_UTILISATION,
  STAT,
  StatsPage,
} from "../../src/blkback/stats/stats.ts";
import type { Domid } from "../../src/core/types.ts";
import { removeDirectory, temporaryDirectory } from "../support/temporary.ts";

test("a line is wrapped at spaces, and elsewhere where none is near; nothing is lost", () => {
  expect(wrap("short", 20)).toEqual(["short"]);
  expect(wrap("   one two three four", 12)).toEqual(["   one two", "     three", "     four"]);
  expect(wrap("/a/path/without/end", 8)).toEqual(["/a/path/", "  withou", "  t/end"]);
  expect(wrap("", 10)).toEqual([""]);
  for (const width of [2, 3, 5, 10, 80]) {
    const lines = wrap('   #1 WRITE("/local/domain/2/data", "n2") = OK', width);
    expect(Math.max(...lines.map((line) => line.length))).toBeLessThanOrEqual(width);
    expect(lines.join("").replaceAll(" ", "")).toBe('#1WRITE("/local/domain/2/data","n2")=OK');
  }
});

test("a line is cut with a sign of it", () => {
  expect([cut("abcdef", 6), cut("abcdefg", 6), cut("ab", 0)]).toEqual(["abcdef", "abcde…", "…"]);
});

test("stats --watch leaves out columns, the two of MiB/s together", () => {
  expect([...shownIn()]).toHaveLength(9);
  expect(shownIn(80)).toEqual(shownIn());
  expect([...shownIn(79)]).not.toContain("time");
  expect([...shownIn(60)]).toEqual(["disk", "reads/s", "MiB/s", "writes/s", "99 %", "err/s"]);
  expect([...shownIn(40)]).toEqual(["disk", "reads/s", "writes/s", "99 %"]);
  expect([...shownIn(1)]).toContain("disk");
});

test.each([40, 60, 80])(
  "stats in %d columns is wrapped, its table has fewer columns, and its bars are shorter",
  (width) => {
    const dir = temporaryDirectory();
    const page = StatsPage.create(dir, 1, 51_728);
    try {
      page.counters[STAT.reads] = page.counters[STAT.requests] = 1_234_567;
      page.counters[STAT.readBytes] = 123_456_789_012;
      page.counters[STAT.errors] = page.counters[refusalCounter(IMAGE_FAILED)] = 12_345;
      page.counters[RING_UTILISATION + 1] = 1_234_567;
      const [stats] = readAllStats(dir);
      if (stats === undefined) throw new Error("there are no statistics");
      const lines = formatStats(stats, width).split("\n");
      expect(Math.max(...lines.map((line) => Bun.stringWidth(line)))).toBeLessThanOrEqual(width);
      const words = lines.join(" ").replaceAll(/\s+/g, " ").trim();
      expect(words).toContain("1 234 567 requests, 12 345 errors, 0 merged, 0 indirect");
      expect(words).toMatch(/ 99 % reads 1 234 567 .* 1 █+ 1 234 567$/);
    } finally {
      page.remove();
      removeDirectory(dir);
    }
  },
);

test("stats of a ring that is shorter than the one before come to an end", () => {
  const dir = temporaryDirectory();
  const page = StatsPage.create(dir, 1, 51_728);
  try {
    page.counters[STAT.ringSlots] = 32;
    page.counters[RING_UTILISATION + 32] = 2;
    page.counters[RING_UTILISATION + 200] = 1;
    const [stats] = readAllStats(dir);
    if (stats === undefined) throw new Error("there are no statistics");
    const lines = formatStats(stats).split("\n");
    expect(lines.slice(-5)).toEqual([
      expect.stringMatching(/^ +32 +█+ 2$/),
      expect.stringMatching(/^ +33-65 +0$/),
      expect.stringMatching(/^ +66-131 +0$/),
      expect.stringMatching(/^ +132-263 +█+ +1$/),
      "",
    ]);
  } finally {
    page.remove();
    removeDirectory(dir);
  }
});

describe("list", () => {
  const device: ListedDevice = {
    backend: 0 as Domid,
    frontend: 1 as Domid,
    kind: "vbd",
    devid: 51_728,
    vdev: "xvdb",
    backendState: "Initialising",
    frontendState: "Initialising",
    online: true,
    mode: "w",
    params: "/srv/images/production-0007.img",
    format: "raw",
    sectors512: undefined,
    limits: UNLIMITED_DISK,
    stats: undefined,
    problem: "the image is used by another process, which is quite a long story",
  };

  test("is a table where that fits", () => {
    expect(drawDevices([device])).toEqual([
      "domain  vdev  kind  backend       frontend      mode  size  format  image",
      "1       xvdb  vbd   Initialising  Initialising  w           raw     /srv/images/production-0007.img",
      "xvdb of domain 1: the image is used by another process, which is quite a long story",
    ]);
    expect(drawDevices([device], 99)).toEqual(drawDevices([device]));
  });

  test("has each image on a line of its own where it does not", () => {
    expect(drawDevices([device, { ...device, problem: null, frontend: 2 as Domid }], 80)).toEqual([
      "domain  vdev  kind  backend       frontend      mode  size  format",
      "1       xvdb  vbd   Initialising  Initialising  w           raw",
      "  /srv/images/production-0007.img",
      "2       xvdb  vbd   Initialising  Initialising  w           raw",
      "  /srv/images/production-0007.img",
      "xvdb of domain 1: the image is used by another process, which is quite a long",
      "  story",
    ]);
    expect(drawDevices([device], 40).slice(0, 3)).toEqual([
      "domain  vdev  kind  backend       front…",
      "1       xvdb  vbd   Initialising  Initi…",
      "  /srv/images/production-0007.img",
    ]);
  });
});
