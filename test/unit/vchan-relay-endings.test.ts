// Relays whose peer, or whose local end, does not make it easy to come to an end: one must come all the same.
// A relay that would hang is stopped after a while, and then the end is not the one that is expected.
import { afterEach, beforeEach, expect, test } from "bun:test";
import { closeSync, openSync } from "node:fs";
import { XentoolError } from "../../src/core/errors.ts";
import { shim } from "../../src/native/shim.ts";
import { VCHAN_CLI_LIVE, VCHAN_END_REACHED, VCHAN_SRV_LIVE } from "../../src/protocol/vchan.ts";
import type { VchanControl } from "../../src/vchan/vchan-control.ts";
import { openCommand, type LocalEnd } from "../../src/vchan/local.ts";
import { Relay, type RelayResult } from "../../src/vchan/relay.ts";
import { VchanPair } from "./vchan-pair.ts";
import { RelayFixture } from "./vchan-relay-fixture.ts";
import { chosenSeed } from "../support/random.ts";

const seed = chosenSeed();
const LONG_MS = 5000;
const LARGE = { left: 20, right: 20 };
const ECHO_BYTES = 1 << 20; // more than two pipes and a process take
const END_WORDS_AT = 1016;
const EISDIR = -21;

let fixture: RelayFixture;
let local: LocalEnd;
let control: VchanControl;
let stopper: Worker;

beforeEach(() => {
  fixture = new RelayFixture();
  ({ local, control } = fixture);
  stopper = new Worker(new URL("vchan-stop-worker.ts", import.meta.url).href);
  stopper.postMessage({ handle: control.page.handle, afterMs: LONG_MS });
});
afterEach(() => {
  stopper.terminate();
  fixture[Symbol.dispose]();
});

const whole = { unread: 0, undelivered: 0, inputError: 0, outputError: 0 };

test("a service that answers while it takes still gets all of a peer that is gone", async () => {
  using pair = new VchanPair({ orders: LARGE });
  const command = openCommand(["cat"]);
  const relay = new Relay(pair.client, control, { local: command.end });
  expect(pair.server.write(new Uint8Array(ECHO_BYTES))).toBe(ECHO_BYTES);
  pair.server.endStream();
  pair.server.close();
  expect(relay.run()).toEqual({ end: "peer-closed", ...whole });
  command.close();
  await command.exited;
});

test("lingering begins when all that came has been taken", async () => {
  using pair = new VchanPair({ orders: LARGE });
  const command = openCommand(["sh", "-c", "sleep 0.5; cat > /dev/null"]);
  const end = { ...command.end, input: undefined };
  const relay = new Relay(pair.client, control, { local: end, lingerMs: 50 });
  pair.forgetEndWords();
  expect(pair.server.write(new Uint8Array(ECHO_BYTES))).toBe(ECHO_BYTES);
  expect(relay.run()).toEqual({ end: "lingered", ...whole });
  command.close();
  await command.exited;
});

test("a peer that writes on after its end is told so", () => {
  using pair = new VchanPair();
  const relay = new Relay(pair.client, control, { local });
  pair.server.endStream();
  expect(relay.step()).toBeUndefined();
  pair.server.write(Buffer.from("more"));
  expect(() => relay.run()).toThrow("after it had said that its stream has ended");
});

test("what a peer writes after it has closed is nothing to us", () => {
  using pair = new VchanPair();
  const relay = new Relay(pair.client, control, { local: { ...local, input: undefined } });
  const { bytes } = pair.server.page;
  bytes[VCHAN_SRV_LIVE] = 0;
  pair.client.sample();
  pair.server.write(Buffer.from("more"));
  bytes[VCHAN_SRV_LIVE] = 1;
  expect(relay.run()).toEqual({ end: "peer-lost", ...whole });
});

test("who could not end its stream says so, and who hears it says so too", () => {
  const told = (input: LocalEnd["input"], stop: boolean): [RelayResult, boolean, boolean] => {
    using pair = new VchanPair();
    const relay = new Relay(pair.client, control, { local: { ...local, input }, stopGraceMs: 0 });
    if (stop) control.stop();
    if (!stop) pair.server.endStream();
    const result = relay.run();
    control.reset();
    pair.server.sample();
    return [result, pair.server.peerEnded, pair.server.peerCut];
  };
  const directory = openSync(fixture.dir, "r");
  const pipe = new Int32Array(2);
  shim.xt_stream_pipe(pipe);
  try {
    expect(told(undefined, false)).toEqual([{ end: "done", ...whole }, true, false]);
    expect(told({ fd: directory, kind: "file" }, false)).toEqual([
      { end: "done", ...whole, inputError: EISDIR },
      true,
      true,
    ]);
    expect(told({ fd: pipe[0], kind: "nonblocking" }, true)).toEqual([
      { end: "stopped", ...whole },
      true,
      true,
    ]);
  } finally {
    for (const fd of [directory, ...pipe]) closeSync(fd);
  }
  using pair = new VchanPair();
  pair.server.cutStream();
  pair.server.close();
  const relay = new Relay(pair.client, control, { local: { ...local, input: undefined } });
  expect(relay.run()).toEqual({ end: "cut-short", ...whole });
});

test(`whatever a peer does to the page, a relay ends when it is gone (seed ${seed})`, () => {
  let state = seed;
  const below = (limit: number): number => {
    state = (Math.imul(state, 1664525) + 1013904223) >>> 0;
    return Math.floor((state / 2 ** 32) * limit);
  };
  const words = [0, 1, 7, 1024, 2048, 0x3065_7478, VCHAN_END_REACHED, 0x3265_7478, 0xffff_ffff];
  for (let round = 0; round < 400; round++) {
    using pair = new VchanPair();
    if (below(4) === 0) pair.forgetEndWords();
    const [victim, liar] = below(2) === 0 ? [pair.client, pair.server] : [pair.server, pair.client];
    const { bytes, words: page } = liar.page;
    const relay = new Relay(victim, control, {
      local: below(2) === 0 ? local : { ...local, input: undefined },
      lingerMs: below(2) === 0 ? undefined : 1,
    });
    const deeds = [
      () => void (page[END_WORDS_AT / 4 + below(2)] = words[below(words.length)]),
      () => void (page[below(4)] = words[below(words.length)]),
      () => void (page[below(4)] += below(64)),
      () => void (bytes[VCHAN_CLI_LIVE + below(4)] = below(4)),
      () => void (bytes[below(2048)] = below(256)),
      () => liar.notifyPeer(),
    ];
    try {
      let ended: RelayResult | undefined;
      for (let count = below(8); count > 0 && ended === undefined; count--) {
        for (let deed = below(4); deed > 0; deed--) deeds[below(deeds.length)]?.();
        liar.notifyPeer(); // what would wait is woken
        ended = relay.step();
      }
      bytes[liar === pair.server ? VCHAN_SRV_LIVE : VCHAN_CLI_LIVE] = 0;
      liar.notifyPeer();
      ended ??= relay.run();
      expect(ended.end).not.toBe("stopped");
    } catch (error) {
      if (!(error instanceof XentoolError) || error.kind !== "protocol") throw error;
    }
  }
});
