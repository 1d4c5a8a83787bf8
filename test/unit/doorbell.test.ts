// The doorbell of a ring: through every short history, whoever was allowed to sleep is woken by the next news, and the
// port is unmasked for a sleep only.
import { describe, expect, test } from "bun:test";
import type { EvtchnPort } from "../../src/core/types.ts";
import { Doorbell, type Belled } from "../../src/platform/doorbell.ts";
import { inEveryWay } from "./blkback-fakes.ts";
import { FAKE_PORT, FakeChannels } from "./fake-channels.ts";

/** An end that sees how much is on the ring, and sends the event that was asked for. */
class FakeRing implements Belled {
  readonly looks: number[] = [];
  news = 0;
  #taken = 0;
  #isArmed = false;
  readonly #channels: FakeChannels;

  constructor(channels: FakeChannels) {
    this.#channels = channels;
  }

  /** The other end puts something on the ring. */
  put(): void {
    this.news++;
    if (this.#isArmed) this.#channels.fire();
    this.#isArmed = false;
  }

  takeAll(): void {
    this.#taken = this.news;
  }

  hasNews(us: number): boolean {
    this.looks.push(us);
    return this.news > this.#taken;
  }

  finalCheck(): boolean {
    this.#isArmed = true;
    return this.news > this.#taken;
  }
}

function makeBell(maxPollUs = 50): { bell: Doorbell; ring: FakeRing; channels: FakeChannels } {
  const channels = new FakeChannels();
  const ring = new FakeRing(channels);
  return { bell: new Doorbell([{ ring, port: FAKE_PORT }], channels, maxPollUs), ring, channels };
}

describe("a doorbell", () => {
  test("wakes every sleeper, whatever happened before", () => {
    let sleeps = 0;
    inEveryWay((choose) => {
      const { bell, ring, channels } = makeBell();
      for (let step = 0; step < 5; step++) {
        if (choose(2) === 1) ring.put();
        if (choose(2) === 1) bell.take();
        if (choose(2) === 1) ring.takeAll();
        if (!bell.arm()) continue;
        sleeps++;
        expect(channels.masked).toBe(false);
        ring.put();
        expect(channels.isDelivered).toBe(true);
        expect(bell.take()).toBe(true);
        expect(channels.masked).toBe(true);
      }
    });
    expect(sleeps).toBeGreaterThan(1000);
  });

  test("does not let sleep who has not seen everything", () => {
    const { bell, ring } = makeBell();
    ring.put();
    expect(bell.arm()).toBe(false);
    ring.takeAll();
    expect(bell.arm()).toBe(true);
  });

  test("takes nothing where nothing rang, and leaves the port unmasked", () => {
    const { bell, channels } = makeBell();
    expect(bell.take()).toBe(false);
    expect(channels.masked).toBe(false);
  });

  test("of several rings wakes for news on each, and looks at all of them in turn", () => {
    inEveryWay((choose) => {
      const channels = new FakeChannels();
      const rings = Array.from({ length: 3 }, () => new FakeRing(channels));
      const bell = new Doorbell(
        rings.map((ring, index) => ({ ring, port: (FAKE_PORT + index) as EvtchnPort })),
        channels,
        50,
      );
      for (let step = 0; step < 2; step++) {
        const early = choose(4);
        if (early < 3) rings[early].put();
        if (choose(2) === 1) bell.take();
        expect(bell.hasNews()).toBe(early < 3);
        if (early < 3) {
          expect(bell.arm()).toBe(false);
          rings[early].takeAll();
        }
        expect(bell.arm()).toBe(true);
        rings[choose(3)].put();
        expect(channels.isDelivered).toBe(true);
        expect(bell.take()).toBe(true);
        rings.forEach((ring) => ring.takeAll());
        bell.slept(0.001);
        rings.forEach((ring) => ring.looks.splice(0));
        bell.look(0);
        const looks = rings.map((ring) => ring.looks);
        expect(looks.map((it) => it.reduce((sum, us) => sum + us, 0) <= 18)).toEqual([true, true, true]);
        expect(looks.map(({ length }) => length)).toEqual([9, 9, 9]);
      }
    });
  });

  test("looks longer after short sleeps, and not at all after long ones or without a limit", () => {
    const short = makeBell(50);
    const forbidden = makeBell(0);
    for (const { bell } of [short, forbidden]) {
      bell.look(1000);
      bell.slept(1000.01);
      bell.look(1001);
    }
    expect(short.ring.looks).toEqual([0, 50]);
    expect(forbidden.ring.looks).toEqual([0, 0]);
    for (let sleep = 0; sleep < 8; sleep++) short.bell.slept(2000);
    short.bell.look(2000);
    expect(short.ring.looks.at(-1)).toBe(0);
  });

  test("stops looking where the peer runs only once we sleep, and begins again when looks find something", () => {
    const { bell, ring } = makeBell(50);
    let nowMs = 1000;
    /** A request that comes `us` after we have gone to sleep, or, if the peer has a processor, while we look. */
    const request = (us: number, runsBeside: boolean): number => {
      const before = ring.looks.length;
      if (runsBeside && bell.poll.us >= us) ring.put();
      const found = bell.look(nowMs);
      const lookedUs = ring.looks.slice(before).reduce((sum, it) => sum + it, 0);
      if (!found) {
        ring.put();
        nowMs += (lookedUs + us) / 1000;
        bell.slept(nowMs);
      }
      ring.takeAll();
      return found ? Math.min(us, lookedUs) : lookedUs;
    };
    const spentOn = (count: number, runsBeside: boolean): number =>
      Array.from({ length: count }, () => request(10, runsBeside)).reduce((sum, us) => sum + us, 0) / count;
    expect(spentOn(10_000, false)).toBeLessThan(2);
    // The longest rest, which only sleeps shorten, ends.
    spentOn(600, true);
    ring.looks.splice(0);
    spentOn(1000, true);
    expect(ring.looks).toEqual(Array.from({ length: 1000 }, () => 50));
  });
});
