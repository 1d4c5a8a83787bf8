// A frontend's life from the main thread: handshake, a worker that has the data plane, what the backend does
// meanwhile, and letting go in the order that leaves nothing behind.
import { XentoolError } from "../core/errors.ts";
import { moduleLogger } from "../core/log.ts";
import type { SpawnWorker } from "../core/worker.ts";
import type { Platform } from "../platform/platform.ts";
import type { WaitOptions, Xenstore } from "../xenstore/client.ts";
import type { BenchResult } from "./bench.ts";
import { COMMAND_RELEASE, COMMAND_RUN, COMMAND_STOP, FrontControl } from "./control.ts";
import type { RingAddress } from "./device.ts";
import { FrontHandshake, type Disk } from "./handshake.ts";
import { chooseRing, type RingOptions } from "./ring-options.ts";
import type { BlkfrontJob, BlkfrontOrder, BlkfrontReport } from "./worker.ts";

const logger = moduleLogger("blkfront");
/** What is under way when we are to stop gets this long. */
const DRAIN_MS = 10_000;

export interface SessionOptions extends RingOptions {
  readonly devid: number;
  readonly verbosity: number;
  /** Takes the disk away from whoever in this domain uses it. */
  readonly take?: boolean;
  /** Bound of each wait for the backend. */
  readonly wait?: WaitOptions;
}

/** Why the job ended. `finished`: by itself. `stopped`: as the caller asked. `closed`: the backend let go. */
export interface SessionEnd {
  readonly reason: "finished" | "stopped" | "closed";
  readonly bench: BenchResult | undefined;
}

/**
 * Connects to the disk, has a worker do `job`, lets go of the disk. `onConnected` runs when the disk can be
 * used. Fails with `environment` when somebody else uses the disk, `io` when it is taken away from us, `protocol` when
 * the backend breaks the protocol, `timeout` when it does not answer, and as the connection to xenstored does when
 * that is lost.
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
  using handshake = await FrontHandshake.find(xenstore, platform, options.devid, wait);
  const limits = await handshake.prepare(options.take);
  const { abi, ...ring } = chooseRing(options, limits);
  await using worker = new FrontWorker(spawnWorker, {
    kind: "blkfront",
    name: handshake.name,
    verbosity: options.verbosity,
    platform: platform.descriptor,
    backend: limits.backend,
    abi: abi.name,
    ...ring,
    devid: options.devid,
    job,
  });
  let told = false;
  try {
    const address = await worker.shared;
    told = true;
    await handshake.offerRing(address, abi, limits);
    const disk = await handshake.awaitDisk();
    worker.start(disk);
    await handshake.connected();
    onConnected(disk);
    return await supervise(xenstore, handshake, worker, disk, stop);
  } finally {
    if (told) await letGo(handshake);
  }
}

async function supervise(
  xenstore: Xenstore,
  handshake: FrontHandshake,
  worker: FrontWorker,
  disk: Disk,
  stop: AbortSignal,
): Promise<SessionEnd> {
  const closed = Promise.withResolvers<"closed">();
  const stopped = new Promise<"stopped">((resolve) => {
    if (stop.aborted) resolve("stopped");
    stop.addEventListener("abort", () => resolve("stopped"), { once: true });
  });
  const lost = Promise.withResolvers<never>();
  const unwatch = await handshake.watch(disk, (event) => {
    if (event.kind === "closing") return closed.resolve("closed");
    if (event.kind === "lost") return lost.reject(event.error);
    logger.info(`${handshake.name}: ${event.disk.sectors512} sectors from now on`);
    worker.resize(event.disk);
  });
  // Without xenstored we should never learn that the backend is gone.
  const forget = xenstore.onClose(lost.reject);
  try {
    const finished = worker.finished.then(() => "finished" as const);
    const reason = await Promise.race([finished, stopped, closed.promise, lost.promise]);
    return { reason, bench: await worker.stop(DRAIN_MS) };
  } finally {
    forget();
    await unwatch();
  }
}

/** A backend that is gone or silent keeps us from nothing but a clean end. */
async function letGo(handshake: FrontHandshake): Promise<void> {
  try {
    await handshake.close();
  } catch (error) {
    logger.warn(`${handshake.name}: ${error instanceof Error ? error.message : String(error)}`);
  }
}

/** The main thread's handle of the worker. Disposing of it ends the grants. */
class FrontWorker {
  /** The ring's numbers, once they are shared. */
  readonly shared: Promise<RingAddress>;
  /** The job's result; rejects when it failed. */
  readonly finished: Promise<BenchResult | undefined>;
  readonly #worker: Worker;
  readonly #control = FrontControl.create();
  readonly #released = Promise.withResolvers<void>();

  constructor(spawnWorker: SpawnWorker, order: Omit<BlkfrontOrder, "control">) {
    const shared = Promise.withResolvers<RingAddress>();
    const finished = Promise.withResolvers<BenchResult | undefined>();
    const fail = (error: XentoolError): void => {
      shared.reject(error);
      finished.reject(error);
    };
    this.shared = shared.promise;
    this.finished = finished.promise;
    this.shared.catch(() => {});
    this.finished.catch(() => {});
    this.#worker = spawnWorker();
    this.#worker.onmessage = ({ data }: MessageEvent<BlkfrontReport>): void => {
      if (data.type === "shared") shared.resolve(data.ring);
      else if (data.type === "failed") fail(new XentoolError(data.kind, data.message));
      else if (data.type === "released") this.#released.resolve();
      else if (data.failure === undefined) finished.resolve(data.bench);
      else fail(new XentoolError("protocol", data.failure));
    };
    this.#worker.onerror = (event) => {
      fail(new XentoolError("bug", `the data-plane worker died: ${event.message}`));
      this.#released.resolve();
    };
    this.#worker.postMessage({ ...order, control: this.#control.handle } satisfies BlkfrontOrder);
  }

  start(disk: Disk): void {
    this.#control.disk = disk;
    this.#control.send(COMMAND_RUN);
  }

  resize(disk: Disk): void {
    this.#control.disk = disk;
  }

  /** Has the worker end its job; its result. Fails with `timeout` when the backend does not answer what is left. */
  async stop(timeoutMs: number): Promise<BenchResult | undefined> {
    this.#control.send(COMMAND_STOP);
    const expired = Promise.withResolvers<never>();
    const timer = setTimeout(
      () => expired.reject(new XentoolError("timeout", "the backend does not answer what is under way")),
      timeoutMs,
    );
    try {
      return await Promise.race([this.finished, expired.promise]);
    } finally {
      clearTimeout(timer);
    }
  }

  async [Symbol.asyncDispose](): Promise<void> {
    this.#control.send(COMMAND_RELEASE);
    await this.#released.promise;
    this.#worker.terminate();
    this.#control.close();
  }
}
