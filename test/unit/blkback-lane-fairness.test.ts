// A disk's limit is shared by its queues in turn: one that always has many requests waiting does not take the share of
// one that asks for one thing at a time. Time moves only when the test waits.
import { expect, test } from "bun:test";
import { OperationTable } from "../../src/blkback/data-plane/operations.ts";
import { RateLimiter } from "../../src/blkback/limits/rate-limiter.ts";
import { parseRate, UNLIMITED_DISK } from "../../src/blkback/limits/rates.ts";
import { KIND_READ, RequestTable } from "../../src/blkback/data-plane/requests.ts";
import { Scheduler } from "../../src/blkback/data-plane/scheduler.ts";
import { SharedDisk } from "../../src/blkback/data-plane/shared-disk.ts";
import { FakePath, TestClock } from "./blkback-fakes.ts";

const SLOTS = 256;
const PAGE = 4096;

test.each([[[256, 1]], [[1, 256]], [[256, 256]], [[256, 1, 32, 1]]])(
  "queues that keep %j requests waiting get the same share",
  (depths) => {
    const clock = new TestClock();
    const requests = new RequestTable(SLOTS, 0, depths.length);
    const size = SLOTS * depths.length;
    const operations = new OperationTable(size);
    const path = new FakePath(size, false);
    const limiter = new RateLimiter(clock, { ...UNLIMITED_DISK, iops: parseRate("iops", "", "100,burst=1") });
    const scheduler = new Scheduler(size, requests, operations, path, limiter, SharedDisk.alone());
    const passed = depths.map(() => 0);
    let asked = 0;
    const ask = (lane: number): void => {
      const row = requests.take(clock.nowMs, lane);
      requests.kind[row] = KIND_READ;
      requests.start[row] = asked++ * 2 * PAGE;
      requests.length[row] = PAGE;
      requests.segmentCount[row] = 1;
      scheduler.add(row);
    };
    depths.forEach((depth, lane) => {
      for (let i = 0; i < depth; i++) ask(lane);
    });
    for (let turn = 0; turn < 400 * depths.length; turn++) {
      scheduler.pass();
      const ops = [...scheduler.started.subarray(0, scheduler.startedCount)];
      for (const op of ops) {
        const row = operations.first[op];
        const lane = requests.laneOf(row);
        path.release(op);
        scheduler.end(op);
        requests.release(row);
        passed[lane]++;
        ask(lane);
      }
      if (!scheduler.mustPass) clock.wait();
    }
    const fair = passed.reduce((sum, it) => sum + it, 0) / depths.length;
    for (const count of passed) {
      expect(count).toBeGreaterThan(fair * 0.9);
      expect(count).toBeLessThan(fair * 1.1);
    }
    requests.close();
  },
);
