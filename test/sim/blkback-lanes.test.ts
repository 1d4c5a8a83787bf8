// Several rings of one disk, served side by side: every answer comes back on the ring that asked, and order,
// barriers, flushes and failures are the disk's and not the ring's. With a target whose operations are seen as they
// start.
import { afterEach, describe, expect, test } from "bun:test";
import { STAT } from "../../src/blkback/stats/stats.ts";
import { IO_FLUSH, IO_READ, IO_READV, IO_WRITE, IO_WRITEV } from "../../src/native/reactor.ts";
import { ABI_X86_32, ABI_X86_64 } from "../../src/protocol/blkif.ts";
import { RingHarness, type HarnessOptions } from "./blk-harness.ts";
import type { Response } from "./blk-raw-ring.ts";

const READ = 0;
const WRITE = 1;
const BARRIER = 2;
const FLUSH = 3;
const OKAY = 0;
const ERROR = -1;

let harness: RingHarness | undefined;
/** What the target was asked to do, in order. */
let started: string[] = [];

const NAMES: Readonly<Record<number, string>> = {
  [IO_READ]: "read",
  [IO_READV]: "read",
  [IO_WRITE]: "write",
  [IO_WRITEV]: "write",
  [IO_FLUSH]: "flush",
};

async function start(options: HarnessOptions = {}): Promise<RingHarness> {
  started = [];
  harness = await RingHarness.start({
    queues: 4,
    onStart: (op) => started.push(NAMES[op] ?? "other"),
    ...options,
  });
  return harness;
}

afterEach(async () => {
  await harness?.close();
  harness = undefined;
});

/** Publishes every ring, lets the backend serve, and returns the new responses by ring. */
function serve(h: RingHarness): Response[][] {
  for (const ring of h.rings) ring.push();
  h.plane.step();
  return h.rings.map((ring) => ring.takeResponses());
}

const sum = (numbers: readonly number[]): number => numbers.reduce((total, it) => total + it, 0);

describe.each([
  ["copy", { grantMode: "copy" }],
  ["map", { grantMode: "map" }],
  ["persistent", { grantMode: "persistent" }],
  ["x86_32, 4 pages each", { abi: ABI_X86_32, ringPages: 4 }],
  ["pread/pwrite", { abi: ABI_X86_64, engine: "sync" }],
] as [string, HarnessOptions][])("%s", (_name, options) => {
  test("each ring gets its own answers, though ids are the same on all of them", async () => {
    const h = await start(options);
    h.rings.forEach((ring, queue) => {
      h.page(queue).fill(queue + 1);
      ring.put({ op: WRITE, id: 7n, sector: queue * 8, segments: h.pages(queue, 1) });
    });
    expect(serve(h)).toEqual(h.rings.map(() => [{ id: 7n, op: WRITE, status: OKAY }]));
    h.rings.forEach((ring, queue) => {
      for (let id = 0; id <= queue; id++)
        ring.put({ op: READ, id: BigInt(id), sector: queue * 8, segments: h.pages(8 + queue, 1) });
    });
    expect(serve(h).map((it) => it.length)).toEqual([1, 2, 3, 4]);
    for (let queue = 0; queue < 4; queue++)
      expect(h.page(8 + queue).every((byte) => byte === queue + 1)).toBe(true);
    expect(h.laneCounters.map((it) => it[STAT.requests])).toEqual([2, 3, 4, 5]);
    expect(h.laneCounters.map((it) => it[STAT.laneCount])).toEqual([4, 0, 0, 0]);
  });

  test("all rings full at once, more than once around", async () => {
    const h = await start(options);
    for (let round = 0; round < 3; round++) {
      for (const ring of h.rings)
        for (let id = 0; id < ring.slots; id++)
          ring.put({ op: id % 2, id: BigInt(id), sector: (id % 64) * 8, segments: h.pages(id % 32, 1) });
      for (const answers of serve(h)) {
        expect(new Set(answers.map(({ id }) => id)).size).toBe(h.slots);
        expect(answers.every(({ status }) => status === OKAY)).toBe(true);
      }
    }
  });

  test("a refused request on one ring costs the others nothing", async () => {
    const h = await start(options);
    h.rings[1].put({ op: READ, id: 1n, sector: 8, segments: [{ gref: 9999 }] });
    h.rings[1].put({ op: 77, id: 2n });
    h.rings[2].put({ op: READ, id: 3n, sector: 16, segments: h.pages(0, 1) });
    const [none, refused, served] = serve(h);
    expect(none).toEqual([]);
    expect(refused.map(({ id, status }) => [id, status]).toSorted()).toEqual([
      [1n, ERROR],
      [2n, -2],
    ]);
    expect(served).toEqual([{ id: 3n, op: READ, status: OKAY }]);
    expect(h.laneCounters.map((it) => it[STAT.errors])).toEqual([0, 2, 0, 0]);
  });
});

describe("the disk's order", () => {
  test("a barrier waits for what is in flight on every ring, and nothing that came after passes it", async () => {
    const h = await start({ filters: ["delay:ms=5,op=write"] });
    h.rings[0].put({ op: WRITE, id: 1n, sector: 0, segments: h.pages(0, 1) });
    h.rings[1].put({ op: BARRIER, id: 2n, sector: 64, segments: h.pages(1, 1) });
    h.rings[2].put({ op: READ, id: 3n, sector: 128, segments: h.pages(2, 1) });
    h.rings[3].put({ op: WRITE, id: 4n, sector: 192, segments: h.pages(3, 1) });
    expect(serve(h).map((it) => it.map(({ status }) => status))).toEqual([[OKAY], [OKAY], [OKAY], [OKAY]]);
    expect(started).toEqual(["write", "flush", "write", "flush", "read", "write"]);
  });

  test("barriers on all rings at once take turns", async () => {
    const h = await start();
    for (const ring of h.rings)
      for (let id = 0; id < 8; id++)
        ring.put({ op: BARRIER, id: BigInt(id), sector: id * 8, segments: h.pages(id, 1) });
    expect(serve(h).map((it) => it.map(({ id }) => Number(id)))).toEqual(
      h.rings.map(() => [0, 1, 2, 3, 4, 5, 6, 7]),
    );
    expect(started).toHaveLength(4 * 8 * 3);
  });

  test("a flush on one ring comes after the writes that others have answered, and those in flight", async () => {
    const h = await start({ filters: ["delay:ms=5,op=write"] });
    h.rings[0].put({ op: WRITE, id: 1n, sector: 0, segments: h.pages(0, 1) });
    serve(h);
    h.rings[1].put({ op: WRITE, id: 2n, sector: 64, segments: h.pages(1, 1) });
    h.rings[2].put({ op: FLUSH, id: 3n });
    h.rings[3].put({ op: FLUSH, id: 4n });
    expect(sum(serve(h).map((it) => it.length))).toBe(3);
    expect(started).toEqual(["write", "write", "flush", "flush"]);
  });

  test("after a flush that failed on one ring, nothing that builds on lost data is OKAY on any", async () => {
    const h = await start({ filters: ["error:op=flush,times=1"] });
    h.rings[2].put({ op: FLUSH, id: 1n });
    expect(serve(h)[2]).toEqual([{ id: 1n, op: FLUSH, status: ERROR }]);
    h.rings[0].put({ op: WRITE, id: 2n, sector: 0, segments: h.pages(0, 1) });
    h.rings[1].put({ op: FLUSH, id: 3n });
    h.rings[3].put({ op: READ, id: 4n, sector: 0, segments: h.pages(1, 1) });
    expect(serve(h).map((it) => it.map(({ status }) => status))).toEqual([[ERROR], [ERROR], [], [OKAY]]);
    expect(h.laneCounters.map((it) => it[STAT.flushErrors])).toEqual([1, 0, 0, 0]);
  });

  test("adjacent requests are merged, whichever ring they are on, and each part fails alone", async () => {
    const h = await start();
    h.rings.forEach((ring, queue) => {
      h.page(queue).fill(queue + 1);
      const gref = queue === 2 ? 9999 : h.ref(queue);
      ring.put({ op: WRITE, id: 1n, sector: queue * 8, segments: [{ gref }] });
    });
    expect(serve(h).map((it) => it.map(({ status }) => status))).toEqual([[OKAY], [OKAY], [ERROR], [OKAY]]);
    expect(h.counters[STAT.merged]).toBe(3);
    for (const queue of [0, 1, 3])
      expect(h.readImage(queue * 4096, 4096).every((byte) => byte === queue + 1)).toBe(true);
  });
});

describe("a ring that lies", () => {
  test.each([0, 2])("stops the disk: ring %i, while others wait for their data", async (liar) => {
    const h = await start({ filters: ["delay:ms=5,op=read"] });
    h.rings.forEach((ring, queue) => {
      if (queue !== liar) ring.put({ op: READ, id: 1n, sector: queue * 80, segments: h.pages(queue, 1) });
      ring.push();
    });
    h.rings[liar].setIndex(0, 5000);
    let looks = 0;
    h.plane.run(() => looks++ > 1000);
    expect(h.plane.failure?.message).toContain(`queue ${liar}: the ring's indices cannot be true`);
    expect(h.rings.map((ring) => ring.takeResponses().length)).toEqual(
      h.rings.map((_, queue) => (queue === liar ? 0 : 1)),
    );
    expect(looks).toBeLessThan(1000);
  });
});
