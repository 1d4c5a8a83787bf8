// What a former server of a disk left in its log of writes, for a successor that finds an NBD server with other limits:
// it is sent as that server takes it, or the disk is held.
import { afterEach, beforeEach, expect, test } from "bun:test";
import { join } from "node:path";
import { asPromised } from "../../src/block/targets/nbd/export-check.ts";
import type { SeenExport } from "../../src/block/targets/nbd/handshake.ts";
import { WriteLog } from "../../src/block/targets/nbd/write-log.ts";
import { IO_FLUSH, IO_WRITE } from "../../src/native/reactor.ts";
import { NBD_CMD_FLUSH, NBD_CMD_TRIM, NBD_CMD_WRITE, NBD_FLAG_SEND_FLUSH } from "../../src/protocol/nbd.ts";
import { removeDirectory, temporaryDirectory } from "../support/temporary.ts";
import { LOG_BYTES, simple, TargetAndPeer, type SeenRequest } from "./nbd-target-peer.ts";

const MOST = 65_536;
const FLUSHES = 1 | 4;

let dir: string;
let fixture: TargetAndPeer | undefined;
beforeEach(() => {
  dir = temporaryDirectory();
});
afterEach(() => {
  fixture?.close();
  fixture = undefined;
  removeDirectory(dir);
});

const reopen = (): WriteLog => WriteLog.open(join(dir, "log"), "a", LOG_BYTES);

/** Leaves records in the log, as a server that is killed does. */
function leave(...records: readonly (readonly [command: number, offset: number, length: number])[]): void {
  const log = reopen();
  for (const [command, offset, length] of records) {
    log.reserve(command, offset, length);
    log.commit(0);
  }
  log.close(false);
}

/** A target that takes the log over, from a server that takes MOST bytes at once. */
function takeOver(reply: (request: SeenRequest) => Uint8Array | undefined, flags?: number): TargetAndPeer {
  const options = flags === undefined ? { reply } : { reply, flags };
  return (fixture = new TargetAndPeer(options, 60_000, { holdMs: Infinity, log: reopen() }));
}

test("a record that is larger than what the server takes is sent in pieces, before what overlaps it", async () => {
  leave([NBD_CMD_WRITE, 0, 2 * MOST + 512], [NBD_CMD_WRITE, MOST, 512], [NBD_CMD_WRITE, 4 * MOST, 512]);
  const peer = takeOver((request) => simple(request));
  await peer.until(() => peer.target.isServing);
  const sent = peer.requests.map(({ offset, length }) => [offset, length]);
  expect(sent.slice(0, 3)).toEqual([
    [0, MOST],
    [MOST, MOST],
    [2 * MOST, 512],
  ]);
  expect(sent.slice(3).toSorted()).toEqual([
    [4 * MOST, 512],
    [MOST, 512],
  ]);
  peer.target.start(IO_FLUSH, 1, 0, 0, 0);
  expect(await peer.ended(1)).toEqual([[1, 0]]);
});

test("a record that was sent in part is sent again as a whole", async () => {
  leave([NBD_CMD_WRITE, 0, 2 * MOST]);
  const peer = takeOver((request) => (request.offset === 0 ? simple(request) : undefined));
  await peer.until(() => peer.requests.length === 2);
  peer.die({ reply: (request) => simple(request) });
  await peer.until(() => peer.target.isServing);
  expect(peer.requests.map(({ offset }) => offset)).toEqual([0, MOST, 0, MOST]);
});

test.each([[[]], [[[NBD_CMD_WRITE, 0, 512]]]] as const)(
  "a server that may not have replied to all is connected to anew: %j",
  async (records) => {
    leave(...records);
    const peer = takeOver((request) => simple(request));
    await peer.until(() => peer.target.isServing);
    expect(peer.anew).toEqual([records.length > 0]);
  },
);

test("trims are left out for a server that has none", async () => {
  leave([NBD_CMD_TRIM, 0, 4096], [NBD_CMD_WRITE, 8192, 512]);
  const peer = takeOver((request) => simple(request), FLUSHES);
  await peer.until(() => peer.target.isServing);
  expect(peer.requests.map(({ command }) => command)).toEqual([NBD_CMD_WRITE]);
  peer.target.start(IO_FLUSH, 1, 0, 0, 0);
  await peer.ended(1);
});

test("what a former server was refused takes no room from one without flushes", async () => {
  leave([NBD_CMD_WRITE, 0, LOG_BYTES], [NBD_CMD_TRIM, 0, 512]);
  const log = reopen();
  for (const record of [0, 1]) log.refused(record, 1);
  log.close(false);
  const peer = takeOver((request) => simple(request), 1);
  peer.target.start(IO_WRITE, 1, 0, 512, peer.memory.address);
  await peer.until(() => peer.target.isServing);
  await peer.settle();
  expect(peer.ends).toEqual([[1, 512]]);
  expect(peer.target.hasUnstable).toBe(false);
});

const SEEN: SeenExport = {
  sizeBytes: 1 << 20,
  flags: FLUSHES,
  structured: true,
  minBlockBytes: 512,
  preferredBlockBytes: 4096,
  maxBlockBytes: MOST,
};

test("an export is as the log needs it: in blocks of what is in it, and able to flush if it was", () => {
  leave([NBD_CMD_WRITE, 8192, 4096], [NBD_CMD_WRITE, 0, 12_288]);
  const log = reopen();
  const larger = { ...SEEN, minBlockBytes: 65_536, flags: 1 };
  expect(asPromised(larger, log, true)).toEqual({ ...larger, minBlockBytes: 4096 });
  asPromised(SEEN, log, false);
  log.close(false);
  const next = reopen();
  expect(asPromised(larger, next, true).flags & NBD_FLAG_SEND_FLUSH).not.toBe(0);
  // A guest that connects anew relies on nothing that was before.
  expect(asPromised(larger, next, false).flags & NBD_FLAG_SEND_FLUSH).toBe(0);
  expect(asPromised(larger, next, true).flags & NBD_FLAG_SEND_FLUSH).toBe(0);
  next.close(true);
});

test("that flushes had an effect is known also of a log that a flush has emptied", () => {
  const log = reopen();
  asPromised(SEEN, log, false);
  log.close(false);
  const next = reopen();
  expect(next.found).toBe("nothing");
  const without = { ...SEEN, flags: 1 };
  expect(asPromised(without, next, true).flags & NBD_FLAG_SEND_FLUSH).not.toBe(0);
  next.close(false);
  // Nothing is known of another export.
  const other = WriteLog.open(join(dir, "log"), "b", LOG_BYTES);
  expect(asPromised(without, other, true).flags & NBD_FLAG_SEND_FLUSH).toBe(0);
  other.close(true);
});

const impossible: readonly (readonly [string, number, number, number])[] = [
  ["an offset that is no number", NBD_CMD_WRITE, NaN, 512],
  ["an offset within a byte", NBD_CMD_WRITE, 0.5, 512],
  ["an offset before the disk", NBD_CMD_TRIM, -512, 512],
  ["a length within a byte", NBD_CMD_WRITE, 0, 511.5],
  ["a length that is no number", NBD_CMD_TRIM, 0, NaN],
  ["a command that changes nothing", NBD_CMD_FLUSH, 0, 0],
  ["no command", 1.5, 0, 512],
];
test.each(impossible)("what can be no record of ours is none: %s", (_, command, offset, length) => {
  leave([NBD_CMD_WRITE, 0, 512], [command, offset, length], [NBD_CMD_WRITE, 0, 512]);
  const log = reopen();
  expect([log.found, log.next - log.first]).toEqual(["ours", 1]);
  expect(log.wholeIn(4096)).toBe(512);
  log.close(true);
});
