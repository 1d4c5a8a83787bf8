// The frontend's parts as an object with promises, in the calling thread: for tests, where convenience counts
// more than the last microsecond. The product drives the same parts from a worker (src/blkfront/session.ts).
import { XentoolError } from "../../src/core/errors.ts";
import { PAGE_SIZE } from "../../src/core/types.ts";
import type { Platform } from "../../src/platform/platform.ts";
import { PortStream } from "../../src/platform/port-stream.ts";
import {
  BLKIF_OP_READ,
  BLKIF_OP_WRITE,
  BLKIF_OP_WRITE_BARRIER,
  BLKIF_RSP_EOPNOTSUPP,
  BLKIF_RSP_OKAY,
  parseVdev,
  SECTOR_SIZE,
} from "../../src/protocol/blkif.ts";
import { Xenstore, type Unwatch, type WaitOptions } from "../../src/xenstore/client.ts";
import { FrontDevice } from "../../src/blkfront/device.ts";
import { FrontHandshake, type BackendEvent, type Disk } from "../../src/blkfront/handshake.ts";
import type { TransferOp } from "../../src/blkfront/lane.ts";
import { FrontDataPlane } from "../../src/blkfront/data-plane.ts";
import { chooseRings, type RingOptions } from "../../src/blkfront/ring-options.ts";

export interface FrontendOptions extends RingOptions {
  /** Bound of each wait for the backend. */
  readonly wait?: WaitOptions;
}

/** Larger transfers are made in pieces of this size, several at a time. */
const PIECE_BYTES = 256 << 10;

/** What is under way when the disk is closed gets this long. */
const DRAIN_MS = 10_000;

/** Starts an operation under a tag; false: there is no room yet. */
type Start = (tag: number) => boolean;

interface Waiting {
  readonly start: Start;
  readonly done: PromiseWithResolvers<void>;
}

export class BlockFrontend {
  /** Resolves when the backend wants the disk back, or is gone: close then. */
  readonly backendClosing: Promise<void>;
  readonly #xenstore: Xenstore;
  readonly #handshake: FrontHandshake;
  readonly #device: FrontDevice;
  readonly #plane: FrontDataPlane;
  readonly #pieceBytes: number;
  readonly #running: (PromiseWithResolvers<void> | undefined)[];
  readonly #freeTags: number[];
  readonly #waiting: Waiting[] = [];
  readonly #closing = Promise.withResolvers<void>();
  #disk: Disk;
  #events: PortStream | undefined;
  #unwatch: Unwatch | undefined;
  #closed: Promise<void> | undefined;

  private constructor(
    xenstore: Xenstore,
    handshake: FrontHandshake,
    device: FrontDevice,
    plane: FrontDataPlane,
    disk: Disk,
  ) {
    this.#xenstore = xenstore;
    this.#handshake = handshake;
    this.#device = device;
    this.#plane = plane;
    this.#disk = disk;
    this.backendClosing = this.#closing.promise;
    const tags = device.slots;
    this.#running = Array.from({ length: tags }, () => undefined);
    this.#freeTags = Array.from({ length: tags }, (_, tag) => tag);
    let pieceBytes = PIECE_BYTES;
    while (plane.transfersThatFit(pieceBytes) === 0) pieceBytes /= 2;
    this.#pieceBytes = pieceBytes;
    plane.onDone = (tag, status) => this.#done(tag, status);
  }

  /** Connects to `vdev` of the platform's own domain. Fails as the handshake does; then nothing is left. */
  static async connect(
    platform: Platform,
    vdev: string,
    options: FrontendOptions = {},
  ): Promise<BlockFrontend> {
    const devid = parseVdev(vdev);
    if (devid === undefined) throw new XentoolError("usage", `${vdev} is not a disk name such as xvdb`);
    await using cleanup = new AsyncDisposableStack();
    const xenstore = cleanup.use(await Xenstore.connect(platform));
    const handshake = cleanup.use(await FrontHandshake.find(xenstore, platform, { devid }, options.wait));
    const limits = await handshake.prepare();
    const { backend } = limits;
    const { abi, maxIndirectSegments, ...sizes } = chooseRings(options, limits);
    const device = cleanup.adopt(FrontDevice.open(platform, { backend, abi, ...sizes }), (it) => it.close());
    await handshake.offerRings(device.addresses, abi, limits);
    cleanup.defer(() => handshake.close());
    const disk = await handshake.awaitDisk();
    await handshake.connected();
    const { rings, pool, channels, slots: tags } = device;
    const plane = new FrontDataPlane({ rings, pool, channels, handle: devid, maxIndirectSegments, tags });
    const frontend = new BlockFrontend(xenstore, handshake, device, plane, disk);
    await frontend.#listen();
    cleanup.move();
    return frontend;
  }

  /** What the backend says of the disk; its size may change. */
  get disk(): Disk {
    return this.#disk;
  }

  /** Slots of all rings in use. */
  get slots(): number {
    return this.#device.slots;
  }

  /** Rings in use. */
  get queues(): number {
    return this.#device.rings.length;
  }

  /** `length` bytes at `offset`, whole sectors both. Fails with `io` when the backend says so. */
  async read(offset: number, length: number): Promise<Uint8Array> {
    const bytes = new Uint8Array(length);
    await this.#inPieces(length, (at, size) =>
      this.#transfer(BLKIF_OP_READ, offset + at, bytes.subarray(at, at + size)),
    );
    return bytes;
  }

  async write(offset: number, bytes: Uint8Array): Promise<void> {
    await this.#inPieces(bytes.length, (at, size) =>
      this.#transfer(BLKIF_OP_WRITE, offset + at, bytes.subarray(at, at + size)),
    );
  }

  async writeZeroes(offset: number, length: number): Promise<void> {
    const sector = offset / SECTOR_SIZE;
    await this.#inPieces(length, (at, size) =>
      this.#operate((tag) => this.#plane.writeZeroes(tag, sector + at / SECTOR_SIZE, size)),
    );
  }

  /** Makes durable what was written before. */
  flush(): Promise<void> {
    return this.#operate((tag) => this.#plane.flush(tag));
  }

  /** Writes in order with everything before and after; without bytes, only the order. */
  async barrier(offset = 0, bytes: Uint8Array = new Uint8Array(0)): Promise<void> {
    if (bytes.length === 0) return this.#operate((tag) => this.#plane.barrier(tag));
    await this.#transfer(BLKIF_OP_WRITE_BARRIER, offset, bytes);
  }

  discard(offset: number, length: number, secure = false): Promise<void> {
    return this.#operate((tag) =>
      this.#plane.discard(tag, offset / SECTOR_SIZE, length / SECTOR_SIZE, secure),
    );
  }

  /** Waits for what is under way, lets go of the disk and gives everything back. Closing twice is harmless. */
  close(): Promise<void> {
    this.#closed ??= this.#close();
    return this.#closed;
  }

  async #close(): Promise<void> {
    const timeout = new XentoolError("timeout", "the backend did not answer before the disk was closed");
    const timer = setTimeout(() => this.#failAll(timeout), DRAIN_MS);
    const open = [...this.#waiting.map((it) => it.done), ...this.#running];
    await Promise.allSettled(open.flatMap((it) => (it === undefined ? [] : [it.promise])));
    clearTimeout(timer);
    await this.#unwatch?.();
    try {
      await this.#handshake.close();
    } finally {
      await this.#events?.close();
      this.#device.close();
      this.#handshake[Symbol.dispose]();
      this.#xenstore.close();
    }
  }

  async #listen(): Promise<void> {
    this.#events = new PortStream(this.#device.channels, () => this.#pump());
    this.#unwatch = await this.#handshake.watch(this.#disk, (event: BackendEvent) => {
      if (event.kind === "resized") this.#disk = event.disk;
      else this.#closing.resolve();
    });
  }

  async #inPieces(length: number, work: (at: number, size: number) => Promise<void>): Promise<void> {
    const pieces: Promise<void>[] = [];
    for (let at = 0; at < length; at += this.#pieceBytes)
      pieces.push(work(at, Math.min(this.#pieceBytes, length - at)));
    const results = await Promise.allSettled(pieces);
    for (const result of results) if (result.status === "rejected") throw result.reason;
  }

  /** Moves `bytes` from or to the disk at `offset` through pages of the pool. */
  async #transfer(op: TransferOp, offset: number, bytes: Uint8Array): Promise<void> {
    const { pool } = this.#plane;
    const pages = Math.ceil(bytes.length / PAGE_SIZE);
    let page = -1;
    try {
      await this.#operate((tag) => {
        page = pool.allocate(pages);
        if (page < 0) return false;
        if (op !== BLKIF_OP_READ) pool.bytes(page, pages).set(bytes);
        if (this.#plane.transfer(op, tag, offset / SECTOR_SIZE, page, bytes.length)) return true;
        pool.release(page, pages);
        page = -1;
        return false;
      });
      if (op === BLKIF_OP_READ) bytes.set(pool.bytes(page, pages).subarray(0, bytes.length));
    } finally {
      if (page >= 0) pool.release(page, pages);
    }
    this.#pump();
  }

  #operate(start: Start): Promise<void> {
    const done = Promise.withResolvers<void>();
    this.#waiting.push({ start, done });
    this.#pump();
    return done.promise;
  }

  /** Starts and completes all that can be, until the ring promises an event for what comes next. */
  #pump(): void {
    do {
      if (this.#plane.failure !== undefined) {
        this.#failAll(new XentoolError("protocol", this.#plane.failure));
        return;
      }
      this.#startWaiting();
      this.#plane.push();
    } while (this.#plane.reap() > 0 || !this.#plane.maySleep());
  }

  /** In order, as far as there is room. */
  #startWaiting(): void {
    for (let next = this.#waiting[0]; next !== undefined; next = this.#waiting[0]) {
      const tag = this.#freeTags.at(-1);
      if (tag === undefined || !next.start(tag)) return;
      this.#freeTags.pop();
      this.#running[tag] = next.done;
      this.#waiting.shift();
    }
  }

  #failAll(error: XentoolError): void {
    for (const waiting of this.#waiting.splice(0)) waiting.done.reject(error);
    for (const [tag, running] of this.#running.entries()) {
      this.#running[tag] = undefined;
      running?.reject(error);
    }
  }

  #done(tag: number, status: number): void {
    const done = this.#running[tag];
    this.#running[tag] = undefined;
    this.#freeTags.push(tag);
    if (status === BLKIF_RSP_OKAY) done?.resolve();
    else if (status === BLKIF_RSP_EOPNOTSUPP)
      done?.reject(new XentoolError("io", "the backend does not support this", { errno: "EOPNOTSUPP" }));
    else done?.reject(new XentoolError("io", "the backend reported an error", { errno: "EIO" }));
  }
}
