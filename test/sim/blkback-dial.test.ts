// A guest's process that cannot get a connection to its disk's server, because `watch` refuses it or because it has no
// room for a descriptor, asks again.
import { expect, test } from "bun:test";
import { BlkbackDevice } from "../../src/blkback/device/device.ts";
import { openNbdImage } from "../../src/block/image/nbd.ts";
import { dialServer } from "../../src/block/targets/nbd/dial.ts";
import { XentoolError } from "../../src/core/errors.ts";
import { nbdkit } from "../support/nbd-servers.ts";
import { DiskWorld, diskAddress, spawnWorker } from "./disk-world.ts";

const ADDRESS = diskAddress(1);

test("a connection that is refused is asked for again", async () => {
  await using server = await nbdkit([], (dir) => ["file", `${dir}/disk.img`]);
  const world = await DiskWorld.start({ domains: 2 });
  await world.create(ADDRESS);
  const image = await openNbdImage(server.uri, { readOnly: false, sectorSizeBytes: 512 });
  let asked = 0;
  const dial = async (): Promise<number> => {
    if (asked++ < 2)
      throw new XentoolError("environment", "this process has no more descriptors to open files");
    return dialServer(image.address);
  };
  const { dom0, xenstore, options } = world;
  const device = await BlkbackDevice.start(dom0, xenstore, ADDRESS, image, { ...options, dial }, spawnWorker);
  const guest = await world.guest(ADDRESS);
  await guest.connect();
  expect(await guest.read(8)).toEqual(new Uint8Array(4096).fill(1));
  expect(asked).toBeGreaterThan(2);
  await device.abandon();
  await world.close();
});
