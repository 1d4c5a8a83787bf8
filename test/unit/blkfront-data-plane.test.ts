// The frontend's data plane against a backend in plain memory: what it puts on the ring byte by byte, what
// it makes of answers in any order, and of answers that are lies.
import { afterEach, describe, expect, test } from "bun:test";
import { ABI_X86_32, ABI_X86_64, type BlkifAbi } from "../../src/protocol/blkif.ts";
import { FrontDataPlane } from "../../src/blkfront/data-plane.ts";
import type { EvtchnPort } from "../../src/core/types.ts";
import { FakeBackend, type FakeOptions, type SeenRequest } from "./blkfront-fake-backend.ts";
import { chosenSeed } from "../support/random.ts";

const READ = 0;
const WRITE = 1;
const BARRIER = 2;
const FLUSH = 3;
const DISCARD = 5;
const INDIRECT = 6;

let fake: FakeBackend;

function start(options: FakeOptions = {}): FakeBackend {
  fake = new FakeBackend(options);
  return fake;
}

afterEach(() => fake.close());

function pushed(): SeenRequest[] {
  fake.plane.push();
  return fake.take();
}

describe.each([
  ["x86_64", ABI_X86_64],
  ["x86_32", ABI_X86_32],
] as [string, BlkifAbi][])("requests in %s layout", (_name, abi) => {
  test("a read of one page and a bit", () => {
    const { plane, pool } = start({ abi });
    const page = pool.allocate(2);
    expect(plane.transfer(READ, 7, 0x1_2345_6789, page, 4096 + 512)).toBe(true);
    const [request] = pushed();
    expect(request).toMatchObject({ op: READ, handle: 51728, sector: 0x1_2345_6789n });
    expect(request?.segments).toEqual([
      { gref: pool.refs[page], first: 0, last: 7 },
      { gref: pool.refs[page + 1], first: 0, last: 0 },
    ]);
    fake.answer(request.id, READ);
    expect(plane.reap()).toBe(1);
    expect(fake.done).toEqual([{ tag: 7, status: 0 }]);
    expect(plane.inFlight).toBe(0);
  });

  test("flush, barrier and discard", () => {
    const { plane } = start({ abi });
    expect(plane.flush(1)).toBe(true);
    expect(plane.barrier(2)).toBe(true);
    expect(plane.discard(3, 2 ** 33 + 5, 2 ** 34 + 1)).toBe(true);
    expect(plane.discard(4, 8, 16, true)).toBe(true);
    const [flush, barrier, discard, secure] = pushed();
    expect(flush).toMatchObject({ op: FLUSH, segments: [] });
    expect(barrier).toMatchObject({ op: BARRIER, segments: [] });
    expect(discard).toMatchObject({ op: DISCARD, flag: 0, sector: 2n ** 33n + 5n, sectors: 2n ** 34n + 1n });
    expect(secure).toMatchObject({ op: DISCARD, flag: 1, sector: 8n, sectors: 16n });
  });

  test("an indirect write, and what is left of it as a direct one", () => {
    const { plane, pool } = start({ abi, maxIndirectSegments: 32, poolPages: 64 });
    const page = pool.allocate(36);
    expect(plane.transfer(WRITE, 0, 100, page, 35 * 4096 + 1024)).toBe(true);
    expect(pool.freePages).toBe(64 - 36 - 1);
    const [indirect, direct] = pushed();
    expect(indirect).toMatchObject({ op: INDIRECT, echo: WRITE, sector: 100n, handle: 51728 });
    expect(indirect?.segments).toEqual(
      Array.from({ length: 32 }, (_, index) => ({
        gref: pool.refs[page + index],
        first: 0,
        last: 7,
      })),
    );
    expect(direct).toMatchObject({ op: WRITE, sector: 100n + 32n * 8n });
    expect(direct?.segments.map((it) => it.last)).toEqual([7, 7, 7, 1]);
    fake.answer(direct.id, WRITE);
    fake.plane.reap();
    expect(fake.done).toEqual([]);
    fake.answer(indirect.id, WRITE, -1);
    fake.plane.reap();
    expect(fake.done).toEqual([{ tag: 0, status: -1 }]);
    expect(pool.freePages).toBe(64 - 36);
  });

  test("4096 segments need eight pages of segments", () => {
    const { plane, pool } = start({ abi, maxIndirectSegments: 4096, poolPages: 16, ringPages: 16 });
    expect(plane.writeZeroes(5, 0, 4096 * 4096)).toBe(true);
    const [request] = pushed();
    expect(request?.segments.length).toBe(4096);
    expect(new Set(request?.segments.map((it) => it.gref))).toEqual(new Set([pool.refs[pool.zeroPage]]));
    expect(fake.page(pool.refs[pool.zeroPage]).access).toBe("rw");
    expect(fake.page(pool.refs[pool.zeroPage]).bytes.every((byte) => byte === 0)).toBe(true);
    expect(pool.freePages).toBe(8);
    fake.answer(request.id, WRITE);
    plane.reap();
    expect(pool.freePages).toBe(16);
  });

  test("a barrier with data is never indirect", () => {
    const { plane, pool } = start({ abi, maxIndirectSegments: 256 });
    const page = pool.allocate(20);
    expect(plane.transfer(BARRIER, 0, 0, page, 20 * 4096)).toBe(true);
    expect(pushed().map((it) => [it.op, it.segments.length])).toEqual([
      [BARRIER, 11],
      [BARRIER, 9],
    ]);
  });
});

describe("room", () => {
  test("a full ring refuses, and takes again after answers", () => {
    const { plane, slots } = start();
    for (let tag = 0; tag < slots; tag++) expect(plane.flush(tag)).toBe(true);
    expect(plane.flush(99)).toBe(false);
    expect(plane.discard(99, 0, 8)).toBe(false);
    expect(plane.transfer(READ, 99, 0, 0, 512)).toBe(false);
    const requests = pushed();
    expect(requests.length).toBe(slots);
    expect(new Set(requests.map((it) => it.id)).size).toBe(slots);
    fake.answer(requests[3].id, FLUSH);
    expect(plane.reap()).toBe(1);
    expect(fake.done).toEqual([{ tag: 3, status: 0 }]);
    expect(plane.flush(99)).toBe(true);
    expect(plane.flush(100)).toBe(false);
  });

  test("a transfer in parts is started whole or not at all", () => {
    const { plane, pool, slots } = start({ poolPages: 64 });
    const page = pool.allocate(34);
    for (let tag = 0; tag < slots - 3; tag++) plane.flush(tag);
    expect(plane.transfer(WRITE, 900, 0, page, 34 * 4096)).toBe(false);
    expect(plane.transfer(WRITE, 900, 0, page, 33 * 4096)).toBe(true);
    expect(pushed().length).toBe(slots);
  });

  test("no page for the segments, no indirect request", () => {
    const { plane, pool } = start({ poolPages: 20, maxIndirectSegments: 32 });
    const page = pool.allocate(20);
    expect(plane.transfer(WRITE, 0, 0, page, 20 * 4096)).toBe(false);
    expect(plane.transfer(WRITE, 0, 0, page, 11 * 4096)).toBe(true);
    expect(plane.transfersThatFit(20 * 4096)).toBe(0);
    expect(plane.transfersThatFit(19 * 4096)).toBe(1);
    expect(plane.transfersThatFit(4096)).toBe(20);
  });

  test("one push for a batch, one notification at most", () => {
    const { plane } = start();
    for (let tag = 0; tag < 10; tag++) plane.flush(tag);
    expect(fake.take()).toEqual([]);
    expect(pushed().length).toBe(10);
    expect(fake.notified).toBe(1);
    plane.flush(10);
    plane.push();
    // The backend did not ask again.
    expect(fake.notified).toBe(1);
    plane.push();
    expect(fake.take().length).toBe(1);
  });
});

describe("a backend that lies", () => {
  function twoInFlight(): [SeenRequest, SeenRequest] {
    const { plane } = start();
    plane.flush(0);
    plane.barrier(1);
    return pushed() as [SeenRequest, SeenRequest];
  }

  function expectStopped(words: RegExp): void {
    expect(fake.plane.reap()).toBe(0);
    expect(fake.plane.failure).toMatch(words);
    expect(fake.done).toEqual([]);
    expect(fake.plane.reap()).toBe(0);
  }

  test.each([
    ["an id of the ring that is not in flight", 31n],
    ["an id beyond the ring", 32n],
    ["an id beyond 16 bits", 0x1_0000n],
    ["an id that differs in its upper half only", 0x1_0000_0000n],
    ["the largest id", 2n ** 64n - 1n],
  ])("%s", (_name, wrong) => {
    const [first, second] = twoInFlight();
    const id = wrong === 0x1_0000_0000n ? wrong | first.id : wrong;
    expect(id).not.toBe(first.id);
    expect(id).not.toBe(second.id);
    fake.answer(id, FLUSH);
    expectStopped(/not in flight/);
  });

  test("another operation than the request's", () => {
    const [first] = twoInFlight();
    fake.answer(first.id, BARRIER);
    expectStopped(/operation 2, where 3/);
  });

  test("the same answer twice", () => {
    const [first] = twoInFlight();
    fake.answer(first.id, FLUSH);
    fake.answer(first.id, FLUSH);
    expectStopped(/not in flight/);
  });

  test("more answers than requests", () => {
    twoInFlight();
    fake.publish(3);
    expectStopped(/rsp_prod is 3/);
  });

  test("answers before the last ones", () => {
    twoInFlight();
    fake.publish(0xffff_ffff);
    expectStopped(/rsp_prod is 4294967295/);
  });

  test("an answer to what was staged and not pushed", () => {
    const { plane } = start();
    plane.flush(0);
    fake.publish(1);
    expectStopped(/rsp_prod is 1/);
  });

  test("a status that is none is an error", () => {
    const [first, second] = twoInFlight();
    fake.answer(first.id, FLUSH, 7);
    fake.answer(second.id, BARRIER, -2);
    fake.plane.reap();
    expect(fake.done).toEqual([
      { tag: 0, status: -1 },
      { tag: 1, status: -2 },
    ]);
  });
});

describe("a long run of everything", () => {
  const seed = chosenSeed();

  test.each([
    ["one page", { ringPages: 1, poolPages: 40, maxIndirectSegments: 0 }],
    ["two pages, indirect", { ringPages: 2, poolPages: 60, maxIndirectSegments: 32 }],
    ["x86_32", { abi: ABI_X86_32, ringPages: 1, poolPages: 40, maxIndirectSegments: 16 }],
  ] as [string, FakeOptions][])(`%s (SEED=${seed})`, (_name, options) => {
    const { plane, pool } = start(options);
    let random = seed | 1;
    const below = (limit: number): number => {
      random ^= random << 13;
      random ^= random >>> 17;
      random ^= random << 5;
      return (random >>> 0) % limit;
    };
    // By tag: what its completion has to say, and the pages it holds.
    const running = new Map<number, { parts: number; worst: number; page: number; pages: number }>();
    const freeTags = Array.from({ length: 64 }, (_, tag) => tag);
    const owner = new Map<bigint, number>();
    let started = 0;
    let completed = 0;
    const startOne = (): void => {
      const tag = freeTags.at(-1);
      if (tag === undefined || started >= 20_000) return;
      const pages = 1 + below(30);
      const page = pool.allocate(pages);
      if (page < 0) return;
      if (!plane.transfer(below(2) as 0 | 1, tag, started * 8, page, pages * 4096 - below(8) * 512)) {
        pool.release(page, pages);
        return;
      }
      started++;
      freeTags.pop();
      running.set(tag, { parts: 0, worst: 0, page, pages });
      pool.words[page * 1024] = tag;
    };
    plane.onDone = (tag, status) => {
      const done = running.get(tag);
      expect(done).toBeDefined();
      expect({ tag, status, parts: done!.parts }).toEqual({ tag, status: done!.worst, parts: 0 });
      pool.release(done!.page, done!.pages);
      running.delete(tag);
      freeTags.push(tag);
      completed++;
      // New work while answers are still being looked at: ids must not be mixed up.
      startOne();
    };
    const unanswered: SeenRequest[] = [];
    while (started < 20_000 || running.size > 0) {
      for (let attempts = below(5); attempts >= 0; attempts--) startOne();
      plane.push();
      for (const request of fake.take()) {
        expect(owner.has(request.id)).toBe(false);
        // Data pages carry their tag in the first page; later parts are told by being in one run.
        const first = request.segments[0].gref;
        const tag = [...running.entries()].find(([, it]) => {
          const index = pool.refs.indexOf(first);
          return index >= it.page && index < it.page + it.pages;
        })![0];
        owner.set(request.id, tag);
        running.get(tag)!.parts++;
        unanswered.push(request);
      }
      for (let count = below(unanswered.length + 1); count > 0; count--) {
        const [request] = unanswered.splice(below(unanswered.length), 1) as [SeenRequest];
        const status = below(20) === 0 ? -1 : 0;
        const tag = owner.get(request.id)!;
        owner.delete(request.id);
        const it = running.get(tag)!;
        it.parts--;
        it.worst = Math.min(it.worst, status);
        fake.answer(request.id, request.echo, status);
      }
      plane.reap();
    }
    expect(completed).toBe(started);
    expect(plane.inFlight).toBe(0);
    expect(pool.freePages).toBe(pool.pageCount);
    expect(plane.failure).toBeUndefined();
  });
});

describe("the pool", () => {
  test("takes half, and half again, where pages are few", () => {
    const { pool } = start({ poolPages: 5000 });
    expect(pool.pageCount).toBe(1250);
  });
});

describe("two rings", () => {
  let other: FakeBackend;
  let plane: FrontDataPlane;
  const done: [tag: number, status: number][] = [];

  function startTwo(): void {
    const { ring, pool, channels } = start();
    other = new FakeBackend({});
    const rings = [ring, other.ring].map((it, index) => ({ ring: it, port: (index + 1) as EvtchnPort }));
    plane = new FrontDataPlane({ rings, pool, channels, handle: 51728, maxIndirectSegments: 0, tags: 64 });
    plane.onDone = (tag, status) => void done.push([tag, status]);
  }

  afterEach(() => {
    other.close();
    done.length = 0;
  });

  test("batches take turns, and what a full ring has no room for goes on the other", () => {
    startTwo();
    const batch = (from: number, count: number): [first: number, second: number] => {
      for (let tag = from; tag < from + count; tag++) expect(plane.flush(tag)).toBe(true);
      plane.push();
      return [fake.take().length, other.take().length];
    };
    expect([batch(0, 3), batch(3, 4), batch(7, 30), batch(37, 27)]).toEqual([
      [3, 0],
      [0, 4],
      [29, 1],
      [0, 27],
    ]);
    expect([plane.flush(64), plane.inFlight, plane.transfersThatFit(4096)]).toEqual([false, 64, 64]);
  });

  test("each answer counts for its own request, though ids are the same on both rings", () => {
    startTwo();
    plane.flush(0);
    plane.push();
    plane.flush(1);
    plane.push();
    const [{ id }] = fake.take();
    expect(other.take()[0]?.id).toBe(id);
    other.answer(id, FLUSH, -1);
    expect(plane.reap()).toBe(1);
    fake.answer(id, FLUSH);
    expect(plane.reap()).toBe(1);
    expect(done).toEqual([
      [1, -1],
      [0, 0],
    ]);
  });

  test("one that lies is named, and stops the disk", () => {
    startTwo();
    plane.flush(0);
    plane.push();
    other.publish(77);
    plane.reap();
    expect(plane.failure).toStartWith("queue 1: the backend broke the ring: rsp_prod is 77");
  });
});
