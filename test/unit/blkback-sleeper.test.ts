// When a data plane may sleep, policy by policy; and through every short history the one thing that must hold: whoever
// sleeps without a bound will be woken by the next request.
import { afterEach, beforeEach, describe, expect, test } from "bun:test";
import { BackRing } from "../../src/blkback/data-plane/back-ring.ts";
import { Sleeper } from "../../src/blkback/data-plane/sleeper.ts";
import { STAT } from "../../src/blkback/stats/stats.ts";
import { PAGE_SIZE } from "../../src/core/types.ts";
import { allocateMemory, type Mapping } from "../../src/native/memory.ts";
import { ABI_X86_64 } from "../../src/protocol/blkif.ts";
import { RING_REQ_EVENT, RING_REQ_PROD } from "../../src/protocol/ring.ts";
import { inEveryWay } from "./blkback-fakes.ts";
import { FakeChannels, FAKE_PORT as PORT } from "./fake-channels.ts";

class Bench {
  readonly channels = new FakeChannels();
  readonly counters = new Float64Array(64);
  readonly sleeper: Sleeper;
  readonly #ring: BackRing;
  readonly #words: Uint32Array;
  nowMs = 1000;

  constructor(shared: Mapping) {
    shared.bytes.fill(0);
    this.#words = shared.words;
    this.#words[RING_REQ_EVENT] = 1;
    this.#ring = new BackRing(shared, ABI_X86_64);
    this.sleeper = new Sleeper([{ ring: this.#ring, port: PORT }], this.channels, this.counters);
  }

  /** The frontend's push of one request: it sends an event when it is asked to. */
  request(): void {
    const before = Atomics.load(this.#words, RING_REQ_PROD);
    Atomics.store(this.#words, RING_REQ_PROD, before + 1);
    if (Atomics.load(this.#words, RING_REQ_EVENT) === before + 1) this.channels.fire();
  }

  /** Takes what is on the ring and answers it, so that there is room. */
  fetch(): number {
    const count = this.#ring.fetch();
    this.#ring.push(count);
    return count;
  }

  mayWait(fetched: number, submitted = 0, active = 0, penaltyUs = 0): boolean {
    return this.sleeper.mayWait(fetched, submitted, active, penaltyUs, this.nowMs);
  }

  /** Takes one request, submits it and waits for its end; `during` happens meanwhile. Returns whether it could ring. */
  serve(completions = 1, during = (): void => {}): boolean {
    const before = this.channels.fired;
    const fetched = this.fetch();
    expect(this.mayWait(fetched, 1, 1)).toBe(true);
    const rings = this.sleeper.timeoutUs < 0;
    during();
    if (this.channels.fired > before) this.sleeper.takeEvents();
    this.sleeper.completed(1, completions, 1, this.nowMs);
    return rings;
  }

  /** Has the sleeper learn that operations do not end at once. */
  distrustInline(): this {
    for (let round = 0; round < 8; round++) {
      this.mayWait(0, 1, 1);
      this.sleeper.completed(1, 0, 0, this.nowMs);
    }
    return this;
  }

  close(): void {
    this.#ring.close();
  }
}

/** Operations in flight, submitted in this round, and completed in it. */
type Round = readonly [active: number, submitted: number, completed: number];
const IDLE: Round = [0, 0, 0];
const MUCH: Round = [5, 0, 0];
const WORK: readonly Round[] = [IDLE, [1, 0, 0], [1, 1, 0], [1, 1, 1], MUCH, [5, 0, 1]];

let shared: Mapping;
let bench: Bench;
beforeEach(() => {
  shared = allocateMemory(PAGE_SIZE);
  bench = new Bench(shared);
});
afterEach(() => {
  bench.close();
  shared.close();
});

test("every history: whoever may sleep without a bound is woken by the next request, and sees those before", () => {
  const ways = inEveryWay((choose) => {
    const it = new Bench(shared);
    if (choose(2) === 1) {
      it.distrustInline();
      for (let round = 0; round < 8; round++) it.serve();
    }
    for (const [index, rounds] of [WORK, WORK, [IDLE, MUCH]].entries()) {
      if (choose(2) === 1) it.request();
      if (choose(2) === 1) it.sleeper.takeEvents();
      const fetched = choose(2) === 1 ? it.fetch() : 0;
      const [active, submitted, completed] = rounds[choose(rounds.length)];
      const penaltyUs = index === 1 ? choose(2) * 700 : 0;
      const wait = it.mayWait(fetched, submitted, active, penaltyUs);
      if (wait && it.sleeper.timeoutUs < 0) {
        expect(it.fetch()).toBe(0);
        it.request();
        expect(it.channels.isDelivered).toBe(true);
      } else if (wait) expect([100, 700, 1000]).toContain(it.sleeper.timeoutUs);
      it.nowMs += 10;
      it.sleeper.completed(submitted, completed, wait ? 1 : 0, it.nowMs);
    }
    it.close();
  });
  expect(ways).toBe(2 * 8 * 6 * (8 * 6 * 2) * (8 * 2));
}, 240_000);

describe("events", () => {
  test("the port stays masked while there is work, and is unmasked for the sleep only", () => {
    bench.request();
    bench.sleeper.takeEvents();
    expect([bench.channels.masked, bench.counters[STAT.wakeups]]).toEqual([true, 1]);
    expect(bench.fetch()).toBe(1);
    bench.request();
    expect([bench.mayWait(1), bench.channels.masked]).toEqual([false, true]);
    expect(bench.fetch()).toBe(1);
    expect([bench.mayWait(1), bench.channels.masked]).toEqual([true, false]);
  });

  test("a storm of events that bring nothing is heard at most once a millisecond", () => {
    for (let event = 1; event <= 17; event++) {
      bench.channels.fire();
      bench.sleeper.takeEvents();
      expect([bench.mayWait(0), bench.sleeper.timeoutUs, bench.channels.masked]).toEqual(
        event === 17 ? [true, 1000, true] : [true, -1, false],
      );
    }
    expect(bench.counters[STAT.spuriousWakeups]).toBe(17);
  });

  test("an event that brings something begins the count of empty ones anew", () => {
    for (let event = 1; event <= 40; event++) {
      bench.channels.fire();
      bench.sleeper.takeEvents();
      expect([bench.mayWait(event % 16 === 0 ? 1 : 0), bench.sleeper.timeoutUs]).toEqual([true, -1]);
    }
  });

  test("a wake-up without an event is no empty event", () => {
    for (let round = 0; round < 40; round++) {
      bench.sleeper.takeEvents();
      expect([bench.mayWait(0), bench.sleeper.timeoutUs]).toEqual([true, -1]);
    }
    expect([bench.counters[STAT.wakeups], bench.counters[STAT.spuriousWakeups]]).toEqual([0, 0]);
  });
});

test("a guest that misbehaves waits, and its events do", () => {
  expect([bench.mayWait(1, 0, 0, 1000), bench.sleeper.timeoutUs]).toEqual([true, 1000]);
  expect(shared.words[RING_REQ_EVENT]).toBe(1);
  expect([bench.mayWait(0), bench.sleeper.timeoutUs]).toEqual([true, -1]);
});

describe("with much in flight", () => {
  test("completions are waited for a moment without asking for an event; once none came, one is asked for", () => {
    expect([bench.mayWait(0, 0, 4), bench.sleeper.timeoutUs]).toEqual([true, 100]);
    bench.sleeper.completed(0, 1, 1, bench.nowMs);
    expect([bench.mayWait(0, 0, 4), bench.sleeper.timeoutUs]).toEqual([true, 100]);
    bench.sleeper.completed(0, 0, 1, bench.nowMs);
    expect([bench.mayWait(0, 0, 4), bench.sleeper.timeoutUs]).toEqual([true, -1]);
    bench.sleeper.completed(0, 1, 1, bench.nowMs);
    expect([bench.mayWait(0, 0, 4), bench.sleeper.timeoutUs]).toEqual([true, 100]);
  });

  test("half of those beyond eight are waited for, so that not each of them wakes us", () => {
    for (const [active, wanted] of [
      [4, 1],
      [8, 1],
      [11, 1],
      [12, 2],
      [32, 12],
      [512, 252],
    ] as const) {
      expect([bench.mayWait(0, 0, active), bench.sleeper.timeoutUs, bench.sleeper.wanted]).toEqual([
        true,
        100,
        wanted,
      ]);
      bench.sleeper.completed(0, 1, 1, bench.nowMs);
    }
    bench.sleeper.completed(0, 0, bench.mayWait(0, 0, 32) ? 12 : 0, bench.nowMs);
    expect([bench.mayWait(0, 0, 32), bench.sleeper.timeoutUs, bench.sleeper.wanted]).toEqual([true, -1, 1]);
  });

  test("a request on the ring is seen before that wait", () => {
    bench.request();
    expect(bench.mayWait(0, 0, 4)).toBe(false);
  });

  test("little in flight waits for either, at once", () =>
    expect([bench.mayWait(0, 0, 3), bench.sleeper.timeoutUs]).toEqual([true, -1]));
});

describe("what was submitted", () => {
  test("is waited for in the same call once eight in turn did not complete at once", () => {
    for (let round = 0; round < 8; round++) {
      expect(bench.mayWait(1, 1, 1)).toBe(false);
      bench.sleeper.completed(1, 0, 0, bench.nowMs);
    }
    expect(bench.mayWait(1, 1, 1)).toBe(true);
  });

  test("one that does gives back the whole trust", () => {
    for (let round = 0; round < 30; round++) {
      expect(bench.mayWait(1, 1, 1)).toBe(false);
      bench.sleeper.completed(1, round % 8 === 7 ? 1 : 0, 0, bench.nowMs);
    }
  });

  test("without trust it is tried again after 256 waits", () => {
    for (let round = 0; round < 8; round++) {
      bench.mayWait(1, 1, 1);
      bench.sleeper.completed(1, 0, 0, bench.nowMs);
    }
    for (let round = 0; round < 256; round++) {
      expect(bench.mayWait(1, 1, 1)).toBe(true);
      bench.sleeper.completed(1, 1, 1, bench.nowMs);
    }
    expect(bench.mayWait(1, 2, 2)).toBe(false);
    // By now nobody sends anything meanwhile, so there is nothing to be gained by not waiting for a lone one.
    expect([bench.mayWait(1, 1, 1), bench.sleeper.isPatient]).toEqual([true, true]);
  });
});

describe("a guest that waits for its answers", () => {
  /** How many of the next requests were served with the bell asked to ring meanwhile. */
  const ringsOf = (count: number, serve: () => boolean): number =>
    Array.from({ length: count }, serve).filter((rings) => rings).length;

  test("is asked to ring only once its request has been answered, after eight that were alone", () => {
    bench.distrustInline();
    expect(ringsOf(100, () => bench.serve())).toBe(8);
    expect(bench.sleeper.timeoutUs).toBe(100);
    expect([bench.mayWait(0), bench.sleeper.timeoutUs]).toEqual([true, -1]);
    bench.request();
    expect(bench.channels.isDelivered).toBe(true);
  });

  test("sends no more events once its next requests are found by looks", () => {
    bench.distrustInline();
    for (let round = 0; round < 8; round++) bench.serve();
    const before = bench.channels.fired;
    for (let round = 0; round < 100; round++) {
      bench.request();
      expect([bench.mayWait(0), bench.serve()]).toEqual([false, false]);
    }
    // The bell was still armed for the first.
    expect(bench.channels.fired).toBe(before + 1);
  });

  test("is asked to ring at once as soon as it sent one more meanwhile", () => {
    bench.distrustInline();
    for (let round = 0; round < 8; round++) bench.serve();
    expect(bench.serve(1, () => bench.request())).toBe(false);
    expect(ringsOf(20, () => bench.serve())).toBe(8);
    // Heard by its event, too.
    bench.close();
    shared.bytes.fill(0);
    bench = new Bench(shared).distrustInline();
    expect(ringsOf(100, () => bench.serve(1, () => bench.request()))).toBe(100);
  });

  test("lets us wait for nothing but the one operation just submitted", () => {
    bench.distrustInline();
    for (let round = 0; round < 8; round++) {
      bench.serve();
      expect(bench.sleeper.isPatient).toBe(false);
    }
    bench.serve();
    expect(bench.sleeper.isPatient).toBe(true);
    for (const [submitted, active] of [
      [0, 1],
      [1, 2],
      [2, 2],
      [1, 5],
      [0, 0],
    ] as const) {
      bench.mayWait(0, submitted, active);
      expect(bench.sleeper.isPatient).toBe(false);
      bench.sleeper.completed(submitted, 1, 1, bench.nowMs);
    }
    bench.serve(1, () => bench.request());
    bench.serve();
    expect(bench.sleeper.isPatient).toBe(false);
  });

  test("is asked to ring for a while where operations take long", () => {
    bench.distrustInline();
    for (let round = 0; round < 8; round++) bench.serve();
    expect(bench.serve(0)).toBe(false);
    expect([bench.mayWait(0, 0, 1), bench.sleeper.timeoutUs]).toEqual([true, -1]);
    bench.sleeper.completed(0, 1, 1, bench.nowMs);
    expect(ringsOf(100, () => bench.serve())).toBe(39);
  });
});
