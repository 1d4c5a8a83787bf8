// The control plane of one device: follows the XenbusState of both ends (public/io/xenbus.h) and connects
// or disconnects the data plane accordingly. Every watch event only says "look again"; looking compares
// what both ends say with what is, and takes the one step that follows. So events may come in any number
// and order, and a guest that flaps costs no more than one step at a time.
import { setTimeout as delay } from "node:timers/promises";
import type { FilterSpec } from "../block/filter.ts";
import { currentSizeBytes, type Image } from "../block/image.ts";
import { describeError, XentoolError } from "../core/errors.ts";
import { escapeControls, moduleLogger } from "../core/log.ts";
import { parseDecimal } from "../core/types.ts";
import type { SpawnWorker } from "../core/worker.ts";
import type { EngineKind } from "../native/io-engine.ts";
import type { Platform } from "../platform/platform.ts";
import { SECTOR_SIZE } from "../protocol/blkif.ts";
import { parseXenbusState, XenbusState, xenbusStateName } from "../protocol/xenbus.ts";
import type { Unwatch, Xenstore } from "../xenstore/client.ts";
import { backendDir, describeDevice, frontendDir, type DeviceAddress } from "./address.ts";
import { QueueConnection } from "./connection.ts";
import { diskKeys, diskLimits, promises, ringKeys, type Offer } from "./features.ts";
import type { DiskLimits } from "./requests.ts";
import { journalPath, removeJournal } from "./journal.ts";
import { readRingParameters } from "./ring-parameters.ts";
import { StatsPage } from "./stats.ts";
import { RESIZE_KEY } from "./toolstack.ts";

const logger = moduleLogger("blkback");

export interface DeviceOptions {
  readonly offer: Offer;
  readonly grantMode: "copy" | "map";
  readonly engine: EngineKind;
  readonly filters: readonly FilterSpec[];
  /** Directory of the statistics files. */
  readonly statsDir: string;
  readonly verbosity: number;
}

/** Why a device is served no longer: the guest or the toolstack let go, the guest is gone, or we left it. */
export type DeviceEnd = "closed" | "removed" | "frontend-gone" | "abandoned";

/**
 * A guest that reconnects in a loop is connected this often at most; one that is refused each time, more and more
 * seldom, because each refusal is a line of the log. After a while without trouble it is as if new.
 */
const RECONNECT_PAUSE_MS = 100;
const RECONNECT_PAUSE_MAX_MS = 2000;
const FORGIVEN_AFTER_MS = 30_000;

export class BlkbackDevice {
  readonly address: DeviceAddress;
  /** Resolves when the device is over; rejects when xenstored is gone or we failed. */
  readonly ended: Promise<DeviceEnd>;
  readonly #platform: Platform;
  readonly #xenstore: Xenstore;
  readonly #image: Image;
  readonly #options: DeviceOptions;
  readonly #spawnWorker: SpawnWorker;
  readonly #limits: DiskLimits;
  readonly #stats: StatsPage;
  readonly #end = Promise.withResolvers<DeviceEnd>();
  readonly #unwatch: Unwatch[] = [];
  #state: XenbusState = XenbusState.Initialising;
  #connection: QueueConnection | undefined;
  #connectedAtMs = -Infinity;
  #pauseMs = RECONNECT_PAUSE_MS;
  /** Set after a failure: the guest must start over at Initialising before it is served again. */
  #refused = false;
  /** The former server of the ring to connect to waited for the guest to let go, and so do we. */
  #resumesClosing = false;
  #looking = false;
  #lookAgain = false;
  #over = false;
  #resizeSeen: string | null = null;

  private constructor(
    platform: Platform,
    xenstore: Xenstore,
    address: DeviceAddress,
    image: Image,
    options: DeviceOptions,
    spawnWorker: SpawnWorker,
  ) {
    this.#platform = platform;
    this.#xenstore = xenstore;
    this.address = address;
    this.#image = image;
    this.#options = options;
    this.#spawnWorker = spawnWorker;
    this.#limits = diskLimits(options.offer, image.info);
    this.#stats = StatsPage.create(options.statsDir, address.frontend, address.devid);
    this.ended = this.#end.promise;
    this.ended.catch(() => {});
  }

  /**
   * Offers `image` as the device at `address`, whose directories exist, and serves it from then on. Takes
   * over a device whose former server died: both ends are still Connected then, or the guest is, asked to let go.
   */
  static async start(
    platform: Platform,
    xenstore: Xenstore,
    address: DeviceAddress,
    image: Image,
    options: DeviceOptions,
    spawnWorker: SpawnWorker,
  ): Promise<BlkbackDevice> {
    const device = new BlkbackDevice(platform, xenstore, address, image, options, spawnWorker);
    try {
      await device.#offer();
      await device.#watch();
    } catch (error) {
      await device.abandon();
      throw error;
    }
    return device;
  }

  get state(): XenbusState {
    return this.#state;
  }

  /**
   * Asks the guest to let go, as hot-unplug does, and waits for it. False: it did not within `timeoutMs`;
   * then the device goes on as before.
   */
  async detach(timeoutMs: number, signal?: AbortSignal): Promise<boolean> {
    const dir = backendDir(this.address);
    await this.#xenstore.transaction(async (tx) => {
      await tx.write(`${dir}/online`, "0");
      await tx.write(`${dir}/state`, String(XenbusState.Closing));
    });
    const timer = new AbortController();
    const expired = delay(timeoutMs, false, { signal: timer.signal }).catch(() => false);
    const aborted = new Promise<false>((resolve) => signal?.addEventListener("abort", () => resolve(false)));
    const done = await Promise.race([this.ended.then(() => true), expired, aborted]);
    timer.abort();
    return done;
  }

  /**
   * Stops serving without a word to the guest, which keeps waiting: what was started is completed and answered, the
   * rest is left in the journal, so another process can take the device over where this one stopped.
   */
  async abandon(): Promise<void> {
    if (!this.#over) {
      this.#over = true;
      await this.#stopServing();
      await this.#finish();
      this.#end.resolve("abandoned");
    }
    await this.ended.catch(() => {});
  }

  // The steps.

  async #offer(): Promise<void> {
    const back = backendDir(this.address);
    const [backend, frontend] = await Promise.all([this.#readBackendState(), this.#readFrontendState()]);
    if (isInUse(backend, frontend)) {
      await this.#expectPromisesKept();
      logger.info(`${this.#name}: taking over a ring in use`);
      this.#resumesClosing = backend === XenbusState.Closing;
      this.#state = XenbusState.InitWait;
      return;
    }
    await this.#xenstore.transaction(async (tx) => {
      for (const [key, value] of Object.entries(ringKeys(this.#options.offer)))
        await tx.write(`${back}/${key}`, String(value));
      await tx.write(`${back}/hotplug-status`, "connected");
      await tx.write(`${back}/state`, String(XenbusState.InitWait));
    });
    this.#entered(XenbusState.InitWait);
  }

  async #expectPromisesKept(): Promise<void> {
    for (const { key, keeps } of promises(this.#options.offer)) {
      const text = await this.#xenstore.tryRead(`${backendDir(this.address)}/${key}`);
      const promised = parseDecimal(text, Number.MAX_SAFE_INTEGER);
      if (promised !== undefined && !keeps(promised))
        throw new XentoolError(
          "usage",
          `${this.#name} is in use with ${key} ${promised}: serve it with the options that it was served with`,
        );
    }
  }

  async #watch(): Promise<void> {
    const forget = this.#xenstore.onClose((error) => this.#fail(error));
    this.#unwatch.push(async () => forget());
    const look = (): Promise<void> => this.#look();
    this.#unwatch.push(await this.#xenstore.watch(backendDir(this.address), look));
    this.#unwatch.push(await this.#xenstore.watch(`${frontendDir(this.address)}/state`, look));
    this.#unwatch.push(await this.#xenstore.watch("@releaseDomain", look));
  }

  /** Looks until nothing changed while looking. */
  async #look(): Promise<void> {
    this.#lookAgain = true;
    if (this.#looking) return;
    this.#looking = true;
    try {
      while (this.#lookAgain && !this.#over) {
        this.#lookAgain = false;
        await this.#takeStep();
      }
    } catch (error) {
      this.#fail(error);
    } finally {
      this.#looking = false;
    }
  }

  async #takeStep(): Promise<void> {
    const back = backendDir(this.address);
    const wanted = await this.#readBackendState();
    if (wanted === XenbusState.Unknown && !(await this.#xenstore.exists(back)))
      return this.#close("removed", false);
    const frontend = await this.#readFrontendState();
    const online = (await this.#xenstore.tryRead(`${back}/online`)) === "1";
    const isClosing = this.#state === XenbusState.Closing || this.#state === XenbusState.Closed;
    if (wanted === XenbusState.Closing && !isClosing && !this.#resumesClosing)
      this.#entered(XenbusState.Closing);
    await this.#resizeIfAsked();
    switch (frontend) {
      case XenbusState.Unknown:
        return this.#close("frontend-gone", true);
      case XenbusState.Initialising:
        await this.#disconnect();
        this.#refused = false;
        if (!online) return this.#close("closed", true);
        if (this.#state !== XenbusState.InitWait) await this.#offer();
        return;
      case XenbusState.Initialised:
      case XenbusState.Connected:
        if (this.#state === XenbusState.InitWait && !this.#refused) await this.#connect();
        return;
      case XenbusState.Closing:
        if (this.#state !== XenbusState.Closed) await this.#enter(XenbusState.Closing);
        return;
      case XenbusState.Closed:
        await this.#disconnect();
        if (!online) return this.#close("closed", true);
        return this.#enter(XenbusState.Closed);
      default:
        return;
    }
  }

  async #connect(): Promise<void> {
    let connection: QueueConnection;
    const since = performance.now() - this.#connectedAtMs;
    if (since > FORGIVEN_AFTER_MS) this.#pauseMs = RECONNECT_PAUSE_MS;
    if (since < this.#pauseMs) await delay(this.#pauseMs - since);
    this.#connectedAtMs = performance.now();
    try {
      const { offer } = this.#options;
      const ring = await readRingParameters(
        this.#xenstore,
        frontendDir(this.address),
        offer.maxRingPageOrder,
      );
      // Who abandoned the device meanwhile found no worker to stop, and has closed the image.
      if (this.#over) return;
      const { grantMode, engine, filters, verbosity } = this.#options;
      connection = new QueueConnection(this.#spawnWorker, {
        kind: "blkback",
        name: this.#name,
        verbosity,
        platform: this.#platform.descriptor,
        frontend: this.address.frontend,
        refs: ring.refs,
        remotePort: ring.remotePort,
        abi: ring.abi.name,
        image: this.#image,
        engine,
        filters,
        limits: this.#limits,
        grantMode,
        statsPath: this.#stats.path,
        journalPath: journalPath(this.#stats.path),
      });
      this.#connection = connection;
      await connection.connected;
      logger.info(`${this.#name}: ${ring.refs.length} ring page(s), ${ring.abi.protocol}`);
    } catch (error) {
      this.#connection = undefined;
      return this.#refuse(error);
    }
    if (this.#resumesClosing) {
      this.#resumesClosing = false;
      this.#entered(XenbusState.Closing);
      return;
    }
    await this.#publish();
    this.#entered(XenbusState.Connected);
    // Not before: a data plane that is gone already is found out here, too.
    void connection.stopped.then((failure) => this.#stopped(connection, failure));
  }

  /** The disk's keys and Connected at once: also how a new size is announced. */
  async #publish(): Promise<void> {
    const dir = backendDir(this.address);
    await this.#xenstore.transaction(async (tx) => {
      for (const [key, value] of Object.entries(
        diskKeys(this.#options.offer, this.#image.info, this.#limits),
      ))
        await tx.write(`${dir}/${key}`, String(value));
      await tx.write(`${dir}/state`, String(XenbusState.Connected));
    });
  }

  async #stopServing(): Promise<void> {
    const connection = this.#connection;
    this.#connection = undefined;
    await connection?.stop();
  }

  /** The guest has let go of the ring, or is to: nobody will go on there. */
  async #disconnect(): Promise<void> {
    await this.#stopServing();
    this.#resumesClosing = false;
    removeJournal(journalPath(this.#stats.path));
  }

  /** The worker is done: after `stop`, or by itself because the ring or the engine failed. */
  async #stopped(connection: QueueConnection, failure: XentoolError | undefined): Promise<void> {
    if (this.#connection !== connection || this.#over || this.#state !== XenbusState.Connected) return;
    this.#connection = undefined;
    await this.#refuse(failure ?? new XentoolError("bug", "the data plane stopped by itself"));
  }

  /** Stops this device, and only it, with the reason where Linux backends put it. */
  async #refuse(error: unknown): Promise<void> {
    const reason = describeError(error);
    logger.error(`${this.#name}: ${reason}`);
    this.#refused = true;
    this.#pauseMs = Math.min(RECONNECT_PAUSE_MAX_MS, this.#pauseMs * 2);
    try {
      const node = backendDir(this.address).replace(/^\/local\/domain\/[0-9]+/, (own) => `${own}/error`);
      await this.#xenstore.write(`${node}/error`, escapeControls(reason));
      await this.#enter(XenbusState.Closing);
    } catch (failure) {
      this.#fail(failure);
    }
  }

  async #resizeIfAsked(): Promise<void> {
    const asked = await this.#xenstore.tryRead(`${backendDir(this.address)}/${RESIZE_KEY}`);
    if (asked === null || asked === this.#resizeSeen) return;
    this.#resizeSeen = asked;
    const sectors = currentSizeBytes(this.#image, this.#options.offer.logicalSectorBytes) / SECTOR_SIZE;
    if (sectors === this.#limits.sectors512 || sectors === 0) return;
    logger.info(`${this.#name}: ${sectors} sectors from now on`);
    this.#limits.sectors512 = sectors;
    this.#connection?.resize(sectors);
    if (this.#state === XenbusState.Connected) await this.#publish();
  }

  async #close(end: DeviceEnd, sayClosed: boolean): Promise<void> {
    await this.#disconnect();
    if (sayClosed && (await this.#xenstore.exists(backendDir(this.address))))
      await this.#enter(XenbusState.Closed);
    this.#finishOnce(end);
  }

  async #enter(state: XenbusState): Promise<void> {
    if (this.#state === state) return;
    await this.#xenstore.write(`${backendDir(this.address)}/state`, String(state));
    this.#entered(state);
  }

  #entered(state: XenbusState): void {
    this.#state = state;
    logger.info(`${this.#name}: ${xenbusStateName(state)}`);
  }

  #fail(error: unknown): void {
    if (this.#over) return;
    this.#over = true;
    const connection = this.#connection;
    this.#connection = undefined;
    void (connection?.stop() ?? Promise.resolve())
      .then(() => this.#finish())
      .then(() => this.#end.reject(error));
  }

  #finishOnce(end: DeviceEnd): void {
    if (this.#over) return;
    this.#over = true;
    void this.#finish().then(() => this.#end.resolve(end));
  }

  async #finish(): Promise<void> {
    this.#over = true;
    for (const unwatch of this.#unwatch.splice(0)) await unwatch().catch(() => {});
    try {
      this.#stats.remove();
    } catch (error) {
      logger.warn(`${this.#name}: ${describeError(error)}`);
    }
  }

  async #readBackendState(): Promise<XenbusState> {
    return parseXenbusState(await this.#xenstore.tryRead(`${backendDir(this.address)}/state`));
  }

  /** Unknown: the guest, or its directory, is gone. A driver domain may lose the right to look then. */
  async #readFrontendState(): Promise<XenbusState> {
    const state = this.#xenstore.tryRead(`${frontendDir(this.address)}/state`);
    const text = await state.catch((error: unknown) => {
      if (error instanceof XentoolError && error.context["errno"] === "EACCES") return null;
      throw error;
    });
    return parseXenbusState(text);
  }

  get #name(): string {
    return describeDevice(this.address);
  }
}

/** Whether a guest goes on with a ring that a server has connected to. */
export function isInUse(backend: XenbusState, frontend: XenbusState): boolean {
  const wasServed = backend === XenbusState.Connected || backend === XenbusState.Closing;
  return wasServed && frontend === XenbusState.Connected;
}
