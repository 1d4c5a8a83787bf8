// What vchan shows of a transfer: to whom, and in which words.
import { describe, expect, test } from "bun:test";
import { progressLine, showsProgress, type ProgressSurroundings } from "../../cmd/lib/vchan-progress.ts";
import type { VchanCounts } from "../../src/vchan/endpoint.ts";

const MIB = 1 << 20;

function counts(bytesWritten: number, bytesRead: number): VchanCounts {
  return { bytesWritten, bytesRead, eventsSent: 0, eventsReceived: 0 };
}

describe("a line", () => {
  test("has the rate, and the share where the size is known", () => {
    const [before, now] = [counts(MIB, 0), counts(3 * MIB, 0)];
    expect(progressLine(now, before, 0.5, undefined)).toBe("sent 3 MiB, 4 MiB/s");
    expect(progressLine(now, before, 0.5, 12 * MIB)).toBe("sent 3 MiB of 12 MiB (25 %), 4 MiB/s");
    expect(progressLine(counts(13 * MIB, 0), before, 1, 12 * MIB)).toBe("sent 13 MiB, 12 MiB/s");
  });

  test("has each way in which something has gone", () => {
    expect(progressLine(counts(0, 0), counts(0, 0), 1, 100)).toBe("");
    expect(progressLine(counts(0, 2048), counts(0, 1024), 1, undefined)).toBe("received 2 KiB, 1 KiB/s");
    expect(progressLine(counts(1024, 2048), counts(1024, 0), 2, undefined)).toBe(
      "sent 1 KiB, 0 B/s; received 2 KiB, 1 KiB/s",
    );
  });
});

describe("it is shown", () => {
  const quiet: ProgressSurroundings = {
    isTerminal: true,
    verbosity: 0,
    json: false,
    streams: { input: "program", output: "program" },
    isOneWay: false,
  };

  test("never where stderr is no terminal, nor beside JSON", () => {
    const streams = { input: "file", output: "file" } as const;
    expect(showsProgress({ ...quiet, streams })).toBe(true);
    expect(showsProgress({ ...quiet, streams, verbosity: 1, isTerminal: false })).toBe(false);
    expect(showsProgress({ ...quiet, streams, verbosity: 1, json: true })).toBe(false);
  });

  test("of a file or a stream one way, but not where two programs talk, unless -v asks", () => {
    expect(showsProgress({ ...quiet, streams: { input: "file", output: "terminal" } })).toBe(true);
    expect(showsProgress({ ...quiet, streams: { input: "terminal", output: "program" } })).toBe(true);
    expect(showsProgress({ ...quiet, isOneWay: true })).toBe(true);
    expect(showsProgress(quiet)).toBe(false);
    expect(showsProgress({ ...quiet, verbosity: 1 })).toBe(true);
    expect(showsProgress({ ...quiet, streams: undefined })).toBe(false);
    expect(showsProgress({ ...quiet, streams: undefined, verbosity: 1 })).toBe(true);
  });

  test("not where the terminal is the stream", () => {
    const streams = { input: "terminal", output: "terminal" } as const;
    expect(showsProgress({ ...quiet, streams, verbosity: 1 })).toBe(false);
    expect(showsProgress({ ...quiet, streams, isOneWay: true })).toBe(true);
  });
});
