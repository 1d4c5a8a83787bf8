// What is said and counted of I/O that failed: a line for each errno, one a minute at most, and a flush that failed
// forbids what builds on lost data.
import { afterEach, beforeEach, expect, spyOn, test, type Mock } from "bun:test";
import { IoFailures } from "../../src/blkback/data-plane/io-failures.ts";
import { DiskCounters } from "../../src/blkback/data-plane/disk-counters.ts";
import {
  KIND_BARRIER,
  KIND_DISCARD,
  KIND_FLUSH,
  KIND_READ,
  KIND_SECURE_DISCARD,
  KIND_WRITE,
} from "../../src/blkback/data-plane/requests.ts";
import { SharedDisk } from "../../src/blkback/data-plane/shared-disk.ts";
import { STAT } from "../../src/blkback/stats/stats.ts";
import { configureLogging } from "../../src/core/log.ts";

const EIO = -5;
const ENOSPC = -28;
const MINUTE_MS = 60_000;
let stderr: Mock<typeof process.stderr.write>;
let counters: Float64Array;
let failures: IoFailures;

beforeEach(() => {
  stderr = spyOn(process.stderr, "write").mockImplementation(() => true);
  configureLogging(0);
  counters = new Float64Array(8192);
  failures = new IoFailures(new DiskCounters(counters, 1), [], SharedDisk.alone());
});
afterEach(() => stderr.mockRestore());

/** What was logged since the last call, without the beginnings of the lines. */
function said(): string[] {
  const lines = stderr.mock.calls.map(([text]) =>
    String(text)
      .replace(/^.*?error: /, "")
      .trim(),
  );
  stderr.mockClear();
  return lines;
}

test("each errno has a line at first, then one a minute that says how many were left out", () => {
  failures.failed(KIND_WRITE, 4096, 1024, ENOSPC, 1000);
  failures.failed(KIND_READ, 512, 512, EIO, 1001);
  for (let i = 0; i < 40; i++) failures.failed(KIND_WRITE, 8192, 512, ENOSPC, 1002 + i);
  failures.failed(KIND_READ, 512, 512, EIO, 1000 + MINUTE_MS);
  expect(said()).toEqual([
    "write of 2 sectors at sector 8 failed: ENOSPC: no space left on device",
    "read of 1 sector at sector 1 failed: EIO: i/o error",
  ]);
  failures.failed(KIND_DISCARD, 0, 512, ENOSPC, 1000 + MINUTE_MS);
  failures.failed(KIND_DISCARD, 0, 512, ENOSPC, 1001 + MINUTE_MS);
  expect(said()).toEqual([
    "discard of 1 sector at sector 0 failed, and 40 others since the last such line: ENOSPC: no space left on device",
  ]);
  failures.failed(KIND_SECURE_DISCARD, 512, 512, ENOSPC, 1000 + 2 * MINUTE_MS);
  expect(said()).toEqual([
    "secure discard of 1 sector at sector 1 failed, and 1 other since the last such line: ENOSPC: no space left on device",
  ]);
});

test("every failure is counted under its operation", () => {
  for (const kind of [KIND_READ, KIND_WRITE, KIND_BARRIER, KIND_DISCARD, KIND_SECURE_DISCARD])
    failures.failed(kind, 0, 512, EIO, 0);
  failures.flushFailed(ENOSPC);
  const { readErrors, writeErrors, flushErrors, discardErrors, ioErrno, flushErrno } = STAT;
  const counted = [readErrors, writeErrors, flushErrors, discardErrors, ioErrno, flushErrno];
  expect(counted.map((index) => counters[index])).toEqual([1, 2, 1, 2, 28, 28]);
});

test("only a failed flush forbids anything, and everything but reads", () => {
  const kinds = [KIND_READ, KIND_WRITE, KIND_FLUSH, KIND_DISCARD, KIND_SECURE_DISCARD, KIND_BARRIER];
  for (const kind of kinds) failures.failed(kind, 0, 512, EIO, 0);
  expect(kinds.map((kind) => failures.forbids(kind))).toEqual(kinds.map(() => false));
  failures.flushFailed(EIO);
  expect(kinds.map((kind) => failures.forbids(kind))).toEqual(kinds.map((kind) => kind !== KIND_READ));
});
