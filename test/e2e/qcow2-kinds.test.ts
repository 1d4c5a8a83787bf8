// Kinds of qcow2 images under a load that checks what it reads: writes, reads, trims and flushes at random, many at a
// time, in place and through the daemon. Afterwards QEMU finds the image sound, and in it what the guest last had.
import { afterEach, beforeEach, expect, test } from "bun:test";
import { readFileSync } from "node:fs";
import { BlockFrontend } from "../sim/block-frontend.ts";
import { compareUnderLoad } from "../sim/block-load.ts";
import { chosenSeed, Random } from "../support/random.ts";
import { judge, ProgramDisks } from "./program-disks.ts";

const SIZE = 32 << 20;
/** Of each image, besides one for each part of the disk. */
const OPERATIONS = 160;
const TRIMS = 0.15;

let world: ProgramDisks;
let base: string;
let image: string;
beforeEach(async () => {
  // Data, then a hole.
  const bytes = new Uint8Array(SIZE);
  for (let at = 0; at < SIZE / 2; at++) bytes[at] = (at >> 12) + 7 * at;
  world = await ProgramDisks.start({ "base.img": bytes });
  base = world.path("base.img");
  image = world.path("disk.qcow2");
});
afterEach(() => world.close());

const convert = ["convert", "-q", "-f", "raw", "-O", "qcow2"];
const overlay = ["create", "-q", "-f", "qcow2", "-F", "raw"];

test.each<[string, readonly string[]]>([
  ["clusters of 4 KiB", [...convert, "-o", "cluster_size=4k"]],
  ["clusters of 2 MiB", [...convert, "-o", "cluster_size=2M"]],
  ["tables for all of it", [...convert, "-o", "preallocation=metadata"]],
  ["a backing file", overlay],
  ["a backing file, version 2", [...overlay, "-o", "compat=0.10"]],
  ["compressed", [...convert, "-c"]],
  ["refcounts of one bit", [...convert, "-o", "refcount_bits=1"]],
  ["refcounts of 64 bits", [...convert, "-o", "refcount_bits=64"]],
  ["lazy refcounts", [...convert, "-o", "lazy_refcounts=on"]],
  ["extended entries", [...convert, "-o", "extended_l2=on"]],
])("%s", async (kind, how) => {
  const seed = chosenSeed();
  console.log(`qcow2-kinds, ${kind}: SEED=${seed}`);
  const isOverlay = how.includes("create");
  await judge("qemu-img", ...how, ...(isOverlay ? ["-b", base, image] : [base, image]));
  const copy = readFileSync(base);
  const server = await world.serve(image, "xvdb", "--format", "qcow2");
  const guest = world.disks.host.platform(1);
  const frontend = await BlockFrontend.connect(guest, "xvdb");
  let operations = 0;
  await compareUnderLoad(frontend, copy, new Random(seed), () => ++operations > OPERATIONS, TRIMS);
  server.kill("SIGTERM");
  await frontend.backendClosing;
  await frontend.close();
  expect(await server.exited).toBe(143);
  guest.close();
  await judge("qemu-img", "check", "-q", image);
  const out = world.path("out.img");
  await judge("qemu-img", "convert", "-f", "qcow2", "-O", "raw", image, out);
  expect(Buffer.compare(readFileSync(out), copy)).toBe(0);
});
