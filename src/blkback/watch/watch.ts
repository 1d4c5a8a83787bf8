// `xentool blkback watch`: serves every device of one kind as the toolstack creates them. Our devices are those whose
// `script` is our hotplug script, or all of them in a driver domain. docs/xen-notes.md says what libxl expects in
// return, and when; above all, libxl must never be left waiting without learning why.
import { HELD } from "../../block/image/open.ts";
import { describeError, kindOf, XentoolError } from "../../core/errors.ts";
import { escapeControls, moduleLogger } from "../../core/log.ts";
import type { Domid } from "../../core/types.ts";
import type { SpawnWorker } from "../../plane/plane.ts";
import type { Platform } from "../../platform/platform.ts";
import { XenbusState } from "../../protocol/xenbus.ts";
import type { Unwatch, Xenstore } from "../../xenstore/client.ts";
import { backendDir, describeDevice, type DeviceAddress } from "../address.ts";
import { disksAnswer } from "../stats/alive.ts";
import { HOLDER_PATIENCE_MS } from "../bounds.ts";
import { lockDevice, SERVED } from "../device/device-lock.ts";
import {
  BackendDirectory,
  offerUnlessClosing,
  removeBackend,
  writeKeys,
} from "../device/backend-directory.ts";
import { deviceNamed, namesIn } from "../device/device-directories.ts";
import { BlkbackDevice, type DeviceOptions } from "../device/device.ts";
import { ringKeys } from "../device/features.ts";
import { untilReady, type Successor } from "../guests/handover.ts";
import type { JailedIn } from "../../platform/jail.ts";
import { planeJail } from "../jail.ts";
import { isOurDevice } from "./our-devices.ts";
import { lookAtUnserved } from "./unserved-device.ts";
import { announceImage } from "../device/sharing.ts";
import type { LendDevices } from "../device/threads.ts";
import { openWatchedImage, type OpenDeviceImage } from "../image/watched-image.ts";

const logger = moduleLogger("watch");

/** Time until the next attempt at a device that is in use by a guest but could not be served. */
const RETRY_MS = 5000;
/** The first pause if another server has it, which may be about to end. It doubles up to RETRY_MS. */
const SERVED_RETRY_MS = 100;

/**
 * For an image that another disk of ours holds, which is being closed, we wait almost as long as libxl waits for
 * state 2 (LIBXL_INIT_TIMEOUT, 10 s), leaving time to report the reason.
 */
const OWN_PATIENCE_MS = 6000;
const HOLDER_PAUSE_MS = 200;

export interface WatchOptions extends Omit<DeviceOptions, "offer" | "jail" | "dial" | "lend"> {
  readonly kind: string;
  /** What is offered, except for the device type, which the toolstack chooses. */
  readonly offer: Omit<DeviceOptions["offer"], "deviceType">;
  readonly direct: boolean;
  /** "raw": treat the images as raw, whatever they look like. */
  readonly format?: "raw" | undefined;
  /** To the NBD server of an image, at most. */
  readonly connections?: number;
  /** Serve every device of the kind, whatever its script, as in a driver domain. */
  readonly anyScript: boolean;
  /** This process is in a jail of these parts. */
  readonly jailed?: JailedIn;
  /** Serve the disks of this guest alone. */
  readonly frontend?: Domid;
  /** Called when another number of devices is served or about to be. */
  readonly onCount?: (count: number) => void;
  /** Where the kernel lists its devices; tests substitute their own directory. */
  readonly sysfs?: string;
}

/** Lets nobody else serve a device until the result is released. Throws with the reason SERVED where somebody does. */
export type LockDevice = (address: DeviceAddress) => Promise<{ release(): Promise<void> | void }>;

/** What somebody else does for us, who are in a jail. */
export interface WatchHelp {
  readonly open: OpenDeviceImage;
  readonly lock: LockDevice;
  /** Without it, planes open Xen's devices themselves. */
  readonly lend?: LendDevices | undefined;
}

/** What serves the disks of a kind: this process, or one for each guest. */
export interface DiskServer {
  /** Rejects when xenstored is gone. */
  readonly failed: Promise<never>;
  /** Number of devices being served or started. */
  readonly deviceCount: number;
  /** Whether everything that serves has shown life since the last question, or at least within `patienceMs`. */
  answers(patienceMs: number): boolean;
  /** Stops serving without telling the guests: the next `watch` continues where this one stopped. */
  stop(): Promise<void>;
  /**
   * Like `stop`, with a next `watch` that is there already. If that goes before it serves alone, rejects and serves
   * on.
   */
  handOver(successor: Successor): Promise<void>;
}

/**
 * A device, and those of its keys that a toolstack may write last. Not our own keys, which would have us look for
 * ever.
 */
const LOOKED_AT = /^\/([0-9]+)\/([0-9]+)(?:\/(?:frontend|params|mode|script|state))?$/;

interface Served {
  readonly device: BlkbackDevice;
  /** Resolves when nothing of the device is left and its image is closed. */
  readonly over: Promise<void>;
}

interface Retry {
  readonly pauseMs: number;
  readonly timer: ReturnType<typeof setTimeout>;
  /** When it was first tried. */
  readonly sinceMs: number;
}

export class BackendWatch implements DiskServer {
  readonly failed: Promise<never>;
  /** Resolves when each device that was there at the start is served, or has a reason not to be. */
  readonly settled: Promise<void>;
  readonly #settle: () => void;
  readonly #platform: Platform;
  readonly #xenstore: Xenstore;
  readonly #options: WatchOptions;
  readonly #spawnWorker: SpawnWorker;
  readonly #help: WatchHelp;
  /** By path of the backend's directory; undefined while it is being started. */
  readonly #served = new Map<string, Served | undefined>();
  readonly #root: string;
  /** By path of the backend's directory: devices that could not be served and are to be tried again. */
  readonly #retries = new Map<string, Retry>();
  /** By the same: devices that are being started. */
  readonly #starting = new Map<string, Promise<void>>();
  #unwatch: Unwatch | undefined;
  #stopping = new AbortController();

  private constructor(
    platform: Platform,
    xenstore: Xenstore,
    options: WatchOptions,
    spawnWorker: SpawnWorker,
    help: WatchHelp,
  ) {
    this.#help = help;
    this.#platform = platform;
    this.#xenstore = xenstore;
    this.#options = options;
    this.#spawnWorker = spawnWorker;
    this.#root = `/local/domain/${platform.domid}/backend/${options.kind}`;
    const { promise, reject } = Promise.withResolvers<never>();
    promise.catch(() => {});
    xenstore.onClose(reject);
    this.failed = promise;
    ({ promise: this.settled, resolve: this.#settle } = Promise.withResolvers<void>());
  }

  /**
   * Serves the devices that exist, including those whose server died, and those created later. `help` replaces
   * our own ways to lock a device and to open its image.
   */
  static async start(
    platform: Platform,
    xenstore: Xenstore,
    options: WatchOptions,
    spawnWorker: SpawnWorker,
    help: WatchHelp = {
      open: (address, stop) => openWatchedImage(xenstore, options, spawnWorker, address, stop),
      lock: async (address) => lockDevice(options.statsDir, address),
    },
  ): Promise<BackendWatch> {
    const watch = new BackendWatch(platform, xenstore, options, spawnWorker, help);
    await watch.#begin();
    return watch;
  }

  get deviceCount(): number {
    return this.#served.size;
  }

  answers(): boolean {
    return disksAnswer(this.#options.engine);
  }

  /** The directory below which are the devices that we serve. */
  get #scope(): string {
    const { frontend } = this.#options;
    return frontend === undefined ? this.#root : `${this.#root}/${frontend}`;
  }

  async stop(): Promise<void> {
    this.#stopping.abort();
    await this.#unwatch?.();
    // Whoever started a device reports why it failed.
    await Promise.allSettled(this.#starting.values());
    for (const { timer } of this.#retries.values()) clearTimeout(timer);
    this.#retries.clear();
    const served = [...this.#served.values()].filter((it) => it !== undefined);
    await Promise.all(served.map((it) => it.device.abandon()));
    await Promise.all(served.map((it) => it.over));
  }

  /** Lets go of all guests at once; the successor takes what is free. */
  async handOver(successor: Successor): Promise<void> {
    await untilReady(successor);
    await this.stop();
    try {
      await successor.over();
    } catch (error) {
      this.#stopping = new AbortController();
      await this.#begin();
      throw error;
    }
  }

  async #begin(): Promise<void> {
    this.#unwatch = await this.#xenstore.watch(this.#scope, (path) => this.#changed(path));
  }

  async #changed(path: string): Promise<void> {
    const match = LOOKED_AT.exec(path.slice(this.#root.length));
    if (match !== null) await this.#look(match[1], match[2]);
    else if (path === this.#scope) await this.#lookAtAll();
  }

  /** All at once: guests of a server that is gone are waiting. */
  async #lookAtAll(): Promise<void> {
    const lookAtDisksOf = async (frontend: string): Promise<void> => {
      const devids = await namesIn(this.#xenstore, `${this.#root}/${frontend}`);
      await Promise.all(devids.map((devid) => this.#look(frontend, devid)));
    };
    const { frontend } = this.#options;
    const guests = frontend === undefined ? await namesIn(this.#xenstore, this.#root) : [String(frontend)];
    await Promise.all(guests.map(lookAtDisksOf));
    // Not waited for: further events must not come after the first look at every disk.
    void Promise.allSettled(this.#starting.values())
      .then(() => Promise.all([...this.#served.values()].flatMap((it) => it?.device.looked ?? [])))
      .then(this.#settle);
  }

  /** Does not wait for a device that is being started: it may take long, and others have events, too. */
  async #look(guest: string, devid: string): Promise<void> {
    const address = deviceNamed(this.#platform.domid, this.#options.kind, guest, devid);
    if (address === undefined) return;
    const before = this.#starting.get(backendDir(address));
    // What changes while it is being started is looked at afterwards.
    const started = before?.catch(() => {}).then(() => this.#lookAt(address));
    (started ?? (await this.#begun(address))?.started)?.catch((error: unknown) => {
      // That there is no xenstored any more, others say.
      if (this.#xenstore.failure === undefined)
        logger.error(`${describeDevice(address)}: ${describeError(error)}`);
    });
  }

  /** Resolves when a device that is to be served has been started, or is not to be tried any more. */
  async #lookAt(address: DeviceAddress): Promise<void> {
    await (
      await this.#begun(address)
    )?.started;
  }

  /** Looks at the device, and begins to start it if it is to be served. */
  async #begun(address: DeviceAddress): Promise<{ readonly started: Promise<void> } | undefined> {
    const dir = backendDir(address);
    const { anyScript } = this.#options;
    if (this.#served.has(dir) || !(await isOurDevice(this.#xenstore, dir, anyScript))) return undefined;
    const it = await lookAtUnserved(this.#xenstore, address);
    if (it.todo === "close") await this.#answerClose(address);
    if (it.todo !== "serve") return undefined;
    // Stopped, or already served since this look began.
    if (this.#stopping.signal.aborted || this.#served.has(dir)) return undefined;
    this.#note(dir, undefined);
    const started = this.#start(address, it.isOffered).finally(() => {
      if (this.#starting.get(dir) === started) this.#starting.delete(dir);
    });
    this.#starting.set(dir, started);
    return { started };
  }

  /**
   * Serves the device or reports why it cannot. A device that was offered before is retried instead, because nobody
   * would read the report.
   */
  async #start(address: DeviceAddress, isOffered: boolean): Promise<void> {
    const dir = backendDir(address);
    let directory: BackendDirectory | undefined;
    try {
      await using held = new AsyncDisposableStack();
      const lock = await this.#help.lock(address);
      held.defer(() => lock.release());
      // Claimed before its keys are read, so that they belong to the device that is then served.
      directory = await BackendDirectory.claim(this.#xenstore, address);
      const device = await this.#serve(address, directory, held);
      const kept = held.move();
      const over = device.ended
        .catch((error: unknown) => this.#tryAgain(address, error, RETRY_MS))
        .then(() => this.#ended(address, kept));
      this.#note(dir, { device, over });
    } catch (error) {
      this.#forget(dir);
      // What was being opened is left as it is, to the next server.
      if (kindOf(error) === "cancelled") return;
      const reason = error instanceof XentoolError ? error.context["reason"] : undefined;
      if (
        reason === HELD &&
        (isOffered || (await this.#offerToMigrated(address)) || this.#mayBeFreeSoon(dir, error))
      )
        this.#tryAgain(address, error, HOLDER_PAUSE_MS, isOffered ? directory : undefined);
      else if (reason === SERVED) this.#tryAgain(address, error, this.#pauseAtServed(dir));
      else if (isOffered) this.#tryAgain(address, error, RETRY_MS, directory);
      else await this.#refuse(address, directory, error);
    }
  }

  #note(dir: string, served: Served | undefined): void {
    this.#served.set(dir, served);
    this.#options.onCount?.(this.#served.size);
  }

  #forget(dir: string): void {
    this.#served.delete(dir);
    this.#options.onCount?.(this.#served.size);
  }

  #pauseAtServed(dir: string): number {
    const before = this.#retries.get(dir)?.pauseMs;
    return before === undefined ? SERVED_RETRY_MS : Math.min(RETRY_MS, before * 2);
  }

  /** Whether the holder of a new device's image may still release it in time. */
  #mayBeFreeSoon(dir: string, error: unknown): boolean {
    const { own, kept } = error instanceof XentoolError ? error.context : {};
    if (kept === true) return false;
    const since = this.#retries.get(dir)?.sinceMs ?? performance.now();
    return performance.now() - since < (own === true ? OWN_PATIENCE_MS : HOLDER_PATIENCE_MS);
  }

  /**
   * A guest that is being migrated has its disks at both ends: xl destroys the source only after the destination has
   * all of its own. So we tell libxl at once that the device is there, and the guest waits until the source releases
   * the image. xl names such a guest NAME--incoming while it arrives; returns false for any other guest.
   */
  async #offerToMigrated(address: DeviceAddress): Promise<boolean> {
    const name = `/local/domain/${address.frontend}/name`;
    if (!(await this.#xenstore.tryRead(name).catch(() => null))?.endsWith("--incoming")) return false;
    logger.info(
      `${describeDevice(address)}: offered to a guest that arrives; its image is still at the source's`,
    );
    const { offer, grantMode } = this.#options;
    const keys = ringKeys({ ...offer, deviceType: "disk" }, grantMode);
    return offerUnlessClosing(this.#xenstore, address, { ...keys, "hotplug-status": "connected" });
  }

  /**
   * Looks again in a while, and until then only says why in `directory`'s error node. A guest that was offered its disk
   * waits for the next server, a device with another server is that one's, and a new device's image may become free.
   */
  #tryAgain(address: DeviceAddress, error: unknown, pauseMs: number, directory?: BackendDirectory): void {
    if (this.#stopping.signal.aborted) return;
    const dir = backendDir(address);
    const before = this.#retries.get(dir);
    const reason = escapeControls(describeError(error));
    if (this.#xenstore.failure !== undefined) return logger.error(`${describeDevice(address)}: ${reason}`);
    if (before === undefined)
      logger.error(`${describeDevice(address)}: ${reason}; it is tried again until it succeeds`);
    void directory?.write({}, reason).catch(() => {});
    clearTimeout(before?.timer);
    const again = async (): Promise<void> => {
      try {
        await this.#lookAt(address);
        const isStill = this.#retries.get(dir)?.timer === timer;
        if (isStill && !this.#served.has(dir)) await directory?.clearError();
      } catch (failure) {
        logger.error(`${describeDevice(address)}: ${describeError(failure)}`);
      }
      // Served, or no longer to be served; otherwise another timer has replaced this one.
      if (this.#retries.get(dir)?.timer === timer) this.#retries.delete(dir);
    };
    const timer = setTimeout(() => void again(), pauseMs);
    this.#retries.set(dir, { pauseMs, timer, sinceMs: before?.sinceMs ?? performance.now() });
  }

  async #serve(
    address: DeviceAddress,
    directory: BackendDirectory,
    held: AsyncDisposableStack,
  ): Promise<BlkbackDevice> {
    const dir = backendDir(address);
    const read = (key: string): Promise<string | null> => this.#xenstore.tryRead(`${dir}/${key}`);
    const { offer, jailed, ...rest } = this.#options;
    const deviceType = (await read("device-type")) === "cdrom" ? "cdrom" : "disk";
    const opened = held.use(await this.#help.open(address, this.#stopping.signal));
    const { image, dial } = opened;
    await announceImage(this.#xenstore, address, image, directory);
    // What kept it from being served is over.
    if (this.#retries.has(dir)) await directory.clearError();
    const ground = { platform: this.#platform.descriptor, statsDir: rest.statsDir };
    const jail = jailed === undefined ? undefined : planeJail(jailed, ground, image);
    const device = await BlkbackDevice.start(
      this.#platform,
      this.#xenstore,
      address,
      image,
      { ...rest, jail, dial, lend: this.#help.lend, offer: { ...offer, deviceType } },
      this.#spawnWorker,
      directory,
    );
    opened.reportTo?.((why) => void device.noteTrouble(why));
    return device;
  }

  /** There may already be another device under the same name, whose events were taken for those of this one. */
  async #ended(address: DeviceAddress, held: AsyncDisposableStack): Promise<void> {
    await held.disposeAsync();
    this.#forget(backendDir(address));
    if (this.#xenstore.failure !== undefined || this.#stopping.signal.aborted) return;
    try {
      await this.#tidyUp(address);
      if (!this.#retries.has(backendDir(address))) await this.#lookAt(address);
    } catch (error) {
      logger.warn(`${describeDevice(address)}: ${describeError(error)}`);
    }
  }

  /** In a driver domain nobody else removes the directory, and the toolstack waits for its removal. */
  async #tidyUp(address: DeviceAddress): Promise<void> {
    if (this.#platform.domid !== 0) await removeBackend(this.#xenstore, address, true);
  }

  /**
   * Writes the reason where libxl looks for it, and state 2, because libxl does not look before that. Where our script
   * does not run, state 2 alone would mean that the disk is there; without it libxl gives up after 10 s.
   */
  async #refuse(
    address: DeviceAddress,
    directory: BackendDirectory | undefined,
    error: unknown,
  ): Promise<void> {
    const reason = escapeControls(describeError(error));
    logger.error(`${describeDevice(address)}: ${reason}`);
    const keys = { "hotplug-error": reason, "hotplug-status": "error" };
    if (this.#options.anyScript) await (directory?.write(keys) ?? writeKeys(this.#xenstore, address, keys));
    else if (await offerUnlessClosing(this.#xenstore, address, keys, directory)) return;
    await this.#lookAt(address);
  }

  /** Closes a device that is not served, e.g. a refused one, and is to go. */
  async #answerClose(address: DeviceAddress): Promise<void> {
    await writeKeys(this.#xenstore, address, { state: XenbusState.Closed });
    await this.#tidyUp(address);
  }
}
