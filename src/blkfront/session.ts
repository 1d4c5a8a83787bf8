// A frontend's life from the main thread: the handshake, a plane that moves the data, the backend's changes
// meanwhile, and letting go in the order that leaves nothing behind.
import { unlessAborted, within } from "../core/deadline.ts";
import { XentoolError } from "../core/errors.ts";
import { moduleLogger } from "../core/log.ts";
import { Plane, type SpawnWorker } from "../plane/plane.ts";
import { asError } from "../plane/protocol.ts";
import type { Platform } from "../platform/platform.ts";
import type { WaitOptions, Xenstore } from "../xenstore/client.ts";
import { DRAIN_MS } from "./bounds.ts";
import type { BenchResult } from "./bench.ts";
import { FrontControl } from "./blkfront-control.ts";
import type { BlkfrontJob, BlkfrontOrder } from "./blkfront-orders.ts";
import type { RingAddress } from "./device.ts";
import { FrontHandshake, type Disk } from "./handshake.ts";
import { chooseRings, type RingOptions } from "./ring-options.ts";

const logger = moduleLogger("blkfront");

export interface SessionOptions extends RingOptions {
  readonly devid: number;
  /** As in the backend's DeviceAddress. */
  readonly frontendClass?: string;
  readonly verbosity: number;
  /** Takes the disk away from whoever in this domain uses it. */
  readonly take?: boolean;
  /** Gives up what is not needed any more, once the disk is ours and before anything is shared with the backend. */
  readonly enterJail?: (() => void) | undefined;
  /** Limits each wait for the backend. */
  readonly wait?: WaitOptions;
}

/** Why the job ended. `finished`: by itself. `stopped`: the caller asked. `closed`: the backend let go. */
export interface SessionEnd {
  readonly reason: "finished" | "stopped" | "closed";
  readonly bench: BenchResult | undefined;
}

/**
 * Connects to the disk, has a plane do `job`, then lets go of the disk. `onConnected` runs when the disk can be used.
 * Fails with `environment` when somebody else uses the disk, `io` when it is taken away from us, `protocol` when the
 * backend breaks the protocol, `timeout` when it does not answer; if xenstored goes away, with the error of that
 * connection.
 */
export async function runSession(
  platform: Platform,
  xenstore: Xenstore,
  options: SessionOptions,
  job: BlkfrontJob,
  spawnWorker: SpawnWorker,
  stop: AbortSignal,
  onConnected: (disk: Disk) => void,
): Promise<SessionEnd> {
  const wait: WaitOptions = { ...options.wait, signal: stop };
  using handshake = await FrontHandshake.find(xenstore, platform, options, wait);
  const offer = await handshake.prepare(options.take);
  options.enterJail?.();
  const { abi, ...rings } = chooseRings(options, offer);
  const wanted = options.queues ?? rings.queues;
  if (rings.queues < wanted)
    logger.warn(`${handshake.name}: ${wanted} queues were wanted, but the backend offers ${offer.maxQueues}`);
  await using plane = new FrontPlane(spawnWorker, {
    name: handshake.name,
    verbosity: options.verbosity,
    platform: platform.descriptor,
    backend: offer.backend,
    abi: abi.name,
    ...rings,
    devid: options.devid,
    job,
  });
  let isOffered = false;
  try {
    const addresses = await plane.shared;
    isOffered = true;
    await handshake.offerRings(addresses, abi, offer);
    const disk = await handshake.awaitDisk();
    plane.start(disk);
    await handshake.connected();
    onConnected(disk);
    return await supervise(xenstore, handshake, plane, disk, stop);
  } finally {
    if (isOffered) await letGo(handshake);
  }
}

async function supervise(
  xenstore: Xenstore,
  handshake: FrontHandshake,
  plane: FrontPlane,
  disk: Disk,
  stop: AbortSignal,
): Promise<SessionEnd> {
  const closed = Promise.withResolvers<"closed">();
  const lost = Promise.withResolvers<never>();
  // The disk may be lost before anybody waits for that.
  lost.promise.catch(() => {});
  const unwatch = await handshake.watch(disk, (event) => {
    if (event.kind === "closing") return closed.resolve("closed");
    if (event.kind === "lost") return lost.reject(event.error);
    logger.info(`${handshake.name}: ${event.disk.sectors512} sectors from now on`);
    plane.resize(event.disk);
  });
  // Without xenstored we would never learn that the backend is gone.
  const forget = xenstore.onClose(lost.reject);
  try {
    const finished = plane.finished.then(() => "finished" as const);
    const ended = Promise.race([finished, closed.promise, lost.promise]);
    const reason = (await unlessAborted(ended, stop)) ?? "stopped";
    return { reason, bench: await plane.stop(DRAIN_MS) };
  } finally {
    forget();
    await unwatch();
  }
}

/** If the backend is gone or silent, we lose nothing but a clean end. */
async function letGo(handshake: FrontHandshake): Promise<void> {
  try {
    await handshake.close();
  } catch (error) {
    logger.warn(`${handshake.name}: ${error instanceof Error ? error.message : String(error)}`);
  }
}

/** The control side's handle of the plane. Disposing of it ends the grants. */
class FrontPlane implements AsyncDisposable {
  /** The rings' numbers, once they are shared. */
  readonly shared: Promise<readonly RingAddress[]>;
  /** The job's result; rejects when it failed. */
  readonly finished: Promise<BenchResult | undefined>;
  readonly #plane: Plane;
  readonly #control: FrontControl;
  /** Resolves when everything is released. */
  readonly #released: Promise<void>;

  constructor(spawnWorker: SpawnWorker, order: BlkfrontOrder["order"]) {
    const shared = Promise.withResolvers<readonly RingAddress[]>();
    const finished = Promise.withResolvers<BenchResult | undefined>();
    this.shared = shared.promise;
    this.finished = finished.promise;
    this.shared.catch(() => {});
    this.finished.catch(() => {});
    this.#plane = new Plane("blkfront", spawnWorker);
    this.#control = new FrontControl(this.#plane.control);
    const carriedOut = this.#plane.carryOut<BlkfrontOrder>(order, (report) => {
      if (report.type === "shared") shared.resolve(report.rings);
      else if (report.failure === undefined) finished.resolve(report.bench);
      else finished.reject(asError(report.failure));
    });
    this.#released = carriedOut.catch((error: unknown) => {
      shared.reject(error);
      finished.reject(error);
    });
  }

  start(disk: Disk): void {
    this.#control.start(disk);
  }

  resize(disk: Disk): void {
    this.#control.disk = disk;
  }

  /**
   * Ends the plane's job and returns its result. Fails with `timeout` when the backend does not answer what is in
   * flight.
   */
  async stop(timeoutMs: number): Promise<BenchResult | undefined> {
    this.#control.stop();
    return within(
      timeoutMs,
      this.finished,
      () => new XentoolError("timeout", "the backend does not answer what is under way"),
    );
  }

  async [Symbol.asyncDispose](): Promise<void> {
    this.#control.release();
    await this.#released;
    this.#plane.close();
  }
}
