// The ground of most tests of blkback's control side: a host, an image, the servers of it and the guests, all real. It
// ends by asserting that nothing is left.
import { expect } from "bun:test";
import { writeFileSync } from "node:fs";
import { join } from "node:path";
import type { DeviceAddress } from "../../src/blkback/address.ts";
import { BlkbackDevice, type DeviceOptions } from "../../src/blkback/device/device.ts";
import { DEFAULT_OFFER } from "../../src/blkback/device/features.ts";
import { createDevice } from "../../src/blkback/toolstack.ts";
import { closeImage, openImage, type Image } from "../../src/block/image.ts";
import { toDomid } from "../../src/core/types.ts";
import type { SimPlatform } from "../../src/platform/sim.ts";
import type { BlkifAbi } from "../../src/protocol/blkif.ts";
import { SimHost, type SimHostOptions } from "../../src/sim/host.ts";
import { Xenstore } from "../../src/xenstore/client.ts";
import { removeDirectory, temporaryDirectory } from "../support/temporary.ts";
import { HandmadeGuest } from "./blk-guest.ts";
import { pattern } from "./blk-harness.ts";

export const IMAGE_BYTES = 1 << 20;

export const spawnWorker = (): Worker => new Worker(new URL("../../cmd/worker.ts", import.meta.url));

/** A disk of domain `domid`, which domain 0 serves as QEMU would. */
export function diskAddress(domid: number, devid = 51728): DeviceAddress {
  return { backend: toDomid(0), kind: "qdisk", frontend: toDomid(domid), devid };
}

/** Asserts that a guest read the page that the image had at `sector` from the beginning. */
export function expectPage(read: Uint8Array | number, sector: number): void {
  const expected = Buffer.from(pattern(IMAGE_BYTES)).subarray(sector * 512, sector * 512 + 4096);
  expect(Buffer.from(read as Uint8Array).equals(expected)).toBe(true);
}

export class DiskWorld {
  readonly #devices: BlkbackDevice[] = [];
  readonly #guests: HandmadeGuest[] = [];

  private constructor(
    readonly host: SimHost,
    readonly dom0: SimPlatform,
    readonly xenstore: Xenstore,
    readonly dir: string,
    readonly image: Image,
    /** What `serve` serves with unless it is told otherwise. */
    readonly options: DeviceOptions,
  ) {}

  /** Without `content` every sector of the image differs from every other. */
  static async start(options: SimHostOptions, content = pattern(IMAGE_BYTES)): Promise<DiskWorld> {
    const host = await SimHost.start(options);
    const dom0 = host.platform(0);
    const xenstore = await Xenstore.connect(dom0);
    const dir = temporaryDirectory();
    writeFileSync(join(dir, "disk.img"), content);
    const image = openImage(join(dir, "disk.img"), { readOnly: false, direct: false, sectorSizeBytes: 512 });
    return new DiskWorld(host, dom0, xenstore, dir, image, {
      offer: DEFAULT_OFFER,
      grantMode: "copy",
      engine: "uring",
      filters: [],
      statsDir: join(dir, "stats"),
      verbosity: 0,
    });
  }

  /** Makes the device, as a toolstack does. */
  create(address: DeviceAddress): Promise<void> {
    const params = this.image.path;
    return createDevice(this.xenstore, { address, readOnly: false, deviceType: "disk", params });
  }

  async serve(
    address: DeviceAddress,
    change: Partial<DeviceOptions> = {},
    spawn = spawnWorker,
  ): Promise<BlkbackDevice> {
    const options = { ...this.options, ...change };
    const { dom0, xenstore, image } = this;
    const device = await BlkbackDevice.start(dom0, xenstore, address, image, options, spawn);
    this.#devices.push(device);
    return device;
  }

  async guest(address: DeviceAddress, abi?: BlkifAbi): Promise<HandmadeGuest> {
    const guest = await HandmadeGuest.start(this.host, address, abi);
    this.#guests.push(guest);
    return guest;
  }

  /** Abandons every device, as a server that is killed does: the guests keep their rings. */
  async abandonAll(): Promise<void> {
    for (const device of this.#devices.splice(0)) await device.abandon();
  }

  async close(): Promise<void> {
    await this.abandonAll();
    for (const guest of this.#guests.splice(0)) guest.close();
    closeImage(this.image);
    removeDirectory(this.dir);
    this.xenstore.close();
    this.dom0.close();
    const left = await this.host.settle();
    await this.host.stop();
    expect(left).toEqual([]);
  }
}
