// When grants are kept: only if both ends said so before the ring was made, whichever server serves it then. A mapping
// held against the word of a former server would cost the guest its disk.
import { afterEach, beforeEach, expect, test } from "bun:test";
import type { GrantMode } from "../../src/blkback/data-plane/data/path.ts";
import type { HandmadeGuest } from "./blk-guest.ts";
import { DiskWorld, diskAddress } from "./disk-world.ts";

const at = diskAddress(1);

let world: DiskWorld;
let guest: HandmadeGuest;

beforeEach(async () => {
  world = await DiskWorld.start({ domains: 2 });
  await world.create(at);
  guest = await world.guest(at);
});

afterEach(() => world.close());

async function serve(grantMode: GrantMode): Promise<void> {
  await world.serve(at, { grantMode });
}

/** Another server takes over the ring in use. */
async function replace(grantMode: GrantMode): Promise<void> {
  await world.abandonAll();
  await serve(grantMode);
}

async function connect(persistent: string | null): Promise<void> {
  await guest.untilBackend(2);
  await guest.offerRing({ "feature-persistent": persistent });
  await guest.untilBackend(4);
  await guest.setState(4);
}

/** Whether the guest's page stays mapped when requests have been answered. */
async function isKept(): Promise<boolean> {
  expect(await guest.write(8, 7)).toBe(0);
  expect(await guest.read(8)).toEqual(new Uint8Array(4096).fill(7));
  return world.host
    .usage()
    .some(({ kind, domid, id }) => kind === "map" && domid === at.frontend && id === guest.dataRef);
}

test.each([
  ["copy", "1", "0", false],
  ["map", "1", "0", false],
  ["persistent", null, "1", false],
  ["persistent", "0", "1", false],
  ["persistent", "yes", "1", false],
  ["persistent", "1", "1", true],
] as const)("--grants %s, the guest wrote %s", async (grantMode, persistent, offered, kept) => {
  await serve(grantMode);
  await connect(persistent);
  expect(await guest.backendKey("feature-persistent")).toBe(offered);
  expect(await isKept()).toBe(kept);
  expect(await guest.backendKey("feature-persistent")).toBe(offered);
});

test("a server that would keep does not, for a guest that was told otherwise", async () => {
  await serve("copy");
  await connect("1");
  for (let round = 0; round < 2; round++) {
    await replace("persistent");
    expect(await isKept()).toBe(false);
    // The guest does not look again, so nothing may look different to the next server either.
    expect(await guest.backendKey("feature-persistent")).toBe("0");
  }
});

test("a server that copies may follow one that keeps, and the other way round again", async () => {
  await serve("persistent");
  await connect("1");
  expect(await isKept()).toBe(true);
  await replace("copy");
  expect(await isKept()).toBe(false);
  await replace("map");
  expect(await isKept()).toBe(false);
  await replace("persistent");
  expect(await isKept()).toBe(true);
});

test("a guest that starts over is told anew", async () => {
  await serve("copy");
  await connect("1");
  await replace("persistent");
  expect(await isKept()).toBe(false);
  await guest.setState(6);
  await guest.untilBackend(6);
  await guest.setState(1);
  await connect("1");
  expect(await guest.backendKey("feature-persistent")).toBe("1");
  expect(await isKept()).toBe(true);
});
