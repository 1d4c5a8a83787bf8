// Which of a qcow2's clusters xentool reads and writes itself: shown by a storage daemon that is stopped. And that
// nobody else's bytes are touched: snapshots, backing files, what the daemon keeps for backups.
import { afterEach, beforeEach, describe, expect, test } from "bun:test";
import { closeSync, openSync, readFileSync, renameSync, statSync, writeSync } from "node:fs";
import { readUntil } from "../support/process.ts";
import { judge, ProgramDisks, programItself, type ProgramDisk } from "./program-disks.ts";

const DAEMON = "qemu-storage-daemon";
const MIB = 1024 * 1024;
const SECTORS = 512;
/** In the first cluster of any size, and in one that starts out as zeroes. */
const [DATA, HOLE] = [8, (3 * MIB) / SECTORS];
/** In another cluster, and with data, too. */
const SHARED = MIB / SECTORS;
const page = (byte: number): Uint8Array => new Uint8Array(4096).fill(byte);

let world: ProgramDisks;
let raw: string;
let image: string;
beforeEach(async () => {
  const bytes = new Uint8Array(4 * MIB).fill(5, 0, 2 * MIB);
  world = await ProgramDisks.start({ "disk.img": bytes });
  raw = world.path("disk.img");
  image = world.path("disk.qcow2");
});
afterEach(() => world.close());

const convert = (...how: string[]): Promise<string> =>
  judge("qemu-img", "convert", "-q", "-O", "qcow2", ...how, raw, image);
const connect = (...options: string[]): Promise<ProgramDisk> =>
  world.connect(image, "xvdb", "--format", "qcow2", ...options);

/** What `act` resolves to while the daemon is stopped. */
async function withoutDaemon<T>(act: () => Promise<T>): Promise<T> {
  const daemon = programItself(DAEMON, image);
  process.kill(daemon, "SIGSTOP");
  try {
    return await act();
  } finally {
    process.kill(daemon, "SIGCONT");
  }
}

/** What the entry at `position` of the image names. */
function entryAt(position: number): number {
  return Number(readFileSync(image).readBigUInt64BE(position) & 0x00ff_ffff_ffff_fe00n);
}

/** Has the entry at `position` of the image name `place`, as a sole owner. */
function writeEntry(position: number, place: number): void {
  const entry = Buffer.alloc(8);
  entry.writeBigUInt64BE(BigInt(place) | (1n << 63n));
  const fd = openSync(image, "r+");
  writeSync(fd, entry, 0, entry.length, position);
  closeSync(fd);
}

/** Has the table that describes `sector` read: what is asked of the target next comes after that. */
async function lookUp({ guest }: ProgramDisk, sector: number): Promise<void> {
  for (let i = 0; i < 8; i++) await guest.read(sector);
}

/** What the image holds at `sector`, as QEMU reads it. */
async function held(sector: number): Promise<number> {
  const out = world.path("out.img");
  await judge("qemu-img", "convert", "-f", "qcow2", "-O", "raw", image, out);
  return readFileSync(out)[sector * SECTORS];
}

describe("in place", () => {
  test.each([
    ["version 2", ["-o", "compat=0.10"], []],
    ["version 3", [], []],
    ["lazy refcounts", ["-o", "lazy_refcounts=on"], []],
    ["small clusters", ["-o", "cluster_size=4096"], []],
    ["large clusters", ["-o", "cluster_size=2M"], []],
    ["preallocated", ["-o", "preallocation=full"], []],
    ["direct", [], ["--direct", "--sector-size", "4096"]],
  ])("%s", async (_, how, options) => {
    await convert(...how);
    const disk = await connect(...options);
    const { guest } = disk;
    await lookUp(disk, DATA);
    await withoutDaemon(async () => {
      expect(await guest.read(DATA)).toEqual(page(5));
      expect(await guest.write(DATA, 6)).toBe(0);
      expect(await guest.read(DATA)).toEqual(page(6));
      expect(await guest.flush()).toBe(0);
      // Somebody else sees it already: it is in the file.
      expect(readFileSync(image).includes(page(6))).toBe(true);
    });
    expect(await disk.end()).toBe(143);
    expect(await held(DATA)).toBe(6);
    await judge("qemu-img", "check", "-q", image);
  });

  test("a new image that was made with its tables takes its first write", async () => {
    await judge("qemu-img", "create", "-q", "-f", "qcow2", "-o", "preallocation=metadata", image, "4M");
    expect(statSync(image).blocks * SECTORS).toBeLessThan(MIB);
    const disk = await connect();
    const { guest } = disk;
    await lookUp(disk, HOLE);
    await withoutDaemon(async () => {
      expect(await guest.write(HOLE, 7)).toBe(0);
      expect(await guest.read(HOLE)).toEqual(page(7));
      expect(await guest.read(HOLE + 8)).toEqual(page(0));
      expect(await guest.flush()).toBe(0);
    });
    expect(await disk.end()).toBe(143);
    expect(await held(HOLE)).toBe(7);
    await judge("qemu-img", "check", "-q", image);
  });

  test("what is not allocated reads as zeroes; what is, once a flush has written the tables", async () => {
    await convert();
    const disk = await connect();
    const { guest } = disk;
    await lookUp(disk, HOLE);
    await withoutDaemon(async () => expect(await guest.read(HOLE)).toEqual(page(0)));
    expect(await guest.write(HOLE, 7)).toBe(0);
    expect(await guest.flush()).toBe(0);
    await lookUp(disk, HOLE);
    await withoutDaemon(async () => {
      expect(await guest.read(HOLE)).toEqual(page(7));
      expect(await guest.read(HOLE + 8)).toEqual(page(0));
      expect(await guest.write(HOLE + 8, 8)).toBe(0);
    });
    expect(await disk.end()).toBe(143);
    expect([await held(HOLE), await held(HOLE + 8)]).toEqual([7, 8]);
  });

  test("before that flush it is the daemon's, which may still forget it", async () => {
    await convert();
    const disk = await connect();
    const { guest } = disk;
    await lookUp(disk, DATA);
    expect(await guest.write(HOLE, 7)).toBe(0);
    await lookUp(disk, HOLE);
    process.kill(programItself(DAEMON, image), "SIGKILL");
    await readUntil(disk.server.stderr, "it is served now");
    expect(await guest.read(HOLE)).toEqual(page(7));
    expect(await guest.write(HOLE, 8)).toBe(0);
    expect(await guest.read(HOLE)).toEqual(page(8));
    expect(await disk.end()).toBe(143);
    expect(await held(HOLE)).toBe(8);
  });

  test("what was trimmed is not written in place, and its room is given back", async () => {
    await convert();
    const disk = await connect();
    const { guest } = disk;
    await lookUp(disk, DATA);
    const before = statSync(image).blocks;
    expect(await guest.trim(0, (2 * MIB) / SECTORS)).toBe(0);
    expect(await guest.write(DATA, 9)).toBe(0);
    expect(await guest.flush()).toBe(0);
    expect(await guest.read(DATA)).toEqual(page(9));
    expect(statSync(image).blocks).toBeLessThan(before - 2000);
    expect(await disk.end()).toBe(143);
    expect([await held(DATA), await held(DATA + 8)]).toEqual([9, 0]);
    await judge("qemu-img", "check", "-q", image);
  });

  test("for reading alone", async () => {
    await convert();
    const disk = await connect("--mode", "r");
    await lookUp(disk, DATA);
    await withoutDaemon(async () => expect(await disk.guest.read(DATA)).toEqual(page(5)));
    expect(await disk.end()).toBe(143);
  });
});

describe("not in place", () => {
  test.each([
    ["extended entries", ["-o", "extended_l2=on"], "its features"],
    ["a data file", ["-o", "data_file=data.raw"], "its features"],
    ["clusters of 512 bytes", ["-o", "cluster_size=512"], "its clusters are smaller"],
  ])("%s", async (_, how, reason) => {
    await convert(...how.map((it) => it.replace("data.raw", world.path("data.raw"))));
    const disk = await connect();
    await lookUp(disk, DATA);
    await readUntil(disk.server.stderr, reason);
    expect(await disk.guest.write(DATA, 6)).toBe(0);
    expect(await disk.guest.read(DATA)).toEqual(page(6));
    expect(await disk.end()).toBe(143);
    expect(await held(DATA)).toBe(6);
  });

  test("bitmaps for backups: the daemon alone knows how to keep them", async () => {
    await convert();
    await judge("qemu-img", "bitmap", "--add", "--enable", "-g", "64k", image, "since-monday");
    const disk = await connect();
    await lookUp(disk, DATA);
    await readUntil(disk.server.stderr, "it has bitmaps");
    expect(await disk.guest.write(DATA, 6)).toBe(0);
    expect(await disk.end()).toBe(143);
    const info = JSON.parse(await judge("qemu-img", "info", "--output=json", image)) as {
      "format-specific": { data: { bitmaps: readonly { name: string; flags: readonly string[] }[] } };
    };
    expect(info["format-specific"].data.bitmaps).toMatchObject([{ name: "since-monday", flags: ["auto"] }]);
    const copy = world.path("copy.qcow2");
    await judge("qemu-img", "convert", "-f", "qcow2", "-O", "qcow2", "--bitmaps", image, copy);
    await judge("qemu-img", "check", "-q", image);
  });
});

describe("a corrupt image, in which the guest's data are said to be in", () => {
  test.each<[string, (header: Buffer) => number]>([
    ["the first level's table", (header) => Number(header.readBigUInt64BE(40))],
    ["the table of refcounts", (header) => Number(header.readBigUInt64BE(48))],
    ["a block of refcounts", (header) => entryAt(Number(header.readBigUInt64BE(48)))],
    ["the table itself", (header) => entryAt(Number(header.readBigUInt64BE(40)))],
    ["the table of snapshots", (header) => Number(header.readBigUInt64BE(64))],
  ])("%s: the daemon refuses to write there", async (_, placeOf) => {
    await convert();
    await judge("qemu-img", "snapshot", "-c", "before", image);
    await judge("qemu-io", "-f", "qcow2", "-c", "write -P 6 0 64k", image);
    const header = readFileSync(image);
    const place = placeOf(header);
    const table = entryAt(Number(header.readBigUInt64BE(40)));
    writeEntry(table + 8 * (SHARED / (65_536 / SECTORS)), place);
    const bytesThere = (): Buffer => readFileSync(image).subarray(place, place + 4096);
    const before = bytesThere();
    const disk = await connect();
    const { guest } = disk;
    await lookUp(disk, DATA);
    await withoutDaemon(async () => expect(await guest.read(DATA)).toEqual(page(6)));
    expect(await guest.write(SHARED, 7)).toBe(-1);
    await readUntil(disk.server.stderr, "invalid write on metadata");
    expect(bytesThere().equals(before)).toBe(true);
    // The last flush fails: QEMU does nothing more with such an image.
    expect(await disk.end()).toBe(5);
  });
});

describe("what is somebody else's, too", () => {
  test("an internal snapshot keeps its bytes, and is read in place once the table is not its, too", async () => {
    await convert();
    await judge("qemu-img", "snapshot", "-c", "before", image);
    const disk = await connect();
    const { guest } = disk;
    await lookUp(disk, DATA);
    expect(await guest.read(DATA)).toEqual(page(5));
    expect(await guest.write(DATA, 6)).toBe(0);
    expect(await guest.flush()).toBe(0);
    await lookUp(disk, DATA);
    await withoutDaemon(async () => {
      expect(await guest.read(DATA)).toEqual(page(6));
      expect(await guest.write(DATA, 7)).toBe(0);
      expect(await guest.read(SHARED)).toEqual(page(5));
    });
    expect(await disk.end()).toBe(143);
    expect(await held(DATA)).toBe(7);
    await judge("qemu-img", "snapshot", "-a", "before", image);
    await judge("qemu-img", "check", "-q", image);
    await judge("qemu-img", "compare", "-q", "-f", "raw", "-F", "qcow2", raw, image);
  });

  test("a snapshot that somebody else made while the daemon was away keeps its bytes, too", async () => {
    await convert();
    const disk = await connect();
    const { guest } = disk;
    await lookUp(disk, DATA);
    await withoutDaemon(async () => expect(await guest.write(DATA, 6)).toBe(0));
    const away = world.path("away.qcow2");
    const daemon = programItself(DAEMON, image);
    renameSync(image, away);
    process.kill(daemon, "SIGKILL");
    await readUntil(disk.server.stderr, `${image} is gone`);
    await judge("qemu-img", "snapshot", "-c", "between", away);
    renameSync(away, image);
    await readUntil(disk.server.stderr, "it is served now");
    expect(await guest.write(DATA, 7)).toBe(0);
    expect(await disk.end()).toBe(143);
    expect(await held(DATA)).toBe(7);
    await judge("qemu-img", "snapshot", "-a", "between", image);
    expect(await held(DATA)).toBe(6);
    await judge("qemu-img", "check", "-q", image);
  });

  test.each(["raw", "qcow2"])("a backing file in format %s is read, and keeps its bytes", async (format) => {
    const base = world.path(`base.${format}`);
    await judge("qemu-img", "convert", "-q", "-O", format, raw, base);
    const before = readFileSync(base);
    await judge("qemu-img", "create", "-q", "-f", "qcow2", "-b", base, "-F", format, image);
    const disk = await connect();
    const { guest } = disk;
    await lookUp(disk, DATA);
    expect(await guest.read(DATA)).toEqual(page(5));
    expect(await guest.read(HOLE)).toEqual(page(0));
    expect(await guest.write(DATA, 6)).toBe(0);
    expect(await guest.flush()).toBe(0);
    await lookUp(disk, DATA);
    await withoutDaemon(async () => {
      expect(await guest.read(DATA)).toEqual(page(6));
      expect(await guest.read(DATA + 8)).toEqual(page(5));
    });
    expect(await disk.end()).toBe(143);
    expect([await held(DATA), await held(DATA + 8)]).toEqual([6, 5]);
    expect(readFileSync(base).equals(before)).toBe(true);
  });

  test.each(["zlib", "zstd"])(
    "clusters compressed by %s are the daemon's until they are written",
    async (kind) => {
      await convert("-c", "-o", `compression_type=${kind}`);
      const disk = await connect();
      const { guest } = disk;
      await lookUp(disk, DATA);
      expect(await guest.read(DATA)).toEqual(page(5));
      expect(await guest.write(DATA, 6)).toBe(0);
      expect(await guest.flush()).toBe(0);
      await lookUp(disk, DATA);
      await withoutDaemon(async () => expect(await guest.write(DATA, 7)).toBe(0));
      expect(await disk.end()).toBe(143);
      expect([await held(DATA), await held(DATA + 8)]).toEqual([7, 5]);
      await judge("qemu-img", "check", "-q", image);
    },
  );
});
