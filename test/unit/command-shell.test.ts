// What commands share in cmd/lib: quantities and tables as people read them, and how a command's end becomes an
// exit status.
import { afterEach, describe, expect, spyOn, test } from "bun:test";
import { Interruption } from "../../cmd/lib/interruption.ts";
import { formatBytes, formatCount, formatDuration, formatTable } from "../../cmd/lib/output.ts";
import { runCommand, type CommandContext } from "../../cmd/lib/run-command.ts";
import { XentoolError } from "../../src/core/errors.ts";

describe("quantities", () => {
  test.each([
    [0, "0 B"],
    [1023, "1023 B"],
    [1024, "1 KiB"],
    [1536, "1.5 KiB"],
    [1024 ** 2 - 1, "1 MiB"],
    [150 * 1024, "150 KiB"],
    [8 * 1024 ** 3, "8 GiB"],
    [1024 ** 6, "1024 PiB"],
  ])("%d bytes are %s", (bytes, text) => expect(formatBytes(bytes)).toBe(text));

  test.each([
    [0, "0"],
    [999, "999"],
    [1000, "1 000"],
    [1_234_567, "1 234 567"],
  ])("%d is %s", (count, text) => expect(formatCount(count)).toBe(text));

  test.each([
    [850, "850 ns"],
    [12_300, "12.3 µs"],
    [999_999, "1 ms"],
    [250_000_000, "250 ms"],
    [6_100_000_000, "6.1 s"],
  ])("%d ns are %s", (ns, text) => expect(formatDuration(ns)).toBe(text));

  test("tables align by what is seen, wide characters included", () => {
    const table = formatTable(
      [{ title: "name" }, { title: "size", align: "right" }],
      [
        ["a", "1"],
        ["日本", "12345"],
      ],
    );
    expect(table).toBe(["name   size", "a         1", "日本  12345"].join("\n"));
  });
});

describe("a command's end", () => {
  const argv = { platform: "auto", json: false, timeout: undefined, verbose: 0 } as const;
  afterEach(() => {
    process.exitCode = 0;
  });

  /** Exit status and stderr of a command with this body. */
  async function endOf(
    body: (context: CommandContext) => Promise<number | void> | number | void,
    json = false,
  ): Promise<{ status: unknown; said: string }> {
    const written: string[] = [];
    const stderr = spyOn(process.stderr, "write").mockImplementation(
      (text) => written.push(String(text)) > 0,
    );
    try {
      await runCommand({ ...argv, json }, body);
    } finally {
      stderr.mockRestore();
    }
    return { status: process.exitCode, said: written.join("") };
  }

  test("is 0 or what its body returns", async () => {
    expect(await endOf(() => {})).toEqual({ status: 0, said: "" });
    expect(await endOf(() => 7)).toEqual({ status: 7, said: "" });
  });

  test.each([
    ["usage", 2],
    ["environment", 3],
    ["protocol", 4],
    ["io", 5],
    ["timeout", 6],
    ["cancelled", 130],
  ] as const)("is told by the kind of its error: %s %d", async (kind, status) => {
    const cause = new Error("first\n  second");
    const outcome = await endOf(() => {
      throw new XentoolError(kind, "it failed", {}, cause);
    });
    expect(outcome).toEqual({ status, said: "xentool: it failed: first second\n" });
  });

  test("is a bug's when anything else is thrown", async () => {
    const { status, said } = await endOf(() => {
      throw new TypeError("x is undefined");
    });
    expect(status).toBe(70);
    expect(said).toStartWith("xentool: x is undefined\nxentool: this is a bug");
  });

  test("is one JSON object with --json", async () => {
    const { said } = await endOf(() => {
      throw new XentoolError("io", "it failed", { port: 3 });
    }, true);
    expect(JSON.parse(said)).toEqual({
      error: { kind: "io", message: "it failed", context: { port: 3 } },
    });
  });

  test.each([
    ["SIGINT", 130],
    ["SIGTERM", 143],
    ["SIGHUP", 129],
  ] as const)("is the signal's after %s, once it has let go", async (signal, status) => {
    const events: string[] = [];
    const outcome = await endOf(async ({ stop, force }) => {
      const stopped = new Promise((resolve) => stop.addEventListener("abort", resolve));
      const forced = new Promise((resolve) => force.addEventListener("abort", resolve));
      process.kill(process.pid, signal);
      await stopped;
      events.push(`stop, force ${force.aborted}`);
      process.kill(process.pid, signal);
      await forced;
      events.push("force");
      throw new XentoolError("cancelled", "interrupted");
    });
    expect(outcome).toEqual({ status, said: "" });
    expect(events).toEqual(["stop, force false", "force"]);
  });

  test("leaves no listeners for signals", async () => {
    const before = process.listenerCount("SIGTERM");
    await endOf(() => {});
    expect(process.listenerCount("SIGTERM")).toBe(before);
  });
});

test("who does not listen for signals ends at once", () => {
  const exit = spyOn(process, "exit").mockImplementation(() => {
    throw new Error("exits");
  });
  const interruption = new Interruption();
  try {
    expect(() => interruption.interrupt(143, true)).toThrow("exits");
    expect(exit).toHaveBeenCalledWith(143);
  } finally {
    interruption.close();
    exit.mockRestore();
  }
});
