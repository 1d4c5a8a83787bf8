// The relay, step by step on plain memory, where a whole program cannot show it: peers that know nothing of
// our end words, lingering, and being told to stop.
import { afterEach, beforeEach, expect, spyOn, test } from "bun:test";
import { readFileSync } from "node:fs";
import { join } from "node:path";
import type { VchanControl } from "../../src/vchan/vchan-control.ts";
import type { LocalEnd } from "../../src/vchan/local.ts";
import { Relay, type RelayResult } from "../../src/vchan/relay.ts";
import { VchanPair } from "./vchan-pair.ts";
import { RelayFixture } from "./vchan-relay-fixture.ts";

let fixture: RelayFixture;
let dir: string;
let local: LocalEnd;
let control: VchanControl;

beforeEach(() => {
  fixture = new RelayFixture();
  ({ dir, local, control } = fixture);
});
afterEach(() => fixture[Symbol.dispose]());

function takeRequest(pair: VchanPair): string {
  const bytes = Buffer.alloc(100);
  return bytes.toString("utf8", 0, pair.server.read(bytes));
}

const result = (end: RelayResult["end"]): RelayResult => ({
  end,
  unread: 0,
  undelivered: 0,
  inputError: 0,
  outputError: 0,
});

test("a libxenvchan peer answers after our input has ended, and closes", () => {
  using pair = new VchanPair();
  pair.forgetEndWords();
  const relay = new Relay(pair.client, control, { local });
  expect(relay.step()).toBeUndefined();
  expect(takeRequest(pair)).toBe("request");
  pair.server.write(Buffer.from("answer"));
  expect(relay.step()).toBeUndefined();
  expect([pair.server.peerEnded, pair.server.peerClosed]).toEqual([false, false]);
  pair.server.close();
  expect(relay.run()).toEqual(result("peer-closed"));
  expect(readFileSync(join(dir, "out"), "utf8")).toBe("answer");
});

test("lingering ends in silence, but not before everything was read", () => {
  using pair = new VchanPair();
  pair.forgetEndWords();
  const relay = new Relay(pair.client, control, { local, lingerMs: 20 });
  expect(relay.step()).toBeUndefined();
  expect(pair.client.unread).toBe(7);
  expect(takeRequest(pair)).toBe("request");
  const started = performance.now();
  expect(relay.run()).toEqual(result("lingered"));
  expect(performance.now() - started).toBeGreaterThanOrEqual(19);
});

test("silence ends a relay after 5 seconds, unless the peer can be told, somebody chose, or nothing was sent", () => {
  interface Situation {
    readonly told?: boolean;
    readonly lingerMs?: number;
    readonly silent?: boolean;
  }
  /** Whether the relay is over after so much silence, by a clock of ours. */
  const isOverAfter = (ms: number, { told = false, lingerMs, silent = false }: Situation): boolean => {
    using pair = new VchanPair();
    using ends = new RelayFixture();
    if (!told) pair.forgetEndWords();
    const input = silent ? undefined : ends.local.input;
    const relay = new Relay(pair.client, ends.control, { local: { ...ends.local, input }, lingerMs });
    const clock = spyOn(performance, "now").mockReturnValue(1000);
    const step = (): RelayResult | undefined => {
      ends.control.page.wake(); // what would wait is woken
      return relay.step();
    };
    try {
      step();
      takeRequest(pair);
      step();
      step();
      clock.mockReturnValue(1000 + ms);
      return step()?.end === "lingered";
    } finally {
      clock.mockRestore();
    }
  };
  expect([isOverAfter(4999, {}), isOverAfter(5000, {})]).toEqual([false, true]);
  expect([isOverAfter(99, { lingerMs: 100 }), isOverAfter(100, { lingerMs: 100 })]).toEqual([false, true]);
  expect(isOverAfter(1e9, { lingerMs: Infinity })).toBe(false);
  expect(isOverAfter(1e9, { silent: true })).toBe(false);
  expect(isOverAfter(100, { silent: true, lingerMs: 100 })).toBe(true);
  expect(isOverAfter(1e9, { told: true, lingerMs: 100 })).toBe(false);
});

test("what comes in the silence begins it anew", () => {
  using pair = new VchanPair();
  pair.forgetEndWords();
  const relay = new Relay(pair.client, control, { local });
  const clock = spyOn(performance, "now").mockReturnValue(0);
  const stepAt = (ms: number): RelayResult | undefined => {
    clock.mockReturnValue(ms);
    control.page.wake();
    return relay.step();
  };
  try {
    stepAt(0);
    takeRequest(pair);
    for (let ms = 0; ms < 60_000; ms += 4000) {
      expect(stepAt(ms)).toBeUndefined();
      pair.server.write(Buffer.from("."));
      expect(stepAt(ms + 3999)).toBeUndefined();
    }
    expect(stepAt(100_000)).toBeUndefined();
    expect(stepAt(105_000)?.end).toBe("lingered");
  } finally {
    clock.mockRestore();
  }
  expect(readFileSync(join(dir, "out"), "utf8")).toBe(".".repeat(15));
});

test("only sending ends when the peer has read everything, whoever it is", () => {
  for (const told of [false, true]) {
    using pair = new VchanPair();
    using ends = new RelayFixture();
    if (!told) pair.forgetEndWords();
    const relay = new Relay(pair.client, ends.control, { local: ends.local, sendOnly: true });
    relay.step();
    pair.server.write(Buffer.from("answer"));
    relay.step();
    expect(takeRequest(pair)).toBe("request");
    expect(relay.run()).toEqual(result("sent"));
    expect(readFileSync(join(ends.dir, "out"), "utf8")).toBe("answer");
  }
});

test("a peer that goes without its end word is lost; one that says it is not", () => {
  for (const polite of [false, true]) {
    using pair = new VchanPair();
    const relay = new Relay(pair.client, control, { local: { ...local, input: undefined } });
    pair.server.write(Buffer.from("half"));
    if (polite) pair.server.endStream();
    pair.server.close();
    expect(relay.run()).toEqual(result(polite ? "done" : "peer-lost"));
  }
});

test("a peer that closes without reading leaves its bytes counted", () => {
  using pair = new VchanPair();
  const relay = new Relay(pair.client, control, { local });
  expect(relay.step()).toBeUndefined();
  pair.server.endStream();
  pair.server.close();
  expect(relay.run()).toEqual({ ...result("peer-closed"), unread: 7 });
});

test("told to stop it hands on what has come, and does not wait longer than its grace for a peer that reads nothing", () => {
  using pair = new VchanPair();
  const relay = new Relay(pair.client, control, { local, stopGraceMs: 20 });
  expect(relay.step()).toBeUndefined();
  pair.server.write(Buffer.from("come"));
  control.stop();
  expect(relay.run()).toEqual({ ...result("stopped"), unread: 7 });
  expect(readFileSync(join(dir, "out"), "utf8")).toBe("come");
  pair.server.sample();
  expect(pair.server.peerEnded).toBe(true);
});

test("a domain that is declared dead ends the relay", () => {
  using pair = new VchanPair();
  const relay = new Relay(pair.client, control, { local: { ...local, input: undefined } });
  pair.server.write(Buffer.from("last"));
  control.declarePeerDead();
  expect(relay.run()).toEqual(result("peer-lost"));
  expect(readFileSync(join(dir, "out"), "utf8")).toBe("last");
});

test("also that of a peer of libxenvchan's, but not one that had closed or told its end before", () => {
  const endOf = (before: (pair: VchanPair) => void): RelayResult["end"] => {
    using pair = new VchanPair();
    pair.forgetEndWords();
    before(pair);
    control.declarePeerDead();
    return new Relay(pair.client, control, { local: { ...local, input: undefined } }).run().end;
  };
  expect(endOf(() => {})).toBe("peer-lost");
  expect(endOf((pair) => pair.server.close())).toBe("peer-closed");
  expect(endOf((pair) => pair.server.endStream())).toBe("done");
});
