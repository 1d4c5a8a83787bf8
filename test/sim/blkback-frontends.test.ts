// The ways of the field's frontends, step by step as their sources have them, each up to I/O that is compared. Which
// keys they write, in one transaction or one by one, which states they pass through, and what they wait for.
import { afterEach, beforeEach, describe, expect, test } from "bun:test";
import { readFileSync } from "node:fs";
import { frontendDir } from "../../src/blkback/address.ts";
import type { BlkbackDevice } from "../../src/blkback/device.ts";
import { closeDevice } from "../../src/blkback/toolstack.ts";
import type { Image } from "../../src/block/image.ts";
import { ABI_X86_32 } from "../../src/protocol/blkif.ts";
import type { Xenstore } from "../../src/xenstore/client.ts";
import type { HandmadeGuest } from "./blk-guest.ts";
import { pattern } from "./blk-harness.ts";
import { DiskWorld, diskAddress, IMAGE_BYTES } from "./disk-world.ts";

const at = diskAddress(1);

let world: DiskWorld;
let xenstore: Xenstore;
let image: Image;
let guest: HandmadeGuest;
let device: BlkbackDevice;

beforeEach(async () => {
  world = await DiskWorld.start({ domains: 2, personality: "xenstored-4.22" });
  ({ xenstore, image } = world);
  await world.create(at);
  guest = await world.guest(at);
  device = await world.serve(at);
});

afterEach(() => world.close());

/** Writes a page and reads it and its neighbour back, from the disk and from the image. */
async function expectDisk(byte: number): Promise<void> {
  const sector = 8 * byte;
  expect(await guest.write(sector, byte)).toBe(0);
  const expected = [new Uint8Array(4096).fill(byte), pattern(IMAGE_BYTES).slice(0, 4096)];
  expect([await guest.read(sector), await guest.read(0)]).toEqual(expected);
  const file = readFileSync(image.path);
  expect(new Uint8Array(file.subarray(sector * 512, sector * 512 + 4096))).toEqual(
    new Uint8Array(4096).fill(byte),
  );
}

/** Up to the disk: waits for the offer, writes all keys at once, waits for Connected. */
async function connectAsLinux(): Promise<void> {
  await guest.untilBackend(2);
  await guest.writeTogether({ ...guest.makeRing(), "feature-persistent": "1" });
  await guest.setState(3);
  await guest.untilBackend(4);
  await guest.setState(4);
}

describe("Linux", () => {
  test("connects; hot-unplug", async () => {
    await connectAsLinux();
    await expectDisk(1);
    await closeDevice(xenstore, at);
    await guest.untilBackend(5);
    await guest.setState(5);
    await guest.setState(6);
    expect(await device.ended).toBe("closed");
  });

  test("kexec: the next kernel starts over without a word to the last one's ring", async () => {
    await connectAsLinux();
    await expectDisk(1);
    await guest.setState(5);
    await guest.untilBackend(5);
    await guest.setState(6);
    await guest.untilBackend(6);
    await guest.setState(1);
    await connectAsLinux();
    await expectDisk(2);
  });

  // Linux e08dd1ee4983: the frontend resumes by making another ring, and finds the backend Connected as it was.
  test.each([
    ["with the same numbers", false],
    ["with others", true],
  ])("is back from s2idle %s, and waits for nothing", async (_name, another) => {
    await connectAsLinux();
    await expectDisk(1);
    for (const byte of [2, 3]) {
      await guest.writeTogether(guest.makeRing(0, another));
      await guest.setState(3);
      await guest.setState(4);
      await expectDisk(byte);
    }
  });

  test.each([
    ["and waits at Initialised", false, true],
    ["and is Connected at once", true, true],
    ["and is Connected at once, with the same numbers", true, false],
  ])("is back from s2idle while nobody serves it, %s", async (_name, isConnected, another) => {
    await connectAsLinux();
    await expectDisk(1);
    await device.abandon();
    await guest.writeTogether(guest.makeRing(0, another));
    await guest.setState(3);
    if (isConnected) await guest.setState(4);
    const pending = expectDisk(2);
    device = await world.serve(at);
    await pending;
    await guest.untilBackend(4);
    await guest.setState(4);
    await expectDisk(3);
  });
});

test("a ring in use that cannot be gone on with is waited for, but one that is offered instead is judged", async () => {
  await connectAsLinux();
  await expectDisk(1);
  await device.abandon();
  await guest.writeTogether({ "ring-ref": "nonsense" });
  device = await world.serve(at);
  await xenstore.waitFor("/local/domain/0/error/backend/qdisk/1/51728/error", (it) => it !== null);
  expect(await guest.backendKey("state")).toBe("4");
  await guest.writeTogether({ ...guest.makeRing(), protocol: "mips-abi" });
  await guest.untilBackend(5);
  await guest.writeTogether(guest.makeRing());
  await guest.untilBackend(4);
  await expectDisk(2);
});

test("Amazon's: after hibernation Closing and Closed, and then Initialised at once", async () => {
  await connectAsLinux();
  await expectDisk(1);
  await guest.setState(5);
  await guest.untilBackend(5);
  await guest.setState(6);
  await guest.untilBackend(6);
  await guest.writeTogether(guest.makeRing(0, true));
  await guest.setState(3);
  await guest.untilBackend(4);
  await guest.setState(4);
  await expectDisk(2);
});

test("mini-os, pvgrub: 32-bit layouts, Connected at once, and Initialising at the end; then the kernel's", async () => {
  guest.close();
  guest = await world.guest(at, ABI_X86_32);
  await guest.writeTogether({ ...guest.makeRing(), state: "4" });
  await guest.untilBackend(4);
  await expectDisk(1);
  await guest.setState(5);
  await guest.untilBackend(5);
  await guest.setState(6);
  await guest.untilBackend(6);
  await guest.setState(1);
  await guest.untilBackend(2);
  await guest.writeTogether({ "ring-ref": null, "event-channel": null });
  await connectAsLinux();
  await expectDisk(2);
});

test("OVMF: keys and Connected in one transaction, before the device is offered; then the kernel's", async () => {
  await device.abandon();
  await xenstore.write(`/local/domain/0/backend/qdisk/1/51728/state`, "1");
  await guest.writeTogether({ ...guest.makeRing(), state: "4" });
  device = await world.serve(at);
  await guest.untilBackend(4);
  await expectDisk(1);
  await guest.setState(5);
  await guest.untilBackend(5);
  await guest.setState(6);
  await guest.untilBackend(6);
  await guest.setState(1);
  await guest.untilBackend(2);
  await connectAsLinux();
  await expectDisk(2);
});

test("Windows' XENVBD: reads features at InitWait; one queue, by number and with flat keys", async () => {
  await guest.untilBackend(2);
  const features = ["feature-flush-cache", "feature-barrier", "feature-discard", "discard-alignment"];
  expect(await Promise.all(features.map((key) => guest.backendKey(key)))).toEqual(["1", "1", "1", "0"]);
  await guest.writeTogether({
    ...guest.makeRing(),
    "target-id": "1",
    "feature-surprise-remove": "1",
    "feature-online-resize": "1",
    "feature-large-sector-size": "1",
    "multi-queue-num-queues": "1",
  });
  await guest.setState(3);
  await guest.untilBackend(4);
  await guest.setState(4);
  await expectDisk(1);
});

test("FreeBSD: keys one by one", async () => {
  await guest.untilBackend(2);
  const { "ring-ref": ref = null, ...others } = guest.makeRing();
  await guest.writeSingly({ "ring-ref": ref, ...others });
  await guest.setState(3);
  await guest.untilBackend(4);
  await guest.setState(4);
  await expectDisk(1);
});

test("keys that come after the state: refused for want of them, and served when they are there", async () => {
  await guest.untilBackend(2);
  await guest.setState(3);
  await guest.untilBackend(5);
  await guest.writeSingly(guest.makeRing());
  await guest.untilBackend(4);
  expect(await xenstore.tryRead(`${frontendDir(at)}/state`)).toBe("3");
  await expectDisk(1);
});
