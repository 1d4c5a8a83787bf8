// What --filter, --uid-base, --threads and the numbers of an offer may be: anything else is a usage error, told in
// one line.
import { describe, expect, test } from "bun:test";
import { serveCommand } from "../../cmd/blkback-serve.ts";
import { checkArguments } from "../../cmd/lib/arguments.ts";
import { checkUidBase } from "../../src/blkback/guests/guest-users.ts";
import { checkThreads } from "../../src/blkback/device/threads.ts";
import { errorFilter } from "../../src/block/filters/error.ts";
import { FilterOptions } from "../../src/block/filters/filter.ts";
import { filterHelp, parseFilter } from "../../src/block/filters/catalogue.ts";
import { XentoolError } from "../../src/core/errors.ts";

/** The message of the usage error that `work` throws. */
function usageOf(work: () => unknown): string {
  try {
    work();
  } catch (error) {
    if (error instanceof XentoolError && error.kind === "usage") return error.message;
    throw error;
  }
  return "no error";
}

function errorOptions(text: string): ReturnType<typeof errorFilter.parse> {
  return errorFilter.parse(new FilterOptions(`error:${text}`, text));
}

test("--uid-base is none, or leaves the users of people and the system alone", () => {
  for (const base of [0, 60_000, 65_536, 2 ** 32 - 1 - 0x7ff0]) checkUidBase(base);
  for (const base of [1, 1000, -1, 65_536.5, NaN, 2 ** 32 - 0x7ff0, 2 ** 53])
    expect(usageOf(() => checkUidBase(base))).toEndWith(`not ${base}`);
});

describe("--filter", () => {
  test.each([
    ["100%", 1],
    ["1%", 0.01],
    ["0.5%", 0.005],
    ["0", 0],
    [".25", 0.25],
    ["1", 1],
  ])("error:rate=%s", (text, rate) => expect(errorOptions(`rate=${text}`)).toMatchObject({ rate }));

  test.each(["", "%", " ", "101%", "1.01", "-1%", "1%%", "0x1", ".", "1.", "Infinity", "NaN", "half"])(
    'error:rate= has no "%s"',
    (text) =>
      expect(usageOf(() => parseFilter(`error:rate=${text}`))).toBe(
        `--filter error:rate=${text}: rate is a share such as 1% or 0.01, not "${text}"`,
      ),
  );

  test.each(["toString", "constructor", "__proto__", "", "eio"])("error:errno= has no %s", (name) =>
    expect(usageOf(() => parseFilter(`error:errno=${name}`))).toEndWith(
      "errno is one of EIO, ENOSPC, EOPNOTSUPP",
    ),
  );

  test.each(["toString", "constructor", "__proto__", "", "all"])("op= has no read+%s", (name) =>
    expect(usageOf(() => parseFilter(`log:op=read+${name}`))).toEndWith(
      `op is read, write, flush, discard or several joined by +, not ${name}`,
    ),
  );

  test("names are known", () => {
    for (const op of ["read", "write", "flush", "discard"])
      expect(errorOptions(`op=${op}`).ops).not.toEqual([]);
    expect(errorOptions("op=read+write,errno=ENOSPC,seed=7")).toMatchObject({ errno: -28, seed: 7 });
  });

  test.each([
    ["nothing", "the filters are assert, delay, error, log; --filter help describes them"],
    ["log:ms=5", 'log has no "ms"'],
    ["assert:op=read", 'assert has no "op"'],
    ["delay:ms", '"ms" is not key=value'],
  ])("%s is refused", (text, why) =>
    expect(usageOf(() => parseFilter(text))).toBe(`--filter ${text}: ${why}`),
  );

  test("its help names every filter", () => {
    for (const name of ["assert", "delay", "error", "log"]) expect(filterHelp()).toContain(`\n  ${name}`);
  });
});

test("filters see all requests of a disk, and so have one thread", () => {
  checkThreads(16, []);
  checkThreads(1, ["log"]);
  expect(usageOf(() => checkThreads(2, ["log"]))).toContain("needs --threads 1");
});

describe("a number", () => {
  const defaults = Object.entries(serveCommand.options).map(([name, { initial }]) => [name, initial]);
  const check = (name: string, value: number): void =>
    checkArguments(serveCommand, { ...Object.fromEntries(defaults), [name]: value });
  test.each([
    ["threads", 1, 16],
    ["connections", 1, 16],
    ["max-queues", 1, 16],
    ["max-ring-page-order", 0, 4],
    ["max-indirect-segments", 0, 4096],
  ])("--%s is from %d to %d", (name, least, most) => {
    for (const value of [least, most]) check(name, value);
    for (const value of [least - 1, most + 1, least + 0.5])
      expect(usageOf(() => check(name, value))).toBe(
        `--${name} must be a whole number from ${least} to ${most}, not ${value}`,
      );
  });

  test("--hold has no end", () => {
    for (const value of [0, 0.5, 1e9]) check("hold", value);
    expect(usageOf(() => check("hold", -1))).toBe("--hold must be a number from 0 on, not -1");
  });
});
