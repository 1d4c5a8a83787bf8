// An NBD target whose server dies and comes back, forgetful or as another one: what is sent again, in which order, what
// waits, and what becomes of a disk that is held.
import { afterEach, expect, test } from "bun:test";
import { writeFileSync, readFileSync } from "node:fs";
import { join } from "node:path";
import type { NbdTargetOptions } from "../../src/block/targets/nbd/target.ts";
import { WriteLog } from "../../src/block/targets/nbd/write-log.ts";
import { IO_DISCARD, IO_FLUSH, IO_READ, IO_WRITE } from "../../src/native/reactor.ts";
import { NBD_CMD_FLUSH, NBD_CMD_TRIM, NBD_CMD_WRITE } from "../../src/protocol/nbd.ts";
import { removeDirectory, temporaryDirectory } from "../support/temporary.ts";
import {
  chunk,
  dataAt,
  LOG_BYTES,
  simple,
  SIZE,
  TargetAndPeer,
  type End,
  type PeerOptions,
  type SeenRequest,
} from "./nbd-target-peer.ts";

const EIO = -5;
let fixture: TargetAndPeer | undefined;
afterEach(() => {
  fixture?.close();
  fixture = undefined;
});

/** Why the disk was held, and "" when it no longer was. */
const said: string[] = [];

function open(reply: PeerOptions["reply"], more: Partial<NbdTargetOptions> = {}): TargetAndPeer {
  said.length = 0;
  const onHeld = (why: string | undefined): void => void said.push(why ?? "");
  return (fixture = new TargetAndPeer({ reply }, 60_000, { holdMs: Infinity, onHeld, ...more }));
}

function agree(request: SeenRequest): Uint8Array {
  if (request.command !== 0) return simple(request);
  return chunk(request, 1, true, dataAt(request.offset, Buffer.alloc(request.length, 7)));
}

const shortly = ({ command, offset, data }: SeenRequest): string =>
  `${command} at ${offset}${data.length > 0 ? `: ${data[0]}` : ""}`;

test("what was acknowledged and not flushed is sent again in its order, then what was under way, then what waits", async () => {
  let silent = false;
  const peer = open((request) => (silent ? undefined : agree(request)));
  const { target, memory, requests } = peer;
  const write = (tag: number, offset: number, byte: number): void => {
    memory.bytes.fill(byte, tag * 4096, (tag + 1) * 4096);
    target.start(IO_WRITE, tag, offset, 4096, memory.address + tag * 4096);
  };
  write(1, 0, 1);
  await peer.ended(1);
  target.start(IO_FLUSH, 2, 0, 0, 0);
  await peer.ended(1);
  for (const byte of [3, 4]) {
    write(byte, 8192, byte);
    await peer.ended(1);
  }
  target.start(IO_DISCARD, 5, 8192, 512, 0);
  await peer.ended(1);
  silent = true;
  write(6, 65536, 6);
  target.start(IO_READ, 7, 0, 512, memory.address);
  await peer.until(() => requests.length === 7);
  // The guest may do as it likes with its page. The log has what was asked for.
  memory.bytes.fill(99, 6 * 4096, 7 * 4096);
  requests.length = 0;
  silent = false;
  peer.die();
  await peer.until(() => !target.isServing);
  target.start(IO_FLUSH, 8, 0, 0, 0);
  expect(await peer.ended(3)).toEqual([
    [6, 4096],
    [7, 512],
    [8, 0],
  ]);
  const seen = requests.map(shortly);
  // These overlap, so each waited for the one before. The others may overtake, but nothing comes before the log.
  expect(seen.filter((it) => it.includes("8192"))).toEqual([
    `${NBD_CMD_WRITE} at 8192: 3`,
    `${NBD_CMD_WRITE} at 8192: 4`,
    `${NBD_CMD_TRIM} at 8192`,
  ]);
  expect(seen.slice(0, 4)).toContain(`${NBD_CMD_WRITE} at 65536: 6`);
  expect(seen.slice(4).toSorted()).toEqual([`0 at 0`, `${NBD_CMD_FLUSH} at 0`]);
  expect(said).toEqual([expect.stringContaining("closed"), ""]);
});

test("of a server without flushes, what is sent again is so to its end, though it had been replied to before", async () => {
  let content = 0;
  const answers = (isAnswered: (request: SeenRequest) => boolean) => {
    return (request: SeenRequest): Uint8Array | undefined => {
      if (request.offset === 8192) [content] = request.data;
      return isAnswered(request) ? agree(request) : undefined;
    };
  };
  const reply = answers(({ offset }) => offset === 8192);
  fixture = new TargetAndPeer({ reply, flags: 1 }, 60_000, { holdMs: Infinity });
  const peer = fixture;
  const { target, memory } = peer;
  target.start(IO_WRITE, 1, 0, 512, memory.address);
  for (const byte of [2, 3]) {
    memory.bytes.fill(byte, byte * 512, (byte + 1) * 512);
    target.start(IO_WRITE, byte, 8192, 512, memory.address + byte * 512);
    expect(await peer.ended(1)).toEqual([[byte, 512]]);
  }
  // The older one is carried out again, and the server is gone before the newer one, which waits for its reply.
  peer.die({ reply: answers(({ offset }) => offset === 0) });
  expect(await peer.ended(1)).toEqual([[1, 512]]);
  await peer.until(() => content === 2);
  const { servings } = target;
  peer.die({ reply: answers(() => true) });
  await peer.until(() => target.servings > servings);
  expect([content, target.hasUnstable]).toEqual([3, false]);
});

test("a record waits for a flush that began after its reply", async () => {
  let held: SeenRequest | undefined;
  const peer = open((request) => {
    if (request.command !== NBD_CMD_FLUSH) return agree(request);
    held = request;
    return undefined;
  });
  const { target, memory, requests } = peer;
  target.start(IO_WRITE, 1, 0, 512, memory.address);
  await peer.ended(1);
  target.start(IO_FLUSH, 2, 0, 0, 0);
  await peer.until(() => held !== undefined);
  target.start(IO_WRITE, 3, 4096, 512, memory.address);
  await peer.ended(1);
  peer.send(simple(held as SeenRequest));
  await peer.ended(1);
  requests.length = 0;
  peer.die();
  await peer.until(() => requests.length === 1 && target.isServing);
  expect(requests.map(shortly)).toEqual([`${NBD_CMD_WRITE} at 4096: 0`]);
});

test("a full log is flushed, and what finds no room waits", async () => {
  const peer = open(agree);
  const { target, memory, requests } = peer;
  const size = 32 * 1024;
  const count = (3 * LOG_BYTES) / size;
  let next = 0;
  while (next < count) {
    for (let i = 0; i < 12 && next < count; i++, next++)
      target.start(IO_WRITE, i, (next * size) % SIZE, size, memory.address);
    await peer.ended(Math.min(12, count));
  }
  expect(requests.filter(({ command }) => command === NBD_CMD_WRITE)).toHaveLength(count);
  expect(requests.some(({ command }) => command === NBD_CMD_FLUSH)).toBe(true);
});

test("one flush makes a log that is half full shorter, however much is written until it is answered", async () => {
  const held: SeenRequest[] = [];
  const peer = open((request) => {
    if (request.command !== NBD_CMD_FLUSH) return agree(request);
    held.push(request);
    return undefined;
  });
  const { target, memory, requests } = peer;
  const size = LOG_BYTES / 16;
  for (let tag = 0; tag < 12; tag++) {
    target.start(IO_WRITE, tag, tag * size, size, memory.address);
    await peer.ended(1);
  }
  await peer.until(() => held.length === 1);
  peer.send(simple(held[0] as SeenRequest));
  await peer.settle();
  expect(held).toHaveLength(1);
  expect(requests.filter(({ command }) => command === NBD_CMD_WRITE)).toHaveLength(12);
});

test("a failed flush fails what comes after it", async () => {
  const peer = open((request) => (request.command === NBD_CMD_FLUSH ? simple(request, 5) : agree(request)));
  const { target, memory } = peer;
  target.start(IO_WRITE, 1, 0, 512, memory.address);
  await peer.ended(1);
  for (const tag of [2, 3]) {
    target.start(IO_FLUSH, tag, 0, 0, 0);
    expect(await peer.ended(1)).toEqual([[tag, EIO]]);
  }
});

test("a flush that a server promised and cannot carry out has failed: a guest would take it for one not needed", async () => {
  const ENOTSUP = 95;
  const peer = open((request) =>
    request.command === NBD_CMD_FLUSH ? simple(request, ENOTSUP) : agree(request),
  );
  const { target, memory } = peer;
  target.start(IO_WRITE, 1, 0, 512, memory.address);
  await peer.ended(1);
  target.start(IO_FLUSH, 2, 0, 0, 0);
  expect(await peer.ended(1)).toEqual([[2, EIO]]);
});

test("when a flush of our own fails, what comes after it fails, too, and waits for no room in the log", async () => {
  const peer = open((request) => (request.command === NBD_CMD_FLUSH ? simple(request, 5) : agree(request)));
  const { target, memory } = peer;
  const size = 32 * 1024;
  const results: number[] = [];
  for (let at = 0; at < (2 * LOG_BYTES) / size; at++) {
    target.start(IO_WRITE, at, at * size, size, memory.address);
    results.push(...(await peer.ended(1)).map(([, result]) => result));
  }
  expect(results[0]).toBe(size);
  expect(results.at(-1)).toBe(EIO);
});

test("a record that the server had refused does not stay in a successor's log", async () => {
  const dir = temporaryDirectory();
  const former = WriteLog.open(join(dir, "log"), "a", LOG_BYTES);
  former.reserve(NBD_CMD_WRITE, 0, 512);
  former.commit(0);
  // Before it there is one that no flush has made stable, so it stays until xentool is killed.
  former.reserve(NBD_CMD_WRITE, 4096, 512);
  former.refused(former.commit(0), 0);
  former.close(false);
  const log = WriteLog.open(join(dir, "log"), "a", LOG_BYTES);
  const { target } = open(agree, { log });
  await fixture?.until(() => target.isServing);
  target.start(IO_FLUSH, 1, 0, 0, 0);
  await fixture?.ended(1);
  expect(log.isEmpty).toBe(true);
  removeDirectory(dir);
});

test("what the former server of the disk was refused may be half done, too: the NBD server may be the same", async () => {
  const dir = temporaryDirectory();
  const former = WriteLog.open(join(dir, "log"), "a", LOG_BYTES);
  former.reserve(NBD_CMD_TRIM, 4096, 512);
  former.refused(former.commit(0), 1);
  former.close(false);
  const log = WriteLog.open(join(dir, "log"), "a", LOG_BYTES);
  const { target, memory } = open(agree, { log });
  await fixture?.until(() => target.isServing);
  target.start(IO_WRITE, 1, 0, 512, memory.address);
  await fixture?.ended(1);
  const unstable: number[] = [];
  target.forEachUnstable((offset) => void unstable.push(offset));
  expect(unstable).toEqual([4096, 0]);
  target.start(IO_FLUSH, 2, 0, 0, 0);
  await fixture?.ended(1);
  expect(log.isEmpty).toBe(true);
  removeDirectory(dir);
});

test("a change that is refused may be half done: it is unstable until a flush, also when it had been taken before", async () => {
  const peer = open((request) => (request.command === NBD_CMD_WRITE ? simple(request, 28) : agree(request)));
  const { target, memory } = peer;
  const unstable = (): [number, number][] => {
    const ranges: [number, number][] = [];
    target.forEachUnstable((offset, length) => void ranges.push([offset, length]));
    return ranges;
  };
  const flush = async (): Promise<void> => {
    target.start(IO_FLUSH, 9, 0, 0, 0);
    expect(await peer.ended(1)).toEqual([[9, 0]]);
    expect([target.hasUnstable, unstable()]).toEqual([false, []]);
  };
  target.start(IO_WRITE, 1, 8192, 512, memory.address);
  expect(await peer.ended(1)).toEqual([[1, -28]]);
  expect([target.hasUnstable, unstable()]).toEqual([true, [[8192, 512]]]);
  await flush();
  target.start(IO_DISCARD, 2, 0, 4096, 0);
  expect(await peer.ended(1)).toEqual([[2, 0]]);
  const { servings } = target;
  peer.die({ reply: (request) => (request.command === NBD_CMD_TRIM ? simple(request, 28) : agree(request)) });
  await peer.until(() => target.servings > servings);
  expect([target.hasUnstable, unstable()]).toEqual([true, [[0, 4096]]]);
  await flush();
});

test("a disk that is held for long enough fails, and what closes is not held for long", async () => {
  const peer = open(() => undefined);
  const { target, memory } = peer;
  target.start(IO_WRITE, 1, 0, 512, memory.address);
  await peer.until(() => peer.requests.length === 1);
  peer.stopListening();
  await peer.until(() => said.length > 1);
  target.start(IO_READ, 2, 0, 512, memory.address);
  target.limitHold(0);
  target.start(IO_FLUSH, 3, 0, 0, 0);
  expect(await peer.ended(3)).toEqual([
    [1, EIO],
    [2, EIO],
    [3, EIO],
  ]);
});

const changes: readonly (readonly [string, Partial<PeerOptions>])[] = [
  ["only 512 bytes", { sizeBytes: 512 }],
  ["read-only", { flags: 1 | 2 | 4 | 32 }],
  ["no longer flush", { flags: 1 | 32 }],
  ["no longer trim", { flags: 1 | 4 }],
  ["blocks of 4096 bytes", { minBlockBytes: 4096 }],
  ["only 32768 bytes at once", { maxBlockBytes: 32_768 }],
];
test.each(changes)("a server that is back with an export of %s holds the disk", async (why, options) => {
  const peer = open(agree);
  const { target, memory } = peer;
  target.start(IO_WRITE, 1, 0, 512, memory.address);
  await peer.ended(1);
  peer.die(options);
  await peer.until(() => target.failure?.includes(why) === true);
  target.start(IO_READ, 2, 0, 512, memory.address);
  peer.die({ sizeBytes: 2 * SIZE, flags: 1 | 4 | 32, minBlockBytes: 512, maxBlockBytes: 65_536 });
  expect(await peer.ended(1)).toEqual([[2, 512]]);
});

const FUA = 8;
const WRITE_ZEROES = 64;
const SEVERAL = 256;
const MIB = 1024 * 1024;

/** A target of a server that offers all there is, once it serves. */
async function openRich(): Promise<TargetAndPeer> {
  said.length = 0;
  const options = { reply: agree, flags: 1 | 4 | 32 | FUA | WRITE_ZEROES | SEVERAL, maxBlockBytes: 32 * MIB };
  fixture = new TargetAndPeer(options, 60_000, {
    holdMs: Infinity,
    onHeld: (why) => void said.push(why ?? ""),
  });
  await fixture.until(() => fixture?.target.isServing === true);
  expect(fixture.live).toBe(4);
  return fixture;
}

const unused: readonly (readonly [string, number, Partial<PeerOptions>])[] = [
  ["write through its cache", 4, { flags: 1 | 4 | 32 | WRITE_ZEROES | SEVERAL }],
  ["write zeroes", 4, { flags: 1 | 4 | 32 | FUA | SEVERAL }],
  ["take more at once than is sent", 4, { maxBlockBytes: 4 * MIB }],
  ["take several connections", 1, { flags: 1 | 4 | 32 | FUA | WRITE_ZEROES }],
];
test.each(unused)(
  "a server that is back and can no longer %s serves, with %d connections",
  async (_, count, options) => {
    const peer = await openRich();
    const { target, memory, requests } = peer;
    for (const tag of [1, 2, 3, 4]) target.start(IO_WRITE, tag, tag * 4096, 512, memory.address);
    await peer.ended(4);
    requests.length = 0;
    let most = 0;
    const reply = (request: SeenRequest): Uint8Array => {
      most = Math.max(most, peer.live);
      return agree(request);
    };
    peer.die({ ...options, reply });
    await peer.until(() => target.servings === 2);
    for (const tag of [1, 2, 3, 4]) target.start(IO_READ, tag, tag * 4096, 512, memory.address);
    await peer.ended(4);
    target.start(IO_FLUSH, 5, 0, 0, 0);
    expect(await peer.ended(1)).toEqual([[5, 0]]);
    expect([peer.live, most]).toEqual([count, count]);
    expect(requests.filter(({ command }) => command === NBD_CMD_WRITE)).toHaveLength(4);
    expect([target.hasUnstable, said.length]).toEqual([false, 2]);
  },
);

test("no connection joins another at a server that comes to take only one meanwhile", async () => {
  const peer = await openRich();
  const { target } = peer;
  const { opened } = peer;
  peer.die();
  await peer.until(() => peer.opened === opened + 2);
  peer.become({ flags: 1 | 4 | 32 });
  await peer.until(() => target.servings === 2);
  await peer.settle();
  expect([peer.live, peer.opened]).toEqual([1, opened + 2]);
});

test("a server that comes to take several connections gets them", async () => {
  const peer = open(agree);
  await peer.until(() => peer.target.isServing);
  expect(peer.live).toBe(1);
  peer.die({ flags: 1 | 4 | 32 | SEVERAL });
  await peer.until(() => peer.target.servings === 2);
  expect(peer.live).toBe(4);
});

/** Starts one read after the other until the operation with tag 1 has ended; returns its result. */
async function readUntilEnded(peer: TargetAndPeer): Promise<number> {
  const { target, memory, ends } = peer;
  for (;;) {
    target.start(IO_READ, 9, 0, 512, memory.address);
    await peer.until(() => ends.length > 0);
    const [tag, result] = ends.shift() as End;
    if (tag === 1) return result;
  }
}

test.each([
  ["read", IO_READ, 512],
  ["write", IO_WRITE, 512],
  ["flush", IO_FLUSH, 0],
  ["trim", IO_DISCARD, 0],
] as const)(
  "a server that replies to all but one %s is given up, and asked again",
  async (name, op, result) => {
    let lost: SeenRequest | undefined;
    const peer = open(
      (request) => {
        const isIt = request.offset === 8192 || request.command === NBD_CMD_FLUSH;
        if (lost !== undefined || !isIt) return agree(request);
        lost = request;
        return undefined;
      },
      { silenceMs: 300, endingMs: 100, connections: 1 },
    );
    const [offset, length] = op === IO_FLUSH ? [0, 0] : [8192, 512];
    peer.target.start(op, 1, offset, length, peer.memory.address + 4096);
    expect(await readUntilEnded(peer)).toBe(result);
    expect(said).toEqual([`it has replied to what was asked 300 ms after a ${name}, and not to that`, ""]);
  },
);

test("a server that is slow with one request has twice the time for it on each new connection", async () => {
  const peer = open(
    (request, connection) => {
      if (request.offset !== 8192) return agree(request);
      setTimeout(() => connection.readyState > 0 && connection.write(agree(request)), 1500);
      return undefined;
    },
    { silenceMs: 200, connections: 1 },
  );
  peer.target.start(IO_READ, 1, 8192, 512, peer.memory.address + 4096);
  expect(await readUntilEnded(peer)).toBe(512);
  const whys = said.filter((it) => it !== "");
  expect(whys.length).toBeGreaterThan(1);
  expect(whys).toEqual(
    whys.map((_, at) => expect.stringContaining(`asked ${200 * 2 ** at} ms after a read`)),
  );
});

test("a server that does not take again what it had taken holds the disk", async () => {
  const peer = open(agree);
  const { target, memory } = peer;
  target.start(IO_WRITE, 1, 0, 512, memory.address);
  await peer.ended(1);
  peer.die({ reply: (request) => simple(request, 28) });
  await peer.until(() => target.failure?.includes("does not take again") === true);
  peer.die({ reply: agree });
  await peer.until(() => target.isServing);
});

test("a server that is shutting down refuses nothing: everything is asked of the next one", async () => {
  const ESHUTDOWN = 108;
  const error = Buffer.alloc(6);
  error.writeUInt32BE(ESHUTDOWN);
  let isEnding = false;
  const refuse = (request: SeenRequest): Uint8Array =>
    request.command === 0 ? chunk(request, 0x8001, true, error) : simple(request, ESHUTDOWN);
  const peer = open((request) => (isEnding ? refuse(request) : agree(request)));
  const { target, memory } = peer;
  for (const [op, result] of [
    [IO_WRITE, 512],
    [IO_READ, 512],
    [IO_FLUSH, 0],
    [IO_DISCARD, 0],
  ] as const) {
    await peer.until(() => target.isServing);
    isEnding = true;
    target.start(op, op, 0, op === IO_FLUSH ? 0 : 512, memory.address);
    await peer.until(() => !target.isServing);
    expect(target.failure).toContain("shutting down");
    isEnding = false;
    expect(await peer.ended(1)).toEqual([[op, result]]);
  }
});

test("a server that is shutting down is not read from any more where a disk is not held", async () => {
  const ESHUTDOWN = 108;
  const seen: SeenRequest[] = [];
  const peer = open((request) => void seen.push(request), { holdMs: 0 });
  const { target, memory, ends } = peer;
  for (const tag of [1, 2, 3]) target.start(IO_WRITE, tag, tag * 4096, 512, memory.address);
  await peer.until(() => seen.length === 3);
  // All in one read.
  peer.send(Buffer.concat(seen.map((request, at) => simple(request, at === 0 ? ESHUTDOWN : 0))));
  expect(await peer.ended(3)).toEqual([
    [1, EIO],
    [2, EIO],
    [3, EIO],
  ]);
  await peer.settle();
  expect(ends).toEqual([]);
});

test("a trim that is not taken again is forgotten: what it left is undefined anyway", async () => {
  const peer = open(agree);
  const { target, memory, requests } = peer;
  target.start(IO_DISCARD, 1, 0, 4096, 0);
  target.start(IO_WRITE, 2, 8192, 512, memory.address);
  await peer.ended(2);
  requests.length = 0;
  peer.die({ reply: (request) => (request.command === NBD_CMD_TRIM ? simple(request, 95) : agree(request)) });
  await peer.until(() => requests.length === 2 && target.isServing);
  target.start(IO_FLUSH, 3, 0, 0, 0);
  expect(await peer.ended(1)).toEqual([[3, 0]]);
  requests.length = 0;
  peer.die();
  await peer.until(() => !target.isServing);
  await peer.until(() => target.isServing);
  expect(requests).toEqual([]);
});

test("a log is taken up by the next one, whole records only, and not by another export", () => {
  const dir = temporaryDirectory();
  const path = join(dir, "log");
  const first = WriteLog.open(path, "a", LOG_BYTES);
  expect(first.found).toBe("no log");
  for (const offset of [512, 1024, 512]) {
    first.reserve(NBD_CMD_WRITE, offset, 512);
    first.commit(0);
  }
  first.refused(1, 0);
  // Not committed when xentool was killed.
  first.reserve(NBD_CMD_WRITE, 4096, 512);
  first.close(false);
  const kept = readFileSync(path);
  const next = WriteLog.open(path, "a", LOG_BYTES);
  expect(next.found).toBe("ours");
  const records = Array.from({ length: next.next - next.first }, (_, at) => next.first + at);
  expect(records.map((it) => [next.offset(it), next.isVoid(it)])).toEqual([
    [512, false],
    [1024, true],
    [512, false],
  ]);
  // They are stable only when they have been replied to once more.
  next.settle(100);
  expect(next.isEmpty).toBe(false);
  for (const record of records) next.answered(record, 1);
  next.settle(1);
  next.close(false);
  const empty = WriteLog.open(path, "b", LOG_BYTES);
  expect(empty.found).toBe("nothing");
  empty.close(true);
  writeFileSync(path, kept);
  const other = WriteLog.open(path, "b", LOG_BYTES);
  expect([other.found, other.isEmpty]).toEqual(["another export's", true]);
  other.close(true);
  // Another layout: its records are none, however much they look like ours.
  kept[0] ^= 1;
  writeFileSync(path, kept);
  const anew = WriteLog.open(path, "a", LOG_BYTES);
  anew.reserve(NBD_CMD_WRITE, 0, 512);
  anew.commit(0);
  anew.close(false);
  const last = WriteLog.open(path, "a", LOG_BYTES);
  expect([anew.found, last.next - last.first]).toEqual(["no log", 1]);
  last.close(true);
  removeDirectory(dir);
});

test("a log that is empty begins again where it began, with pages that are in use already", () => {
  const dir = temporaryDirectory();
  const path = join(dir, "log");
  const log = WriteLog.open(path, "a", LOG_BYTES);
  const add = (): number => {
    expect(log.reserve(NBD_CMD_WRITE, 0, 4096)).toBe(true);
    return log.commit(0);
  };
  const start = log.address(add());
  expect(log.address(add())).toBe(start + 4096);
  log.answered(0, 1);
  log.answered(1, 1);
  log.settle(1);
  const record = add();
  expect(log.address(record)).toBe(start);
  log.close(false);
  const next = WriteLog.open(path, "a", LOG_BYTES);
  expect([next.found, next.first, next.next]).toEqual(["ours", record, record + 1]);
  next.close(true);
  removeDirectory(dir);
});
