// A qcow2 on a file system that is full for a while, and not by our doing: what needs no room goes on, what needs some
// is refused to the guest. Once there is room again nothing is lost, and the image is sound. Root is needed.
import { afterEach, beforeEach, expect, test } from "bun:test";
import { mkdirSync, readFileSync, rmSync, statfsSync, writeFileSync } from "node:fs";
import { readUntil, start, type Child } from "../support/process.ts";
import { detach } from "./disk-host.ts";
import { executable } from "./executable.ts";
import { judge, ProgramDisks } from "./program-disks.ts";

const MIB = 1024 * 1024;
const SECTORS = 512;
const CLUSTER = 65_536 / SECTORS;
const [OKAY, FAILED] = [0, -1];
/** Has data in all of its clusters up to here, and none after. */
const HOLE = (2 * MIB) / SECTORS;
const page = (byte: number): Uint8Array => new Uint8Array(4096).fill(byte);

let world: ProgramDisks;
let holder: Child;
let image: string;
/** The file system, as seen from there and from here. */
let place: string;
let placeFromHere: string;

beforeEach(async () => {
  world = await ProgramDisks.start({ "disk.img": new Uint8Array(8 * MIB).fill(5, 0, 2 * MIB) });
  place = world.path("small");
  mkdirSync(place);
  image = `${place}/disk.qcow2`;
  const mounts = `mount -t tmpfs -o size=8m none ${place} && echo there && exec sleep infinity`;
  holder = start(["unshare", "--mount", "sh", "-c", mounts]);
  await readUntil(holder.stdout, "there");
  placeFromHere = `/proc/${holder.pid}/root${place}`;
});
afterEach(async () => {
  holder.kill("SIGKILL");
  await holder.exited;
  await world.close();
});

const inside = (...argv: string[]): string[] => ["nsenter", `--mount=/proc/${holder.pid}/ns/mnt`, ...argv];

function fillUp(): void {
  const { bavail, bsize } = statfsSync(placeFromHere);
  writeFileSync(`${placeFromHere}/ballast`, new Uint8Array(bavail * bsize));
  expect(statfsSync(placeFromHere).bavail).toBe(0);
}

test.each([
  ["yes", "64k"],
  ["no", "64k"],
  // With more than one table of the second level.
  ["yes", "4k"],
  ["no", "4k"],
])("in place: %s, clusters of %s", async (inPlace, bytes) => {
  const how = ["-O", "qcow2", "-o", `cluster_size=${bytes}`];
  await judge(...inside("qemu-img", "convert", "-q", ...how, world.path("disk.img"), image));
  const serve = ["blkback", "serve", image, "--domid", "1", "--vdev", "xvdb", "--format", "qcow2"];
  const argv = inside(executable, "-v", ...serve, "--in-place", inPlace);
  const server = start(argv, { env: { ...process.env, ...world.disks.env } });
  await readUntil(server.stderr, "offering");
  const guest = await world.guest("xvdb");
  // Has its cluster before, and is acknowledged without a flush.
  expect(await guest.write(HOLE, 6)).toBe(OKAY);

  fillUp();
  for (let round = 1; round <= 3; round++) {
    for (let cluster = 1; cluster <= 8; cluster++)
      expect(await guest.write(HOLE + cluster * CLUSTER, 9)).toBe(FAILED);
    expect(await guest.write(8, round)).toBe(OKAY);
    expect(await guest.read(8)).toEqual(page(round));
    expect(await guest.read(HOLE)).toEqual(page(6));
    expect(await guest.read(16)).toEqual(page(5));
    expect(await guest.flush()).toBe(OKAY);
  }

  rmSync(`${placeFromHere}/ballast`);
  expect(await guest.write(HOLE + CLUSTER, 7)).toBe(OKAY);
  expect(await guest.write(HOLE + 3 * CLUSTER, 8)).toBe(OKAY);
  expect(await guest.flush()).toBe(OKAY);
  expect(await guest.read(HOLE + CLUSTER)).toEqual(page(7));
  expect(await detach(server, guest)).toBe(143);

  await judge(...inside("qemu-img", "check", "-q", image));
  const out = world.path("out.img");
  await judge(...inside("qemu-img", "convert", "-f", "qcow2", "-O", "raw", image, out));
  const expected = readFileSync(world.path("disk.img"));
  for (const [sector, byte] of [
    [8, 3],
    [HOLE, 6],
    [HOLE + CLUSTER, 7],
    [HOLE + 3 * CLUSTER, 8],
  ] as const)
    expected.fill(byte, sector * SECTORS, sector * SECTORS + 4096);
  const held = readFileSync(out);
  // A write that was refused may have been done.
  for (let cluster = 1; cluster <= 8; cluster++) {
    const at = (HOLE + cluster * CLUSTER) * SECTORS;
    if (held[at] === 9) expected.fill(9, at, at + 4096);
  }
  expect(Buffer.compare(held, expected)).toBe(0);
});
