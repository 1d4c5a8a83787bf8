// What the scheduler's passes cost a request while 32 to 2048 of them (4 queues of 512) wait or are under way:
// processor time, without data or I/O. A pass looks at each of them, and must not compare each with all others, because
// then the cost would grow with the square of their number. JSON on stdout.
import { OperationTable } from "../src/blkback/data-plane/operations.ts";
import { RateLimiter } from "../src/blkback/limits/rate-limiter.ts";
import { KIND_FLUSH, KIND_READ, KIND_WRITE, RequestTable } from "../src/blkback/data-plane/requests.ts";
import { Scheduler } from "../src/blkback/data-plane/scheduler.ts";
import { SharedDisk } from "../src/blkback/data-plane/shared-disk.ts";
import { FakePath } from "../test/unit/blkback-fakes.ts";

const QUEUES = 4;
const SIZES = [32, 128, 512, 2048];
const REQUESTS = Number(process.env["REQUESTS"] ?? 8192);
const PAGE = 4096;
const FAR = 1 << 30;

interface Asked {
  readonly kind: number;
  readonly start: number;
  readonly length: number;
}

/** Request number `index` of a load, with `size` on the rings at a time. */
const LOADS: Readonly<Record<string, (index: number, size: number) => Asked>> = {
  "writes to one page": () => ({ kind: KIND_WRITE, start: 0, length: PAGE }),
  "writes that each overlap the next": (index) => ({
    kind: KIND_WRITE,
    start: index * PAGE,
    length: 2 * PAGE,
  }),
  "apart from each other": (index) => ({
    kind: KIND_WRITE,
    start: ((index * 7919) % 65_536) * 2 * PAGE,
    length: PAGE,
  }),
  "half apart, half to one page": (index, size) =>
    index % size < size / 2
      ? { kind: KIND_WRITE, start: FAR + index * 2 * PAGE, length: PAGE }
      : { kind: KIND_WRITE, start: 0, length: PAGE },
  "reads of what is written": (index) => ({
    kind: index % 2 === 0 ? KIND_WRITE : KIND_READ,
    start: 0,
    length: PAGE,
  }),
  "one that covers all others": (index, size) =>
    index % size === size - 1
      ? { kind: KIND_WRITE, start: 0, length: FAR }
      : { kind: KIND_WRITE, start: (index % size) * 2 * PAGE, length: PAGE },
  "a flush after each write": (index) =>
    index % 2 === 0
      ? { kind: KIND_WRITE, start: index * PAGE, length: PAGE }
      : { kind: KIND_FLUSH, start: 0, length: 0 },
};

/** Microseconds of processor time for a request: each that ends makes room for another. */
function cost(load: (index: number, size: number) => Asked, size: number): number {
  const requests = new RequestTable(size / QUEUES, 0, QUEUES);
  const operations = new OperationTable(size);
  const path = new FakePath(size, false);
  const limiter = new RateLimiter({ nowMs: 0, originMs: 0, setTimer: () => {} });
  const scheduler = new Scheduler(size, requests, operations, path, limiter, SharedDisk.alone());
  let asked = 0;
  let lane = 0;
  const ask = (): void => {
    const row = requests.take(0, lane);
    lane = (lane + 1) % QUEUES;
    const { kind, start, length } = load(asked++, size);
    requests.kind[row] = kind;
    requests.start[row] = start;
    requests.length[row] = length;
    requests.segmentCount[row] = kind === KIND_FLUSH ? 0 : 1;
    scheduler.add(row);
  };
  let ended = 0;
  let lanes: number[] = [];
  const end = (op: number): void => {
    const row = operations.first[op];
    path.release(op);
    scheduler.end(op);
    lanes.push(requests.laneOf(row));
    requests.release(row);
    ended++;
  };
  const run = (count: number): number => {
    const before = process.cpuUsage();
    for (const until = ended + count; ended < until;) {
      // As many as there is room for, then one ends: that is when most passes are made.
      for (const free of lanes) {
        lane = free;
        ask();
      }
      lanes = [];
      scheduler.pass();
      end(operations.active[0]);
    }
    const { user, system } = process.cpuUsage(before);
    return (user + system) / count;
  };
  for (let i = 0; i < size; i++) ask();
  run(size);
  return run(REQUESTS);
}

const loads = Object.entries(LOADS).map(([load, of]) => {
  const microseconds = Object.fromEntries(SIZES.map((size) => [size, Number(cost(of, size).toFixed(2))]));
  console.error(`  ${load}: ${JSON.stringify(microseconds)}`);
  return { load, microseconds };
});
console.log(JSON.stringify({ requests: REQUESTS, loads }));
