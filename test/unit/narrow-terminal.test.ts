// What is printed for a narrow terminal: nothing is wider than it is, and what tells things apart stays whole.
import { describe, expect, test } from "bun:test";
import { drawDevices } from "../../cmd/lib/blkback-report.ts";
import { shownIn } from "../../cmd/lib/stats-watch.ts";
import { cut, wrap } from "../../cmd/lib/terminal.ts";
import type { ListedDevice } from "../../src/blkback/device-list.ts";
import { UNLIMITED_DISK } from "../../src/blkback/rates.ts";
import type { Domid } from "../../src/core/types.ts";

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
