// Frontends that offer a ring in no way of the field's, and have to be served or refused all the same. (The ways of
// the field are in test/traces.)
import { afterEach, beforeEach, expect, test } from "bun:test";
import { readFileSync } from "node:fs";
import { frontendDir } from "../../src/blkback/address.ts";
import type { BlkbackDevice } from "../../src/blkback/device/device.ts";
import type { Image } from "../../src/block/image.ts";
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

test("keys that come after the state: refused for want of them, and served when they are there", async () => {
  await guest.untilBackend(2);
  await guest.setState(3);
  await guest.untilBackend(5);
  await guest.writeSingly(guest.makeRing());
  await guest.untilBackend(4);
  expect(await xenstore.tryRead(`${frontendDir(at)}/state`)).toBe("3");
  await expectDisk(1);
});
