// `xentool blkback watch`: serves every device of one kind as the toolstack creates them. Ours are those
// whose `script` is our hotplug script, or all of them in a driver domain. What libxl expects in return, and
// when, is in docs/xen-notes.md; above all it never waits without learning why.
import { existsSync, writeFileSync } from "node:fs";
import { closeImage, openImage } from "../block/image.ts";
import { describeError, XentoolError } from "../core/errors.ts";
import { escapeControls, escapeText, moduleLogger } from "../core/log.ts";
import { DOMID_FIRST_RESERVED, parseDecimal, type Domid } from "../core/types.ts";
import type { SpawnWorker } from "../core/worker.ts";
import type { Platform } from "../platform/platform.ts";
import { parseXenbusState, XenbusState } from "../protocol/xenbus.ts";
import type { Unwatch, Xenstore } from "../xenstore/client.ts";
import { backendDir, describeDevice, frontendDir, type DeviceAddress } from "./address.ts";
import { lockDevice, SERVED } from "./device-lock.ts";
import { isInUse } from "./decide.ts";
import { BlkbackDevice, type DeviceOptions } from "./device.ts";
import { checkOffer } from "./features.ts";
import { HOTPLUG_SCRIPT } from "./install.ts";

const logger = moduleLogger("watch");

/** Until a device that a guest uses and that could not be served is tried again. */
const RETRY_MS = 5000;

export interface WatchOptions extends Omit<DeviceOptions, "offer"> {
  readonly kind: string;
  /** What is offered, but for the device type, which the toolstack says. */
  readonly offer: Omit<DeviceOptions["offer"], "deviceType">;
  readonly direct: boolean;
  /** Serve every device of the kind, whatever its script: in a driver domain. */
  readonly anyScript: boolean;
}

interface Served {
  readonly device: BlkbackDevice;
  /** Resolves when nothing of the device is left, its image closed. */
  readonly over: Promise<void>;
}

export class BackendWatch {
  /** Rejects when xenstored is gone. */
  readonly failed: Promise<never>;
  readonly #platform: Platform;
  readonly #xenstore: Xenstore;
  readonly #options: WatchOptions;
  readonly #spawnWorker: SpawnWorker;
  /** By path of the backend's directory; undefined while it is being started. */
  readonly #served = new Map<string, Served | undefined>();
  readonly #root: string;
  /** By path of the backend's directory: what could not be served and is to be tried again. */
  readonly #retries = new Map<string, ReturnType<typeof setTimeout>>();
  #unwatch: Unwatch | undefined;

  private constructor(
    platform: Platform,
    xenstore: Xenstore,
    options: WatchOptions,
    spawnWorker: SpawnWorker,
  ) {
    this.#platform = platform;
    this.#xenstore = xenstore;
    this.#options = options;
    this.#spawnWorker = spawnWorker;
    this.#root = `/local/domain/${platform.domid}/backend/${options.kind}`;
    const { promise, reject } = Promise.withResolvers<never>();
    promise.catch(() => {});
    xenstore.onClose(reject);
    this.failed = promise;
  }

  /** Serves what is there already, also devices whose server died, and what comes. */
  static async start(
    platform: Platform,
    xenstore: Xenstore,
    options: WatchOptions,
    spawnWorker: SpawnWorker,
  ): Promise<BackendWatch> {
    checkOffer({ ...options.offer, deviceType: "disk" });
    const watch = new BackendWatch(platform, xenstore, options, spawnWorker);
    watch.#unwatch = await xenstore.watch(watch.#root, (path) => watch.#changed(path));
    return watch;
  }

  /** How many devices are served. */
  get deviceCount(): number {
    return this.#served.size;
  }

  /** Stops serving without a word to the guests: the next `watch` goes on where this one stopped. */
  async stop(): Promise<void> {
    await this.#unwatch?.();
    for (const timer of this.#retries.values()) clearTimeout(timer);
    const served = [...this.#served.values()].filter((it) => it !== undefined);
    await Promise.all(served.map((it) => it.device.abandon()));
    await Promise.all(served.map((it) => it.over));
  }

  async #changed(path: string): Promise<void> {
    const match = /\/([0-9]+)\/([0-9]+)(\/(?:state|script))?$/.exec(path.slice(this.#root.length));
    if (match !== null) await this.#look(match[1] as string, match[2] as string);
    else if (path === this.#root) await this.#lookAtAll();
  }

  async #lookAtAll(): Promise<void> {
    for (const frontend of await this.#list(this.#root))
      for (const devid of await this.#list(`${this.#root}/${frontend}`)) await this.#look(frontend, devid);
  }

  async #list(path: string): Promise<string[]> {
    return (await this.#xenstore.exists(path)) ? this.#xenstore.directory(path) : [];
  }

  async #look(frontendName: string, devidName: string): Promise<void> {
    const frontend = parseDecimal(frontendName, DOMID_FIRST_RESERVED - 1);
    const devid = parseDecimal(devidName, 2 ** 29);
    if (frontend === undefined || devid === undefined) return;
    const { kind } = this.#options;
    const address = { backend: this.#platform.domid, kind, frontend: frontend as Domid, devid };
    const dir = backendDir(address);
    if (this.#served.has(dir) || !(await this.#isOurs(dir))) return;
    const state = parseXenbusState(await this.#xenstore.tryRead(`${dir}/state`));
    const isLive = isInUse(state, await this.#frontendState(address));
    if (!isLive) {
      if (state === XenbusState.Closing) return this.#answerClose(address);
      if (state === XenbusState.Unknown || state === XenbusState.Closed) return;
      if ((await this.#xenstore.tryRead(`${dir}/hotplug-status`)) === "error") return;
    }
    if (this.#served.has(dir)) return; // since we began to look
    this.#served.set(dir, undefined);
    await this.#serve(address).catch(async (error: unknown) => {
      this.#served.delete(dir);
      const isOthers = error instanceof XentoolError && error.context["reason"] === SERVED;
      if (isLive || isOthers) this.#tryAgain(address, error);
      else await this.#refuse(address, error);
    });
  }

  async #frontendState(address: DeviceAddress): Promise<XenbusState> {
    return parseXenbusState(await this.#xenstore.tryRead(`${frontendDir(address)}/state`).catch(() => null));
  }

  /** A guest that has a ring waits for its next server, and another server's device is its own: nothing is touched. */
  #tryAgain(address: DeviceAddress, error: unknown): void {
    const dir = backendDir(address);
    const reason = escapeControls(describeError(error));
    if (!this.#retries.has(dir))
      logger.error(`${describeDevice(address)}: ${reason}; it is tried again every ${RETRY_MS / 1000} s`);
    clearTimeout(this.#retries.get(dir));
    const again = async (): Promise<void> => {
      try {
        await this.#look(String(address.frontend), String(address.devid));
      } catch (failure) {
        logger.error(`${describeDevice(address)}: ${describeError(failure)}`);
      }
      // Served, or nobody's to serve any more; else there is another timer by now.
      if (this.#retries.get(dir) === timer) this.#retries.delete(dir);
    };
    const timer = setTimeout(() => void again(), RETRY_MS);
    this.#retries.set(dir, timer);
  }

  async #isOurs(dir: string): Promise<boolean> {
    if (this.#options.anyScript) return this.#xenstore.exists(`${dir}/frontend`);
    const script = await this.#xenstore.tryRead(`${dir}/script`);
    return script !== null && script.endsWith(`/${HOTPLUG_SCRIPT}`);
  }

  async #serve(address: DeviceAddress): Promise<void> {
    const dir = backendDir(address);
    const read = (key: string): Promise<string | null> => this.#xenstore.tryRead(`${dir}/${key}`);
    const { offer, direct, ...rest } = this.#options;
    using held = new DisposableStack();
    const lock = lockDevice(rest.statsDir, address);
    held.defer(() => lock.release());
    releaseFromKernel(address);
    const deviceType = (await read("device-type")) === "cdrom" ? "cdrom" : "disk";
    const mode = await read("mode");
    const image = openImage(imagePath(await read("params")), {
      readOnly: mode !== "w" || deviceType === "cdrom",
      shared: false,
      direct,
      sectorSizeBytes: offer.logicalSectorBytes,
      discard: (await read("discard-enable")) !== "0",
    });
    held.defer(() => closeImage(image));
    const device = await BlkbackDevice.start(
      this.#platform,
      this.#xenstore,
      address,
      image,
      { ...rest, offer: { ...offer, deviceType } },
      this.#spawnWorker,
    );
    const kept = held.move();
    const over = device.ended
      .catch((error: unknown) => logger.error(`${describeDevice(address)}: ${describeError(error)}`))
      .then(() => this.#ended(address, kept));
    this.#served.set(dir, { device, over });
  }

  /** In a driver domain nobody else removes the directory, and the toolstack waits for that. */
  async #ended(address: DeviceAddress, held: DisposableStack): Promise<void> {
    const dir = backendDir(address);
    held.dispose();
    this.#served.delete(dir);
    try {
      if (this.#xenstore.failure !== undefined || (await this.#xenstore.tryRead(`${dir}/online`)) !== "0")
        return;
      if (this.#platform.domid !== 0) await this.#xenstore.rm(dir);
    } catch (error) {
      logger.warn(`${describeDevice(address)}: ${describeError(error)}`);
    }
  }

  /** The reason, where libxl prints it from; state 2, because without it libxl would not look. */
  async #refuse(address: DeviceAddress, error: unknown): Promise<void> {
    const reason = escapeControls(describeError(error));
    const dir = backendDir(address);
    logger.error(`${describeDevice(address)}: ${reason}`);
    await this.#xenstore.transaction(async (tx) => {
      if (!(await tx.exists(dir))) return;
      await tx.write(`${dir}/hotplug-error`, reason);
      await tx.write(`${dir}/hotplug-status`, "error");
      await tx.write(`${dir}/state`, String(XenbusState.InitWait));
    });
  }

  /** A device that is not served, e.g. a refused one, and is to go. */
  async #answerClose(address: DeviceAddress): Promise<void> {
    const dir = backendDir(address);
    await this.#xenstore.write(`${dir}/state`, String(XenbusState.Closed));
    if (this.#platform.domid !== 0) await this.#xenstore.rm(dir);
  }
}

/** The file of a `params` node: a path, which libxl or a user may have given its format's name. */
function imagePath(params: string | null): string {
  const path = (params ?? "").replace(/^(aio|raw|file):/, "");
  if (!path.startsWith("/"))
    throw new XentoolError("usage", `target "${escapeText(path)}" is no absolute path of a raw image`);
  return path;
}

/** Takes the device away from the kernel's blkback, if that was quicker than we. */
function releaseFromKernel(address: DeviceAddress): void {
  const name = `vbd-${address.frontend}-${address.devid}`;
  const driver = "/sys/bus/xen-backend/drivers/vbd";
  if (address.kind === "vbd" && existsSync(`${driver}/${name}`)) writeFileSync(`${driver}/unbind`, name);
}
