// A disk served by the real backend on a simulated host, for tests of the frontend; with an NBD server on
// top where one is wanted. Closing it asserts that nothing is left: not a grant, port, watch, descriptor or file.
import { expect } from "bun:test";
import { readdirSync, readFileSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import type { DeviceAddress } from "../../src/blkback/address.ts";
import { BlkbackDevice, type DeviceOptions } from "../../src/blkback/device/device.ts";
import type { GrantMode } from "../../src/blkback/data-plane/data/path.ts";
import { DEFAULT_OFFER, type Offer } from "../../src/blkback/device/features.ts";
import { createDevice, destroyDevice } from "../../src/blkback/toolstack.ts";
import { closeImage, openImage, type Image } from "../../src/block/image.ts";
import { BlockFrontend, type FrontendOptions } from "./block-frontend.ts";
import type { Disk } from "../../src/blkfront/handshake.ts";
import { runSession, type SessionEnd, type SessionOptions } from "../../src/blkfront/session.ts";
import { toDomid } from "../../src/core/types.ts";
import { listenAt } from "../../src/native/unix-listener.ts";
import type { SimPlatform } from "../../src/platform/sim.ts";
import { SimHost, type SimHostOptions } from "../../src/sim/host.ts";
import { Xenstore } from "../../src/xenstore/client.ts";
import { pattern } from "./blk-harness.ts";
import { removeDirectory, temporaryDirectory } from "../support/temporary.ts";
import { openDescriptors } from "../support/descriptors.ts";
import { spawnWorker } from "./disk-world.ts";

export const VDEV = "xvdb";
const DEVID = 51728;

export interface DiskOptions {
  readonly imageBytes?: number;
  readonly readOnly?: boolean;
  readonly offer?: Partial<Offer>;
  readonly grantMode?: GrantMode;
  readonly filters?: readonly string[];
  readonly host?: SimHostOptions;
}

export class ServedDisk {
  readonly host: SimHost;
  readonly dom0: SimPlatform;
  readonly guest: SimPlatform;
  readonly xenstore: Xenstore;
  readonly dir: string;
  readonly imagePath: string;
  readonly address: DeviceAddress;
  device: BlkbackDevice;
  readonly #image: Image;
  readonly #options: DeviceOptions;
  readonly #fdsBefore: number;
  readonly #frontends: BlockFrontend[] = [];
  readonly #servers: RunningNbd[] = [];

  static async start(options: DiskOptions = {}): Promise<ServedDisk> {
    const fdsBefore = openDescriptors().length;
    const host = await SimHost.start({ domains: 2, ...options.host });
    const dom0 = host.platform(0);
    const xenstore = await Xenstore.connect(dom0);
    const dir = temporaryDirectory();
    const imagePath = join(dir, "disk.img");
    writeFileSync(imagePath, pattern(options.imageBytes ?? 4 << 20));
    const offer = { ...DEFAULT_OFFER, ...options.offer };
    const readOnly = options.readOnly ?? false;
    const image = openImage(imagePath, {
      readOnly,
      shared: false,
      direct: false,
      sectorSizeBytes: offer.logicalSectorBytes,
    });
    const address = { backend: toDomid(0), kind: "qdisk", frontend: toDomid(1), devid: DEVID };
    await createDevice(xenstore, { address, readOnly, deviceType: offer.deviceType, params: imagePath });
    const served: DeviceOptions = {
      offer,
      grantMode: options.grantMode ?? "copy",
      engine: "uring",
      filters: ["assert", ...(options.filters ?? [])],
      statsDir: join(dir, "stats"),
      verbosity: 0,
    };
    const device = await BlkbackDevice.start(dom0, xenstore, address, image, served, spawnWorker);
    return new ServedDisk(host, dom0, xenstore, dir, imagePath, address, image, served, device, fdsBefore);
  }

  private constructor(
    host: SimHost,
    dom0: SimPlatform,
    xenstore: Xenstore,
    dir: string,
    imagePath: string,
    address: DeviceAddress,
    image: Image,
    options: DeviceOptions,
    device: BlkbackDevice,
    fdsBefore: number,
  ) {
    this.host = host;
    this.dom0 = dom0;
    this.guest = host.platform(1);
    this.xenstore = xenstore;
    this.dir = dir;
    this.imagePath = imagePath;
    this.address = address;
    this.#image = image;
    this.#options = options;
    this.device = device;
    this.#fdsBefore = fdsBefore;
  }

  async connect(options: FrontendOptions = {}): Promise<BlockFrontend> {
    const frontend = await BlockFrontend.connect(this.guest, VDEV, options);
    this.#frontends.push(frontend);
    return frontend;
  }

  /** Ends the backend as a crash would, without a word, and starts another on the same device. */
  async replaceBackend(): Promise<void> {
    await this.device.abandon();
    const { dom0, xenstore, address } = this;
    this.device = await BlkbackDevice.start(dom0, xenstore, address, this.#image, this.#options, spawnWorker);
  }

  /** The disk as an NBD server, until the harness is closed or `stop` is called on it. */
  async nbd(options: Partial<SessionOptions> = {}): Promise<RunningNbd> {
    const server = await RunningNbd.start(this, options);
    this.#servers.push(server);
    return server;
  }

  image(): Buffer {
    return readFileSync(this.imagePath);
  }

  async close(): Promise<void> {
    for (const server of this.#servers) await server.stop();
    for (const frontend of this.#frontends) await frontend.close();
    await this.device.abandon();
    await destroyDevice(this.xenstore, this.address);
    closeImage(this.#image);
    this.xenstore.close();
    this.guest.close();
    this.dom0.close();
    expect(await this.host.settle()).toEqual([]);
    await this.host.stop();
    expect(readdirSync(this.dir).filter((name) => name.endsWith(".sock"))).toEqual([]);
    removeDirectory(this.dir);
    await expectFds(this.#fdsBefore);
  }
}

/** `blkfront nbd` inside this process. */
export class RunningNbd {
  readonly path: string;
  readonly disk: Disk;
  readonly ended: Promise<SessionEnd>;
  readonly #stop: AbortController;

  private constructor(path: string, disk: Disk, ended: Promise<SessionEnd>, stop: AbortController) {
    this.path = path;
    this.disk = disk;
    this.ended = ended;
    this.#stop = stop;
  }

  /** Serves what `served.guest` finds as its xvdb, at a socket in `served.dir`. */
  static async start(
    served: { readonly guest: SimPlatform; readonly dir: string },
    options: Partial<SessionOptions> = {},
  ): Promise<RunningNbd> {
    const path = join(served.dir, "nbd.sock");
    const listener = listenAt(path);
    const stop = new AbortController();
    const connected = Promise.withResolvers<Disk>();
    const xenstore = await Xenstore.connect(served.guest);
    const ended = runSession(
      served.guest,
      xenstore,
      { devid: DEVID, verbosity: 0, ...options },
      { type: "nbd", listener: listener.fd, exportName: VDEV },
      spawnWorker,
      stop.signal,
      (disk) => connected.resolve(disk),
    ).finally(() => {
      listener.close();
      xenstore.close();
    });
    ended.catch((error: unknown) => connected.reject(error));
    return new RunningNbd(path, await connected.promise, ended, stop);
  }

  get uri(): string {
    return `nbd+unix:///?socket=${this.path}`;
  }

  async stop(): Promise<void> {
    this.#stop.abort();
    await this.ended.catch(() => {});
  }
}

/** Workers close their descriptors a moment after they were told to end. */
async function expectFds(count: number): Promise<void> {
  for (let attempt = 0; attempt < 200 && openDescriptors().length > count; attempt++) await Bun.sleep(10);
  const after = openDescriptors();
  expect(after.length > count ? after : []).toEqual([]);
}
