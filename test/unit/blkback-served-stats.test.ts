// A device's statistics from its server's side, while others meddle with the file.
import { afterEach, beforeEach, expect, test } from "bun:test";
import { rmSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { UNLIMITED_DISK } from "../../src/blkback/limits/rates.ts";
import { ServedStats } from "../../src/blkback/stats/served-stats.ts";
import { readStats } from "../../src/blkback/stats/stats.ts";
import { XenbusState } from "../../src/protocol/xenbus.ts";
import { diskAddress } from "../sim/disk-world.ts";
import { removeDirectory, temporaryDirectory } from "../support/temporary.ts";

const DISK = diskAddress(1);

let dir: string;
let runDir: string;
let stats: ServedStats;

beforeEach(() => {
  dir = temporaryDirectory();
  runDir = join(dir, "blkback");
  stats = new ServedStats(runDir, DISK);
});
afterEach(() => {
  stats.remove();
  removeDirectory(dir);
});

const state = (): string => readStats(runDir, 1, DISK.devid).state;

test("a file that was removed is made anew for the next connection, with what is known", () => {
  stats.open();
  stats.state = XenbusState.Connected;
  rmSync(stats.path);
  stats.state = XenbusState.Closed;
  stats.connecting(2);
  expect(state()).toBe("Closed");
});

test("while it cannot be made again the device can go on, and later it can be made", () => {
  stats.open();
  rmSync(runDir, { recursive: true });
  writeFileSync(runDir, "in the way");
  expect(() => stats.connecting(1)).toThrow("for statistics");
  stats.state = XenbusState.Connected;
  stats.rates = UNLIMITED_DISK;
  rmSync(runDir);
  stats.connecting(1);
  expect(state()).toBe("Connected");
});
