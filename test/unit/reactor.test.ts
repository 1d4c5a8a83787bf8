// The reactor's TypeScript face, and filters on top of it: ends come to the source they belong to, timers are kept
// apart from I/O, and both ways to wait do the same.
import { afterEach, describe, expect, test } from "bun:test";
import { closeSync, openSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { openFiltered } from "../../src/block/filters/catalogue.ts";
import type { BlockTarget, TargetInfo } from "../../src/block/target.ts";
import { XentoolError } from "../../src/core/errors.ts";
import { allocateMemory } from "../../src/native/memory.ts";
import {
  IO_DISCARD,
  IO_FLUSH,
  IO_READ,
  IO_WRITE,
  POLLIN,
  POLLOUT,
  Reactor,
  Timer,
} from "../../src/native/reactor.ts";
import { check, shim } from "../../src/native/shim.ts";
import { removeDirectory, temporaryDirectory } from "../support/temporary.ts";

const SIZE = 64 * 1024;

type End = readonly [source: string, tag: number, result: number];

class Fixture {
  readonly dir = temporaryDirectory();
  readonly path = join(this.dir, "file");
  readonly ends: End[] = [];
  readonly memory = allocateMemory(SIZE);
  readonly reactor: Reactor;
  readonly fd: number;

  constructor(engine: "uring" | "sync") {
    writeFileSync(this.path, new Uint8Array(SIZE).fill(7));
    this.fd = openSync(this.path, "r+");
    this.reactor = Reactor.open(16, engine);
  }

  source(name: string): number {
    return this.reactor.addSource((tag, result) => this.ends.push([name, tag, result]));
  }

  /** One wait and what it found. */
  turn(wanted: number, timeoutUs = 5_000_000): readonly End[] {
    expect(this.reactor.wait(wanted, timeoutUs)).toBe(0);
    this.reactor.dispatch();
    return this.ends.splice(0);
  }

  /** Turns until `count` ends have come, in the order of their tags. */
  ended(count: number): readonly End[] {
    const ends: End[] = [];
    while (ends.length < count) ends.push(...this.turn(1));
    return ends.sort((a, b) => a[1] - b[1]);
  }

  close(): void {
    this.reactor.close();
    this.memory.close();
    closeSync(this.fd);
    removeDirectory(this.dir);
  }
}

let fixture: Fixture;
afterEach(() => fixture.close());

describe.each(["uring", "sync"] as const)("the reactor on %s", (engine) => {
  test("tells each source of its own ends, by tag", () => {
    fixture = new Fixture(engine);
    const { reactor, memory, fd } = fixture;
    const file = reactor.addFile(fd, false);
    const [one, two] = [fixture.source("one"), fixture.source("two")];
    reactor.start(one, 0xfffff, file, IO_READ, 0, 4096, memory.address);
    reactor.start(two, 3, file, IO_READ, SIZE - 512, 4096, memory.address + 4096);
    reactor.finish(two, 4, -5);
    expect(fixture.ended(3)).toEqual([
      ["two", 3, 512],
      ["two", 4, -5],
      ["one", 0xfffff, 4096],
    ]);
    expect(memory.bytes[0]).toBe(7);
  });

  test("calls a timer once, not before its time, and whatever else is waited for", () => {
    fixture = new Fixture(engine);
    const { reactor } = fixture;
    const begun = performance.now();
    let calls = 0;
    const timer = new Timer(() => calls++);
    reactor.setTimer(timer, 10_000);
    reactor.setTimer(timer, 20); // moves it
    while (calls === 0) fixture.turn(1, -1);
    expect(performance.now() - begun).toBeGreaterThanOrEqual(20);
    fixture.turn(0, 0);
    expect(calls).toBe(1);
  });

  test("calls once, when the next wait begins, what is to be done by then", () => {
    fixture = new Fixture(engine);
    const { reactor } = fixture;
    const source = fixture.source("one");
    const calls: string[] = [];
    reactor.beforeWait(() => {
      calls.push("first");
      reactor.beforeWait(() => {
        calls.push("second");
        reactor.finish(source, 1, 0);
      });
    });
    expect(calls).toEqual([]);
    expect(fixture.turn(1, -1)).toEqual([["one", 1, 0]]);
    fixture.turn(0, 0);
    expect(calls).toEqual(["first", "second"]);
  });

  test("calls back for what is readable, as long as it is", () => {
    fixture = new Fixture(engine);
    const event = check(shim.xt_eventfd(), "make an eventfd");
    let calls = 0;
    fixture.reactor.watch(event, () => calls++);
    fixture.turn(1, 1000);
    expect(calls).toBe(0);
    shim.xt_eventfd_signal(event);
    fixture.turn(1);
    fixture.turn(1);
    expect(calls).toBe(2);
    closeSync(event);
  });

  test("watches what it is told to, and forgets", () => {
    fixture = new Fixture(engine);
    const { reactor } = fixture;
    const event = check(shim.xt_eventfd(), "make an eventfd");
    const seen: number[] = [];
    const watch = reactor.watch(event, (events) => seen.push(events), POLLOUT);
    fixture.turn(1);
    expect(seen).toEqual([POLLOUT]);
    reactor.rewatch(watch, 0);
    shim.xt_eventfd_signal(event);
    fixture.turn(0, 0);
    expect(seen).toEqual([POLLOUT]);
    reactor.rewatch(watch, POLLIN);
    fixture.turn(1);
    expect(seen).toEqual([POLLOUT, POLLIN]);
    reactor.unwatch(watch);
    fixture.turn(0, 0);
    expect(seen).toEqual([POLLOUT, POLLIN]);
    closeSync(event);
  });

  test("a watch that is new is not told what was seen of one that is gone", () => {
    fixture = new Fixture(engine);
    const { reactor } = fixture;
    const [first, second, third] = [0, 1, 2].map(() => check(shim.xt_eventfd(), "make an eventfd"));
    const said: string[] = [];
    let next = -1;
    const watches = [first, second].map((fd, index) =>
      reactor.watch(fd, () => {
        said.push(`old ${index}`);
        reactor.unwatch(watches[1 - index]);
        next = reactor.watch(third, () => said.push("new"));
      }),
    );
    for (const fd of [first, second]) shim.xt_eventfd_signal(fd);
    fixture.turn(2);
    expect(said).toHaveLength(1);
    shim.xt_eventfd_drain(first);
    shim.xt_eventfd_drain(second);
    shim.xt_eventfd_signal(third);
    fixture.turn(1);
    expect(said).toEqual([said[0], "new"]);
    reactor.unwatch(next);
    for (const fd of [first, second, third]) closeSync(fd);
  });
});

describe("filters", () => {
  const info: TargetInfo = {
    sizeBytes: SIZE,
    readOnly: false,
    canDiscard: false,
    canSecureDiscard: false,
    discardGranularityBytes: 512,
    physicalSectorBytes: 512,
  };

  /** A target that ends everything well, and notes its tags, behind filters. */
  function open(filters: readonly string[], overrides: Partial<TargetInfo> = {}): [BlockTarget, number[]] {
    fixture = new Fixture("sync");
    const { reactor } = fixture;
    const started: number[] = [];
    const openTarget = (onEnd: (tag: number, result: number) => void): BlockTarget => {
      const source = reactor.addSource(onEnd);
      return {
        info: { ...info, ...overrides },
        start(_op, tag, _offset, length) {
          started.push(tag);
          reactor.finish(source, tag, length);
        },
      };
    };
    const context = { reactor, device: "test", sizeBytes: () => SIZE };
    const onEnd = (tag: number, result: number): void => void fixture.ends.push(["", tag, result]);
    return [openFiltered(filters, openTarget, onEnd, context), started];
  }

  test("the first one named is nearest to the guest", () => {
    const [target, started] = open(["error:op=read", "error:op=read+write,errno=ENOSPC"]);
    target.start(IO_READ, 1, 0, 512, 8);
    target.start(IO_WRITE, 2, 0, 512, 8);
    target.start(IO_FLUSH, 3, 0, 0, 0);
    expect(fixture.ended(3)).toEqual([
      ["", 1, -5],
      ["", 2, -28],
      ["", 3, 0],
    ]);
    expect(started).toEqual([3]);
  });

  test("delay keeps the order of what it holds back", () => {
    const [target, started] = open(["delay:ms=5,op=write"]);
    for (const tag of [1, 2, 3]) target.start(IO_WRITE, tag, 0, 512, 8);
    target.start(IO_READ, 4, 0, 512, 8);
    expect(started).toEqual([4]);
    fixture.ended(4);
    expect(started).toEqual([4, 1, 2, 3]);
  });

  test.each<[string, Parameters<BlockTarget["start"]>, Partial<TargetInfo>]>([
    ["a range that ends outside", [IO_READ, 1, SIZE - 512, 1024, 8], {}],
    ["a range that begins outside", [IO_READ, 1, SIZE, 512, 8], {}],
    ["a negative offset", [IO_READ, 1, -512, 512, 8], {}],
    ["half a sector", [IO_WRITE, 1, 256, 512, 8], {}],
    ["nothing at all", [IO_READ, 1, 0, 0, 8], {}],
    ["no memory", [IO_WRITE, 1, 0, 512, 0], {}],
    ["a write to a read-only disk", [IO_WRITE, 1, 0, 512, 8], { readOnly: true }],
    ["a discard that the disk does not know", [IO_DISCARD, 1, 0, 512, 0], {}],
    ["a flush of a range", [IO_FLUSH, 1, 0, 512, 0], {}],
  ])("assert refuses %s", (_what, operation, overrides) => {
    const [target, started] = open(["assert"], overrides);
    expect(() => target.start(...operation)).toThrow(XentoolError);
    expect(started).toEqual([]);
  });

  test("assert refuses a tag in use, and an end that nobody waits for", () => {
    const [target] = open(["assert"]);
    target.start(IO_READ, 1, 0, 512, 8);
    expect(() => target.start(IO_READ, 1, 0, 512, 8)).toThrow("its tag is in use");
    fixture.ended(1);
    target.start(IO_READ, 1, 0, 512, 8);
    fixture.ended(1);
  });
});
