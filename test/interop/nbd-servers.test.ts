// The NBD client against other people's servers, unmodified: nbdkit with its filters, qemu-nbd, qemu-storage-daemon and
// nbd-server.
import { describe, expect, test } from "bun:test";
import { join } from "node:path";
import { resolveHost } from "../../src/block/targets/nbd/in-turn.ts";
import { probeExport } from "../../src/block/targets/nbd/probe.ts";
import { parseNbdUri } from "../../src/block/targets/nbd/uri.ts";
import { describeError, kindOf } from "../../src/core/errors.ts";
import { NBD_FLAG_CAN_MULTI_CONN, NBD_FLAG_SEND_FLUSH, NBD_FLAG_SEND_TRIM } from "../../src/protocol/nbd.ts";
import { IO_READ, IO_WRITE } from "../../src/native/reactor.ts";
import {
  EXPORT_BYTES,
  type NbdServer,
  nbdkit,
  nbdServer,
  qemuNbd,
  storageDaemon,
} from "../support/nbd-servers.ts";
import { chosenSeed, Random } from "../support/random.ts";
import { NbdExport } from "./nbd-export.ts";

const EROFS = -30;
const FILE = (dir: string): readonly string[] => ["file", join(dir, "disk.img")];
const logged = (dir: string): readonly string[] => [...FILE(dir), `logfile=${join(dir, "log")}`];
const count = (text: string, word: RegExp): number => text.match(new RegExp(word, "g"))?.length ?? 0;

interface Judge {
  readonly start: () => Promise<NbdServer>;
  readonly structured?: false;
  /** Its bytes do not reach the image. */
  readonly isElsewhere?: true;
  /** It replies to a trim and leaves the bytes. */
  readonly trims?: false;
}

/** Refuses requests that are not whole blocks, or above the largest one. */
const strict = (least: number, most: number): Promise<NbdServer> =>
  nbdkit(["blocksize-policy"], (dir) => [
    ...FILE(dir),
    `blocksize-minimum=${least}`,
    `blocksize-preferred=${Math.max(4096, least)}`,
    `blocksize-maximum=${most}`,
    "blocksize-error-policy=error",
  ]);

const JUDGES: Readonly<Record<string, Judge>> = {
  "qemu-nbd": { start: () => qemuNbd() },
  "qemu-storage-daemon": { start: storageDaemon },
  // 3.24 punches a hole of no bytes: fallocate(5, FALLOC_FL_KEEP_SIZE|FALLOC_FL_PUNCH_HOLE, 4194304, 0) = -1 EINVAL.
  "nbd-server": { start: nbdServer, structured: false, trims: false },
  "nbdkit file": { start: () => nbdkit([], FILE) },
  "nbdkit, simple replies": { start: () => nbdkit([], FILE, "--no-sr"), structured: false },
  "nbdkit, delayed": { start: () => nbdkit(["delay"], (dir) => [...FILE(dir), "rdelay=2ms", "wdelay=1ms"]) },
  "nbdkit, copy on write": { start: () => nbdkit(["cow"], FILE), isElsewhere: true },
  "nbdkit, a limited rate": { start: () => nbdkit(["rate"], (dir) => [...FILE(dir), "rate=800M"]) },
  "nbdkit, 512 bytes to 64 KiB": { start: () => strict(512, 65536) },
  "nbdkit, blocks of 4 KiB": { start: () => strict(4096, 65536) },
  "nbdkit, blocks of 64 KiB": { start: () => strict(65536, 1 << 20) },
};

describe.each(Object.entries(JUDGES))("%s", (_, judge) => {
  const { start, structured = true, isElsewhere = false, trims = true } = judge;
  const seed = chosenSeed();
  test(`size, bytes, flush and trim (SEED=${seed})`, async () => {
    await using server = await start();
    using disk = await NbdExport.open(server.uri);
    expect(disk.seen).toMatchObject({ sizeBytes: EXPORT_BYTES, structured });
    expect(disk.target.info).toMatchObject({ sizeBytes: EXPORT_BYTES, readOnly: false, canDiscard: true });
    const random = new Random(seed);
    const model = Buffer.alloc(EXPORT_BYTES, 1);
    for (let round = 0; round < 12; round++) {
      const at = random.below(EXPORT_BYTES / 512 / 2) * 512;
      const bytes = Buffer.alloc((1 + random.below(round % 3 === 0 ? 1024 : 16)) * 512, round + 2);
      expect(disk.write(at, bytes)).toBe(0);
      model.set(bytes, at);
    }
    expect(disk.flush()).toBe(0);
    if (!isElsewhere) expect(server.image.equals(model)).toBe(true);
    for (let at = 0; at < EXPORT_BYTES; at += 2 ** 21)
      expect(model.subarray(at, at + 2 ** 21).equals(disk.read(at, 2 ** 21) as Uint8Array)).toBe(true);
    const blocksBefore = server.imageBlocks;
    expect(disk.discard(4 * 2 ** 20, 2 ** 20)).toBe(0);
    const trimmed = disk.read(4 * 2 ** 20, 2 ** 20) as Uint8Array;
    if (trims) model.fill(0, 4 * 2 ** 20, 5 * 2 ** 20);
    else model.set(trimmed, 4 * 2 ** 20);
    const [at, length] = [4 * 2 ** 20 - 4096, 2 ** 20 + 8192];
    expect(model.subarray(at, at + length).equals(disk.read(at, length) as Uint8Array)).toBe(true);
    if (isElsewhere) return;
    expect(disk.flush()).toBe(0);
    expect(server.image.equals(model)).toBe(true);
    // Not written as zeroes.
    if (trims) expect(blocksBefore - server.imageBlocks).toBe(2 ** 20 / 512);
  });

  test("many sectors of the same blocks at once", async () => {
    await using server = await start();
    using disk = await NbdExport.open(server.uri);
    const { memory, target } = disk;
    for (let tag = 0; tag < 64; tag++) {
      memory.bytes.fill(tag + 100, tag * 512, (tag + 1) * 512);
      target.start(IO_WRITE, tag, 5 * 512 + tag * 512, 512, memory.address + tag * 512);
    }
    expect(disk.ended(64)).toEqual(Array.from({ length: 64 }, () => 512));
    const bytes = Buffer.from(memory.bytes.subarray(0, 64 * 512));
    expect(bytes.equals(disk.read(5 * 512, 64 * 512) as Uint8Array)).toBe(true);
    expect(disk.read(69 * 512, 512)).toEqual(new Uint8Array(512).fill(1));
  });

  test("many operations at once", async () => {
    await using server = await start();
    using disk = await NbdExport.open(server.uri);
    const { memory, target } = disk;
    for (let tag = 0; tag < 64; tag++) {
      memory.bytes.fill(tag + 100, tag * 16384, (tag + 1) * 16384);
      target.start(IO_WRITE, tag, tag * 65536, 16384, memory.address + tag * 16384);
    }
    expect(disk.ended(64)).toEqual(Array.from({ length: 64 }, () => 16384));
    memory.bytes.fill(0);
    for (let tag = 0; tag < 64; tag++)
      target.start(IO_READ, tag, tag * 65536, 16384, memory.address + tag * 16384);
    expect(disk.ended(64)).toEqual(Array.from({ length: 64 }, () => 16384));
    for (let tag = 0; tag < 64; tag++)
      expect(memory.bytes.subarray(tag * 16384, (tag + 1) * 16384).every((it) => it === tag + 100)).toBe(
        true,
      );
  });
});

describe("several connections", () => {
  test("as many as were asked for, and a flush for each that has written", async () => {
    await using server = await nbdkit(["log"], logged);
    using disk = await NbdExport.open(server.uri, 3);
    const { memory, target } = disk;
    for (let tag = 0; tag < 48; tag++) target.start(IO_WRITE, tag, tag * 65536, 65536, memory.address);
    disk.ended(48);
    expect(disk.flush()).toBe(0);
    // The first one is the control side's, which asks for the export's size.
    expect(count(server.log, / Connect export/)).toBe(4);
    const writers = new Set([...server.log.matchAll(/connection=(\d+) Write/g)].map(([, id]) => id));
    expect([...writers].sort()).toEqual(["2", "3", "4"]);
    expect(count(server.log, / Flush /)).toBe(3);
    // They are sent when every write has been replied to.
    expect(server.log.lastIndexOf("...Write")).toBeLessThan(server.log.indexOf(" Flush "));
  });

  test("a server that does not allow several gets one", async () => {
    await using server = await nbdkit(["log", "multi-conn"], (dir) => [
      ...logged(dir),
      "multi-conn-mode=disable",
    ]);
    using disk = await NbdExport.open(server.uri);
    expect(disk.seen.flags & NBD_FLAG_CAN_MULTI_CONN).toBe(0);
    for (let tag = 0; tag < 16; tag++)
      disk.target.start(IO_WRITE, tag, tag * 4096, 4096, disk.memory.address);
    disk.ended(16);
    expect(count(server.log, / Connect export/)).toBe(2);
  });
});

describe("what a server does not do is not asked of it:", () => {
  test("flush", async () => {
    await using server = await nbdkit(["log"], (dir) => [
      "eval",
      `logfile=${join(dir, "log")}`,
      `get_size=echo ${EXPORT_BYTES}`,
      "pread=head -c $3 /dev/zero",
      "pwrite=cat > /dev/null",
    ]);
    using disk = await NbdExport.open(server.uri);
    expect(disk.seen.flags & (NBD_FLAG_SEND_FLUSH | NBD_FLAG_SEND_TRIM)).toBe(0);
    expect(disk.target.info.canDiscard).toBe(false);
    expect(disk.write(0, new Uint8Array(512))).toBe(0);
    expect(disk.flush()).toBe(0);
    expect(count(server.log, / Flush /)).toBe(0);
  });

  test.each([
    ["qemu-nbd", () => qemuNbd("--read-only")],
    ["nbdkit", () => nbdkit([], FILE, "--readonly")],
  ])("writes to a read-only export of %s", async (_, start) => {
    await using server = await start();
    expect(await NbdExport.open(server.uri).catch(describeError)).toContain(
      "is read-only; --mode r serves it",
    );
    using disk = await NbdExport.open(server.uri, 4, true);
    expect(disk.target.info).toMatchObject({ readOnly: true, canDiscard: false });
    expect(disk.write(0, new Uint8Array(512))).toBe(EROFS);
    expect(disk.discard(0, 4096)).toBe(EROFS);
    expect(disk.read(512, 512)).toEqual(new Uint8Array(512).fill(1));
  });
});

test("an error of the server fails the requests that it is for", async () => {
  await using server = await nbdkit(["error"], (dir) => [
    ...FILE(dir),
    "error-pwrite=ENOSPC",
    "error-pwrite-rate=100%",
  ]);
  using disk = await NbdExport.open(server.uri);
  expect(disk.write(0, new Uint8Array(4096))).toBe(-28);
  expect(disk.read(0, 512)).toEqual(new Uint8Array(512).fill(1));
});

describe("refused, with the reason:", () => {
  const refusal = async (uri: string) => probeExport(parseNbdUri(uri)).catch(describeError);

  test("a host that is not found, and one that is not waited for", async () => {
    const { tls: _, ...nowhere } = parseNbdUri("nbd://storage.invalid");
    expect(await resolveHost(nowhere).catch(describeError)).toContain(
      "cannot find the NBD server's host storage",
    );
    const stopped = await resolveHost(nowhere, AbortSignal.abort()).catch(kindOf);
    expect(stopped).toBe("cancelled");
  });

  test("the old protocols", async () => {
    await using oldest = await nbdkit([], FILE, "--oldstyle");
    expect(await refusal(oldest.uri)).toContain("speaks only the old protocol");
    await using old = await nbdkit([], FILE, "--mask-handshake=0");
    expect(await refusal(old.uri)).toContain("does not speak fixed newstyle");
  });

  test("an export that is not there, and a server that is not", async () => {
    await using server = await qemuNbd();
    expect(await refusal(server.uri.replace("vm%207", "vm8"))).toContain("no such export");
    expect(await refusal("nbd+unix:///?socket=/nowhere/a.sock")).toContain("cannot reach");
  });
});
