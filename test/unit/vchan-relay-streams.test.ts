// Relays with pipes and sockets of all kinds: no direction holds up the other, and no end is taken for another. What
// would wait for ever is woken, by a clock of ours or by a program that comes late.
import { afterEach, beforeEach, expect, spyOn, test } from "bun:test";
import { closeSync, openSync, readSync, writeSync } from "node:fs";
import { createServer, type AddressInfo, type Socket } from "node:net";
import { shim } from "../../src/native/shim.ts";
import type { VchanControl } from "../../src/vchan/vchan-control.ts";
import { openConnection, type LocalEnd, type LocalStream } from "../../src/vchan/local.ts";
import { Relay, type RelayResult } from "../../src/vchan/relay.ts";
import { VchanPair } from "./vchan-pair.ts";
import { RelayFixture } from "./vchan-relay-fixture.ts";

const STEPS = 1000;

let fixture: RelayFixture;
let local: LocalEnd;
let control: VchanControl;
let open: number[];

beforeEach(() => {
  fixture = new RelayFixture();
  ({ local, control } = fixture);
  open = [];
});
afterEach(() => {
  for (const fd of open) closeSync(fd);
  fixture[Symbol.dispose]();
});

/** The two ends of a pipe that is closed after the test. */
function makePipe(): [reader: number, writer: number] {
  const fds = new Int32Array(2);
  shim.xt_stream_pipe(fds);
  open.push(...fds);
  return [fds[0], fds[1]];
}

function nonblocking(fd: number, writable: boolean): LocalStream {
  const again = shim.xt_stream_reopen(fd, writable ? 1 : 0);
  open.push(again);
  return { fd: again, kind: "nonblocking" };
}

function close(fd: number): void {
  closeSync(fd);
  open = open.filter((it) => it !== fd);
}

/** Fills a pipe; returns how much it took. */
function fillUp(writer: number): number {
  const { fd } = nonblocking(writer, true);
  let length = 0;
  try {
    for (;;) length += writeSync(fd, Buffer.alloc(4096));
  } catch {
    return length;
  }
}

const whole = { unread: 0, undelivered: 0, inputError: 0, outputError: 0 };

test("input goes out while the peer sends without a pause", () => {
  using pair = new VchanPair();
  const [reader, writer] = makePipe();
  const relay = new Relay(pair.client, control, { local: { ...local, input: nonblocking(reader, false) } });
  pair.server.write(Buffer.from("."));
  relay.step(); // there is no input yet
  writeSync(writer, "enough!");
  const request = Buffer.alloc(7);
  let step = 0;
  for (; step < STEPS && !pair.server.recv(request); step++) {
    pair.server.write(Buffer.from("."));
    relay.step();
  }
  expect([request.toString(), step < STEPS]).toEqual(["enough!", true]);
});

test("the peer's data is handed on while there is always more input", () => {
  using pair = new VchanPair();
  const [reader, writer] = makePipe();
  const taken = Buffer.alloc(fillUp(writer));
  const endless = openSync("/dev/zero", "r");
  open.push(endless);
  const input = { fd: endless, kind: "file" } as const;
  const relay = new Relay(pair.client, control, {
    local: { ...local, input, output: nonblocking(writer, true) },
  });
  const more = Buffer.alloc(4096);
  const go = (): void => {
    relay.step();
    pair.server.read(more);
  };
  pair.server.write(Buffer.from("answer"));
  go(); // there is no room yet
  readSync(reader, taken);
  for (let step = 0; step < STEPS && pair.client.counts.bytesRead === 0; step++) go();
  expect(pair.client.counts.bytesRead).toBe(6);
});

test("a descriptor that others share is not waited for in a read or write", async () => {
  using pair = new VchanPair();
  const [quiet, toQuiet] = makePipe();
  await using late = Bun.spawn(["sh", "-c", "sleep 1; echo late"], { stdio: ["ignore", toQuiet, "ignore"] });
  const relay = new Relay(pair.client, control, {
    local: { ...local, input: { fd: quiet, kind: "shared" } },
  });
  pair.server.write(Buffer.from("hello"));
  relay.step();
  expect([pair.client.counts.bytesRead, pair.client.counts.bytesWritten]).toEqual([5, 0]);

  const [fromFull, full] = makePipe();
  fillUp(full);
  await using reading = Bun.spawn(["sh", "-c", "sleep 1; head -c 1"], {
    stdio: [fromFull, "ignore", "ignore"],
  });
  using other = new VchanPair();
  const output = { fd: full, kind: "shared" } as const;
  const blocked = new Relay(other.client, control, { local: { ...local, output } });
  other.server.write(Buffer.from("hello"));
  blocked.step();
  expect([other.client.counts.bytesRead, other.client.counts.bytesWritten]).toEqual([0, 7]);
  for (const fd of [toQuiet, full, fromFull]) close(fd);
  await Promise.all([late.exited, reading.exited]);
});

test("input that is left because nobody takes our output is no complete stream, unless it had ended", () => {
  /** How the relay ended, and whether the peer was told that our stream was cut. */
  const ends = (hasEnded: boolean): [RelayResult, boolean] => {
    using pair = new VchanPair();
    const [reader, writer] = makePipe();
    if (hasEnded) close(writer);
    const [unwanted, toNobody] = makePipe();
    const output = nonblocking(toNobody, true);
    close(unwanted);
    const relay = new Relay(pair.client, control, {
      local: { input: nonblocking(reader, false), output, outputTwin: undefined, endsWithOutput: true },
    });
    pair.server.write(Buffer.from("unwanted"));
    const result = relay.run();
    pair.server.sample();
    return [result, pair.server.peerCut];
  };
  expect(ends(false)).toEqual([{ end: "local-closed", ...whole, undelivered: 8 }, true]);
  expect(ends(true)).toEqual([{ end: "local-closed", ...whole, undelivered: 8 }, false]);
});

test("a peer that reads nothing because nobody takes what it sends is left after 5 seconds", () => {
  using pair = new VchanPair();
  const [unwanted, toNobody] = makePipe();
  const output = nonblocking(toNobody, true);
  close(unwanted);
  const relay = new Relay(pair.client, control, { local: { ...local, output } });
  const clock = spyOn(performance, "now");
  const stepAt = (ms: number): RelayResult | undefined => {
    clock.mockReturnValue(ms);
    control.page.wake(); // what would wait is woken
    return relay.step();
  };
  try {
    pair.server.write(Buffer.from("unwanted"));
    for (const ms of [0, 0, 0, 4999]) expect(stepAt(ms)).toBeUndefined();
    expect(pair.server.read(Buffer.alloc(3))).toBe(3);
    for (const ms of [4999, 9998]) expect(stepAt(ms)).toBeUndefined();
    expect(stepAt(9999)).toEqual({ end: "local-closed", ...whole, unread: 4, undelivered: 8 });
  } finally {
    clock.mockRestore();
  }
});

test("a connection whose failure is met in a write has not come to the end of its stream", async () => {
  const accepted = Promise.withResolvers<Socket>();
  const service = createServer((socket) => accepted.resolve(socket));
  await new Promise<void>((resolve) => service.listen(0, "127.0.0.1", resolve));
  const { port } = service.address() as AddressInfo;
  const connection = await openConnection({ kind: "tcp", host: "127.0.0.1", port });
  const socket = await accepted.promise;
  using pair = new VchanPair();
  const relay = new Relay(pair.client, control, { local: connection.end });
  pair.server.write(Buffer.from("request"));
  socket.resetAndDestroy();
  await new Promise((resolve) => socket.once("close", resolve));
  const { outputError, ...rest } = relay.run();
  expect(outputError).not.toBe(0);
  expect(rest).toMatchObject({ end: "local-closed", undelivered: 7 });
  pair.server.sample();
  expect(pair.server.peerCut).toBe(true);
  connection.close();
  await new Promise((resolve) => service.close(resolve));
});

/** A service that answers all the time, and for a second takes nothing; at the end it prints how much it got. */
const SLOW_SERVICE = `
  let length = 0;
  const server = require("node:net").createServer({ allowHalfOpen: true, pauseOnConnect: true }, (socket) => {
    const answer = () => {
      while (!socket.writableEnded && socket.write(Buffer.alloc(10000)));
    };
    socket.on("drain", answer);
    answer();
    setTimeout(() => socket.resume(), 1000);
    socket.on("data", (chunk) => void (length += chunk.length));
    socket.on("error", () => void (length = -1));
    socket.on("end", () => void socket.end());
    socket.on("close", () => {
      console.log(length);
      server.close();
    });
  });
  server.listen(0, "127.0.0.1", () => console.log(server.address().port));
`;

test("a slow service that answers meanwhile gets all that a peer sent before it closed, and ends in peace", async () => {
  await using service = Bun.spawn([process.execPath, "-e", SLOW_SERVICE], { stdout: "pipe" });
  const words = service.stdout.getReader();
  const next = async (): Promise<number> =>
    Number(new TextDecoder().decode((await words.read()).value ?? undefined));
  const connection = await openConnection({ kind: "tcp", host: "127.0.0.1", port: await next() });
  using pair = new VchanPair({ orders: { left: 20, right: 20 } });
  const relay = new Relay(pair.client, control, { local: connection.end });
  expect(pair.server.write(new Uint8Array(1 << 20))).toBe(1 << 20);
  pair.server.endStream();
  pair.server.close();
  expect(relay.run()).toMatchObject({ end: "peer-closed", undelivered: 0, inputError: 0, outputError: 0 });
  connection.close();
  expect(await next()).toBe(1 << 20);
});
