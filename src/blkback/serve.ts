// `xentool blkback serve` as a function: opens the image, makes the device unless a toolstack has, serves it
// until the guest lets go or the caller says stop, and leaves nothing behind.
import { closeImage, openImage } from "../block/image.ts";
import { describeError, XentoolError } from "../core/errors.ts";
import { moduleLogger } from "../core/log.ts";
import type { SpawnWorker } from "../core/worker.ts";
import type { Platform } from "../platform/platform.ts";
import type { Xenstore } from "../xenstore/client.ts";
import { backendDir, describeDevice, type DeviceAddress } from "./address.ts";
import { BlkbackDevice, type DeviceEnd, type DeviceOptions } from "./device.ts";
import { lockDevice } from "./device-lock.ts";
import { checkOffer } from "./features.ts";
import { createDevice, destroyDevice, SERVE_KEY } from "./toolstack.ts";

const logger = moduleLogger("blkback");

export interface ServeOptions extends DeviceOptions {
  readonly path: string;
  readonly address: DeviceAddress;
  readonly readOnly: boolean;
  /** Without the lock that keeps others from writing the image. */
  readonly shared: boolean;
  readonly direct: boolean;
  /** How long a guest may take to let go after `stop` fired. */
  readonly detachTimeoutMs: number;
}

/** How serving ended. `left`: the guest did not let go, the device stays for another server. */
export type ServeEnd = DeviceEnd | "left";

/**
 * Serves until the device is over or `stop` fires; `force` ends the wait for the guest then. `onOffered`
 * runs once a guest may connect.
 */
export async function serveImage(
  platform: Platform,
  xenstore: Xenstore,
  options: ServeOptions,
  spawnWorker: SpawnWorker,
  stop: AbortSignal,
  force: AbortSignal,
  onOffered: () => void,
): Promise<ServeEnd> {
  checkOffer(options.offer);
  const { address } = options;
  using cleanup = new DisposableStack();
  const lock = lockDevice(options.statsDir, address);
  cleanup.defer(() => lock.release());
  const image = openImage(options.path, {
    readOnly: options.readOnly,
    shared: options.shared,
    direct: options.direct,
    sectorSizeBytes: options.offer.logicalSectorBytes,
  });
  let made = false;
  try {
    made = await ensureDevice(xenstore, options);
    const device = await BlkbackDevice.start(platform, xenstore, address, image, options, spawnWorker);
    onOffered();
    const stopped = new Promise<"stop">((resolve) => {
      if (stop.aborted) resolve("stop");
      stop.addEventListener("abort", () => resolve("stop"));
    });
    const end = await Promise.race([device.ended, stopped]);
    if (end !== "stop") return end;
    if (await device.detach(options.detachTimeoutMs, force)) return await device.ended;
    await device.abandon();
    made = false;
    return "left";
  } finally {
    if (made && xenstore.failure === undefined)
      await destroyDevice(xenstore, address).catch((error: unknown) => logger.error(describeError(error)));
    closeImage(image);
  }
}

/** Makes the device when nobody has; a device that is there is served as it is. True: it is to go in the end. */
async function ensureDevice(xenstore: Xenstore, options: ServeOptions): Promise<boolean> {
  const { address, readOnly, offer, path } = options;
  const dir = backendDir(address);
  if (!(await xenstore.exists(dir))) {
    const { deviceType } = offer;
    await createDevice(xenstore, { address, readOnly, deviceType, params: path, temporary: true });
    return true;
  }
  const mode = await xenstore.tryRead(`${dir}/mode`);
  if (mode === "r" && !readOnly)
    throw new XentoolError(
      "usage",
      `${describeDevice(address)} was created read-only: serve it with --mode r`,
    );
  return (await xenstore.tryRead(`${dir}/${SERVE_KEY}`)) !== null;
}
