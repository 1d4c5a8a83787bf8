// The control plane of one device: follows the XenbusState of both ends (public/io/xenbus.h) and connects or
// disconnects the data plane accordingly. A watch event only means "look again"; a look compares the states of both
// ends with our own and takes the one step that decide.ts chooses, however many events there were, and in what order.
import { endsWithin } from "../../core/deadline.ts";
import type { Image } from "../../block/image.ts";
import type { OpenedImage } from "../../block/image/opened.ts";
import { kindOf, XentoolError } from "../../core/errors.ts";
import { moduleLogger } from "../../core/log.ts";
import { Looking } from "../../core/looking.ts";
import type { SpawnWorker } from "../../plane/plane.ts";
import type { PlaneJail } from "../../native/jail.ts";
import type { EngineKind } from "../../native/reactor.ts";
import type { Platform } from "../../platform/platform.ts";
import { XenbusState, xenbusStateName } from "../../protocol/xenbus.ts";
import type { Xenstore } from "../../xenstore/client.ts";
import { backendDir, describeDevice, type DeviceAddress } from "../address.ts";
import { BackendDirectory, type Keys } from "./backend-directory.ts";
import { DiskConnection } from "./connection.ts";
import type { GrantMode } from "../data-plane/data/path.ts";
import { decide, isInUse, offersAnew, type DeviceEnd, type Seen, type Step } from "./decide.ts";
import { DeviceEvents, type OnDeviceEvent } from "./device-events.ts";
import { DeviceWatches } from "./device-watches.ts";
import { diskKeys, offeredDisk, offeredKeys, type Offer } from "./features.ts";
import { readBackendState, readFrontendState } from "./end-states.ts";
import type { OfferedDisk } from "../data-plane/requests.ts";
import type { StopOrder } from "../data-plane/blkback-control.ts";
import { removeJournals } from "../data-plane/journal.ts";
import { expectPromisesKept } from "./promises.ts";
import { RateKeys } from "../limits/rate-keys.ts";
import type { DiskRates } from "../limits/rates.ts";
import { ReconnectPause } from "./reconnect-pause.ts";
import { offerNoLess, readRingParameters } from "./ring-parameters.ts";
import { ResizeKeys } from "./resize.ts";
import { ServedStats } from "../stats/served-stats.ts";
import { planePlatforms, type ThreadOptions } from "./threads.ts";
import { Trouble } from "./trouble.ts";

const logger = moduleLogger("blkback");

export interface DeviceOptions extends ThreadOptions, Pick<OpenedImage, "dial"> {
  readonly offer: Offer;
  readonly grantMode: GrantMode;
  readonly engine: EngineKind;
  /** How long a disk waits for a server of its image that is not there; without it, for ever. */
  readonly holdMs?: number;
  /** Filters as given to `--filter`, each already accepted by `parseFilter`. */
  readonly filters: readonly string[];
  readonly onEvent?: OnDeviceEvent;
  /** Hold where the device's keys say nothing about its limits. */
  readonly rates?: DiskRates;
  /** Directory of the statistics files. */
  readonly statsDir: string;
  readonly verbosity: number;
  /** For the planes of a jailed process. */
  readonly jail?: PlaneJail | undefined;
}

export class BlkbackDevice {
  readonly address: DeviceAddress;
  /** Resolves when the device has ended; rejects when xenstored is gone or we failed. */
  readonly ended: Promise<DeviceEnd>;
  /** Resolves when what there was at the start has been dealt with: a ring in use is served, or waits with a reason. */
  readonly looked: Promise<void>;
  readonly #platform: Platform;
  readonly #xenstore: Xenstore;
  readonly #directory: BackendDirectory;
  readonly #image: Image;
  readonly #options: DeviceOptions;
  readonly #spawnWorker: SpawnWorker;
  readonly #disk: OfferedDisk;
  readonly #stats: ServedStats;
  readonly #end = Promise.withResolvers<DeviceEnd>();
  readonly #watches = new DeviceWatches();
  #state: XenbusState = XenbusState.Initialising;
  #connection: DiskConnection | undefined;
  #stopping: Promise<void> | undefined;
  #lost: string | undefined;
  readonly #pause = new ReconnectPause();
  #pauseTimer: ReturnType<typeof setTimeout> | undefined;
  /** Set after a failure: the guest must offer another ring before it is served again. */
  #refused = false;
  /** We are taking over a ring in use. Its former server may have been waiting for the guest to let go. */
  #takeover = false;
  readonly #trouble: Trouble;
  readonly #events: DeviceEvents;
  readonly #rates: RateKeys;
  readonly #resizes: ResizeKeys;
  /** The frontend's state at the last look, and whether it has offered a ring since the one we last connected to. */
  #frontend: XenbusState = XenbusState.Unknown;
  #anew = false;
  readonly #looked = Promise.withResolvers<void>();
  readonly #looking = new Looking(() => this.#lookOnce().finally(this.#looked.resolve));
  #over = false;

  private constructor(
    platform: Platform,
    xenstore: Xenstore,
    address: DeviceAddress,
    directory: BackendDirectory,
    image: Image,
    options: DeviceOptions,
    spawnWorker: SpawnWorker,
  ) {
    this.#platform = platform;
    this.#xenstore = xenstore;
    this.address = address;
    this.#directory = directory;
    this.#image = image;
    this.#options = options;
    this.#spawnWorker = spawnWorker;
    this.#disk = offeredDisk(options.offer, image.info);
    this.#stats = new ServedStats(options.statsDir, address);
    this.#trouble = new Trouble(describeDevice(address), directory);
    this.#events = new DeviceEvents(address, options.onEvent);
    this.#rates = new RateKeys(xenstore, address, options.rates);
    this.#resizes = new ResizeKeys(xenstore, address, image, this.#disk);
    this.ended = this.#end.promise;
    this.looked = this.#looked.promise;
    this.ended.catch(() => {});
  }

  /**
   * Offers `image` as the device at `address`, whose directories must exist, and serves it from then on. Takes over a
   * device whose former server died while the guest was using it. `claimed`: its directory, if that is claimed already.
   */
  static async start(
    platform: Platform,
    xenstore: Xenstore,
    address: DeviceAddress,
    image: Image,
    options: DeviceOptions,
    spawnWorker: SpawnWorker,
    claimed?: BackendDirectory,
  ): Promise<BlkbackDevice> {
    const directory = claimed ?? (await BackendDirectory.claim(xenstore, address));
    const device = new BlkbackDevice(platform, xenstore, address, directory, image, options, spawnWorker);
    try {
      await device.#begin();
      await device.#watch();
    } catch (error) {
      await device.abandon();
      throw error;
    }
    return device;
  }

  /** Why some of the guest's writes may not be on the disk: a flush failed, possibly the final one after it let go. */
  get lost(): string | undefined {
    return this.#lost;
  }

  /** Shows what keeps the image's bytes from us; undefined: nothing any more. */
  async noteTrouble(why: string | undefined): Promise<void> {
    if (this.#over) return;
    await (why === undefined ? this.#trouble.over() : this.#trouble.say(new XentoolError("io", why)));
  }

  /**
   * Asks the guest to let go, as hot-unplug does, and waits for it. Returns false when the guest did not within
   * `timeoutMs`; the device then goes on as before.
   */
  async detach(timeoutMs: number, signal?: AbortSignal): Promise<boolean> {
    await this.#directory.write({ online: 0, state: XenbusState.Closing });
    // Timeout and signal are for the guest: one without a ring has nothing to let go of, and the flush comes after it.
    const isUnused = this.#connection === undefined && this.#frontend <= XenbusState.Initialising;
    const done = await endsWithin(timeoutMs, this.ended, isUnused ? undefined : signal);
    const isFlushing = this.#frontend === XenbusState.Closed && signal?.aborted !== true;
    return done || (isFlushing && this.ended.then(() => true));
  }

  /**
   * Stops serving without telling the guest, which keeps waiting. Operations already started are completed and
   * answered, and the rest stays in the journal, so another process can take over the device where this one stopped.
   */
  async abandon(): Promise<void> {
    if (!this.#over) {
      this.#over = true;
      // A guest may be waiting for the next server.
      await Promise.all([this.#stopServing("leave"), this.#watches.close()]);
      await this.#finish();
      this.#end.resolve("abandoned");
    }
    await this.ended.catch(() => {});
  }

  async #begin(): Promise<void> {
    const [backend, frontend] = await Promise.all([
      readBackendState(this.#xenstore, this.address),
      readFrontendState(this.#xenstore, this.address),
    ]);
    if (!isInUse(backend, frontend)) {
      // Without room for the page a device does not even begin. A takeover opens it in `#connect`, so that the ring
      // waits for room.
      this.#stats.open();
      const { offer } = this.#options;
      const mayHaveChosen = backend === XenbusState.InitWait || offersAnew(XenbusState.Unknown, frontend);
      return this.#offer(mayHaveChosen ? await offerNoLess(this.#xenstore, this.address, offer) : offer);
    }
    await expectPromisesKept(this.#xenstore, this.address, this.#options.offer, this.#image.info);
    logger.info(`${this.#name}: taking over a ring in use`);
    this.#takeover = true;
    this.#state = this.#stats.state = backend;
    this.#frontend = frontend;
  }

  #watch(): Promise<void> {
    return this.#watches.open(this.#xenstore, this.address, {
      onLost: (error) => this.#fail(error),
      onChange: () => this.#look(),
      onOffer: () => {
        this.#anew = true;
        // Not awaited: an offer that comes while we look must be noted at once.
        void this.#look();
      },
    });
  }

  async #look(): Promise<void> {
    try {
      await this.#looking.look();
    } catch (error) {
      this.#fail(error);
    }
  }

  async #lookOnce(): Promise<void> {
    if (this.#over) return;
    const step = decide(await this.#see());
    if (!this.#over) await this.#take(step);
  }

  async #see(): Promise<Seen> {
    // `isThere` is read last: if the device is still there, everything read before it belongs to this device.
    const [backend, online, frontend, isThere] = await Promise.all([
      readBackendState(this.#xenstore, this.address),
      this.#xenstore.tryRead(`${backendDir(this.address)}/online`),
      readFrontendState(this.#xenstore, this.address),
      this.#directory.isThere(),
    ]);
    // What is noted later, as keys that go with the device, is for the next look.
    const anew = (this.#anew ||= offersAnew(this.#frontend, frontend));
    this.#frontend = frontend;
    // The toolstack wrote Closing in our place, possibly after we wrote Closed: then it waits to read Closed again.
    if (backend === XenbusState.Closing && this.#state !== XenbusState.Closing)
      this.#entered(XenbusState.Closing, true);
    await this.#resizeIfAsked();
    await this.#limitIfAsked();
    return {
      removed: !isThere,
      frontend,
      online: online === "1",
      own: this.#state,
      serving: this.#connection !== undefined,
      anew,
      refused: this.#refused,
      takeover: this.#takeover,
    };
  }

  async #take({ ring, say, end }: Step): Promise<void> {
    if (ring === "connect") return this.#connect(say);
    if (ring === "drop") await this.#drop();
    await this.#say(say);
    if (end !== undefined) this.#finishOnce(end);
  }

  #lookIn(pauseMs: number): void {
    clearTimeout(this.#pauseTimer);
    this.#pauseTimer = setTimeout(() => void this.#look(), pauseMs);
  }

  /** Connects to the ring that the frontend offers, dropping the one being served, and then enters state `say`. */
  async #connect(say: XenbusState): Promise<void> {
    await this.#stopServing("close");
    const pauseMs = this.#pause.remainingMs();
    if (pauseMs > 0) return this.#lookIn(pauseMs);
    this.#pause.connecting();
    let connection: DiskConnection;
    using until = new DisposableStack();
    // This is not the ring that was in use. Cleared before the keys are read: whatever is written later is yet
    // another ring.
    if (this.#anew) this.#takeover = this.#anew = false;
    try {
      const { abi, sets, keepsGrants } = await readRingParameters(this.#xenstore, this.address);
      const [options, { devid }] = [this.#options, this.address];
      const platforms = await planePlatforms(options, devid, this.#platform, this.#image, sets, until);
      // Otherwise the ring may be that of another device under the same name; the next look will find ours gone.
      const isThere = await this.#directory.isThere();
      // If the device was abandoned in the meantime, there was no worker to stop, and the image is already closed.
      if (this.#over || !isThere) return;
      this.#stats.connecting(Math.max(...sets.map(({ length }) => length)));
      const { grantMode, engine, filters, verbosity, holdMs = Infinity, jail, dial } = this.#options;
      const passedOn = { verbosity, engine, filters, holdMs, jail, deviceId: this.#directory.deviceId };
      const order = {
        ...passedOn,
        name: this.#name,
        frontend: this.address.frontend,
        sets,
        abi: abi.name,
        image: this.#image,
        disk: this.#disk,
        grantMode: grantMode === "persistent" && !keepsGrants ? "copy" : grantMode,
        statsPath: this.#stats.path,
      };
      const how = [platforms, this.#rates, this.#trouble.held, dial, until] as const;
      connection = this.#connection = new DiskConnection(this.#spawnWorker, order, ...how);
      void connection.stopped.then(() => (this.#lost ??= connection.lost));
      await connection.connected;
    } catch (error) {
      this.#connection = undefined;
      return await this.#failed(error);
    }
    this.#refused = this.#takeover = false;
    await this.#trouble.over();
    if (say === XenbusState.Connected) await this.#connected();
    else await this.#say(say);
    // Attached only now: it also fires for a data plane that is already gone.
    void connection.stopped.then((failure) => this.#stopped(connection, failure));
  }

  /** Also announces a new size. */
  async #connected(): Promise<void> {
    const keys = diskKeys(this.#options.offer, this.#image.info, this.#disk);
    await this.#write({ ...keys, state: XenbusState.Connected });
    this.#entered(XenbusState.Connected);
  }

  async #stopServing(how: StopOrder): Promise<void> {
    this.#stopping = this.#connection?.stop(how, this.#directory) ?? this.#stopping;
    this.#connection = undefined;
    await this.#stopping;
  }

  /** The guest has let go of the ring or is about to: no successor will continue on it. */
  async #drop(): Promise<void> {
    await this.#stopServing("close");
    this.#takeover = this.#refused = false;
    removeJournals(this.#stats.path);
  }

  /** The worker has finished: after `stop`, or by itself because the ring or the engine failed. */
  async #stopped(connection: DiskConnection, failure: XentoolError | undefined): Promise<void> {
    if (this.#connection !== connection || this.#over) return;
    this.#connection = undefined;
    await this.#failed(failure ?? new XentoolError("bug", "the data plane stopped by itself"), true);
  }

  /**
   * Only a fault of the guest closes its device. When the host lacks something, we wait, and the ring, its journal
   * and the keys stay as they are. The same holds for a ring being taken over, whose keys an earlier server has
   * accepted.
   */
  async #failed(error: unknown, wasServed = this.#takeover): Promise<void> {
    if (this.#over) return;
    this.#pause.failed();
    try {
      if (kindOf(error) === "protocol" && !this.#takeover) return await this.#refuse(error);
      this.#takeover = wasServed;
      await this.#trouble.say(error);
      if (!this.#over) this.#lookIn(this.#pause.remainingMs());
    } catch (failure) {
      this.#fail(failure);
    }
  }

  /** Stops this device only, and writes the reason where Linux backends put it. */
  async #refuse(error: unknown): Promise<void> {
    const reason = this.#trouble.refused(error);
    this.#refused = true;
    await this.#write({ state: XenbusState.Closing }, reason);
    this.#entered(XenbusState.Closing);
  }

  async #resizeIfAsked(): Promise<void> {
    const resize = await this.#resizes.look(() => this.#over);
    if (resize === undefined) return;
    this.#events.resized(resize);
    const { sectors512 } = this.#disk;
    if (sectors512 !== resize.before) {
      this.#connection?.resize(sectors512);
      if (this.#state === XenbusState.Connected) await this.#connected();
    }
    await this.#write(resize.answer);
  }

  async #limitIfAsked(): Promise<void> {
    const isNew = await this.#rates.look();
    this.#stats.rates = this.#rates.rates;
    if (!isNew) return;
    if (this.#connection === undefined) this.#rates.beginAnew();
    else this.#connection.limit(this.#rates.rates);
    await this.#write(this.#rates.answer);
  }

  async #say(state: XenbusState): Promise<void> {
    if (this.#state === state) return;
    if (state === XenbusState.InitWait) return this.#offer(this.#options.offer);
    await this.#write({ state });
    this.#entered(state);
  }

  /** Enters InitWait, with the keys that this state promises. */
  async #offer(offer: Offer): Promise<void> {
    const state = XenbusState.InitWait;
    const keys = offeredKeys(offer, this.#options.grantMode, this.#image.info, this.#disk);
    await this.#write({ ...keys, "hotplug-status": "connected", state });
    this.#entered(state);
  }

  /** A failed write means that the device is gone; the next look handles that. */
  async #write(keys: Keys, error?: string): Promise<void> {
    if (!(await this.#directory.write(keys, error))) this.#looking.stale();
  }

  /** `asked`: in state Closing, the guest is to let go and does not do so by itself. */
  #entered(state: XenbusState, asked = this.#frontend !== XenbusState.Closing): void {
    this.#state = state;
    this.#stats.state = state;
    this.#events.entered(state, asked);
    logger.info(`${this.#name}: ${xenbusStateName(state)}`);
  }

  #fail(error: unknown): void {
    if (this.#over) return;
    this.#over = true;
    void this.#stopServing("leave")
      .then(() => this.#finish())
      .then(() => this.#end.reject(error));
  }

  #finishOnce(end: DeviceEnd): void {
    if (this.#over) return;
    this.#over = true;
    if (end !== "closed") this.#stats.removeWriteLog();
    void this.#finish()
      .then(() => this.#trouble.ended())
      .then(() => this.#end.resolve(end));
  }

  async #finish(): Promise<void> {
    clearTimeout(this.#pauseTimer);
    this.#looked.resolve();
    await this.#watches.close();
    this.#stats.remove();
  }

  get #name(): string {
    return describeDevice(this.address);
  }
}
