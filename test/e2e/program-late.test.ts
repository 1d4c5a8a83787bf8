// A program of ours that lives and has left a write without a reply: it must not come after newer writes, so that
// program is over before anything is sent again.
import { afterEach, beforeEach, expect, test } from "bun:test";
import { readFileSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { createDevice } from "../../src/blkback/toolstack.ts";
import { attempt } from "../../src/block/image/attempt.ts";
import { parseVdev } from "../../src/protocol/blkif.ts";
import { Xenstore } from "../../src/xenstore/client.ts";
import type { HandmadeGuest } from "../sim/blk-guest.ts";
import { diskAddress } from "../sim/disk-world.ts";
import { readUntil } from "../support/process.ts";
import { judge, ProgramDisks, programItself, untilNone, untilProgram } from "./program-disks.ts";

const [INITIALISING, CLOSED] = [1, 6];
const FAILED = -1;
const SECTOR = 8;
const SIZE = 1 << 20;
const page = (byte: number): Uint8Array => new Uint8Array(4096).fill(byte);
/** Half of it passes until a program is silent. */
const PATIENCE_MS = 120_000;

let world: ProgramDisks;
beforeEach(async () => {
  world = await ProgramDisks.start({ "disk.img": new Uint8Array(SIZE) });
});
afterEach(() => world.close());

test("one that has cut a connection", async () => {
  const [image, cuts, pids] = [world.path("disk.img"), world.path("cuts"), world.path("pids")];
  const script = join(import.meta.dirname, "../support/forgetful-nbd.ts");
  const how = JSON.stringify({ image, cuts });
  const program = `sh -c 'echo $$ >>${pids}; exec "${process.execPath}" ${script} "$0"' '${how}'`;
  const disk = await world.connect(image, "xvdb", "--via", program, "--connections", "1");
  const { guest } = disk;
  expect(await guest.read(SECTOR)).toEqual(page(0));
  writeFileSync(cuts, "");
  expect(await guest.write(SECTOR, 1)).toBe(0);
  expect(await guest.write(SECTOR, 2)).toBe(0);
  await Bun.sleep(2000);
  expect(await guest.read(SECTOR)).toEqual(page(2));
  expect(readFileSync(pids, "utf8").trim().split("\n")).toHaveLength(2);
  expect(await disk.end()).toBe(143);
});

/** Lets go of a disk with a write under way, connects again, and writes the same place. */
async function comeBack(guest: HandmadeGuest, image: string): Promise<void> {
  guest.patienceMs = PATIENCE_MS;
  const daemon = programItself("qemu-storage-daemon", image);
  process.kill(daemon, "SIGSTOP");
  const first = guest.write(SECTOR, 1);
  // It is under way: otherwise it would stay on the ring.
  await Bun.sleep(500);
  await guest.setState(CLOSED);
  expect(await first).toBe(FAILED);
  await guest.untilBackend(CLOSED);
  await guest.setState(INITIALISING);
  await guest.connect();
  const next = guest.write(SECTOR, 2);
  await Bun.sleep(500);
  attempt(() => process.kill(daemon, "SIGCONT"));
  expect(await next).toBe(0);
  expect(await guest.flush()).toBe(0);
  expect(await guest.read(SECTOR)).toEqual(page(2));
  expect(await untilProgram("qemu-storage-daemon", image)).not.toBe(daemon);
}

async function expectHeld(image: string): Promise<void> {
  await untilNone(image);
  await judge("qemu-img", "check", "-q", image);
  await judge("qemu-img", "convert", "-f", "qcow2", "-O", "raw", image, `${image}.raw`);
  const held = readFileSync(`${image}.raw`).subarray(SECTOR * 512, SECTOR * 512 + 4096);
  expect(Buffer.compare(held, page(2))).toBe(0);
}

test(
  "one that is silent, when the guest has let go, with `serve` and in the process of a guest",
  async () => {
    const [served, watched] = [world.path("served.qcow2"), world.path("watched.qcow2")];
    for (const image of [served, watched])
      await judge("qemu-img", "create", "-q", "-f", "qcow2", image, String(SIZE));
    const disk = await world.connect(served, "xvdb", "--format", "qcow2");
    const dom0 = world.disks.host.platform(0);
    const xenstore = await Xenstore.connect(dom0);
    const at = diskAddress(2, parseVdev("xvdb"));
    const watch = world.spawn(["-v", "blkback", "watch", "--kind", at.kind, "--any-script"]);
    const params = `qcow2:${watched}`;
    await createDevice(xenstore, { address: at, readOnly: false, deviceType: "disk", params });
    await readUntil(watch.stderr, "InitWait");
    const other = await world.guest("xvdb", 2);
    await Promise.all([comeBack(disk.guest, served), comeBack(other, watched)]);
    // In `serve`, what was lost with the first connection is its exit status.
    expect(await disk.end()).toBe(5);
    await other.setState(CLOSED);
    watch.kill("SIGTERM");
    await watch.exited;
    await expectHeld(served);
    await expectHeld(watched);
    other.close();
    for (const domid of ["1", "2"])
      await world.run(["blkback", "destroy", "--domid", domid, "--vdev", "xvdb"]);
    xenstore.close();
    dom0.close();
  },
  2 * PATIENCE_MS,
);
