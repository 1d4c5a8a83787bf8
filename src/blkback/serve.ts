// `xentool blkback serve` as a function: opens the image, creates the device unless a toolstack already has, serves
// it until it is detached, its guest is gone or the caller asks to stop, and leaves nothing behind.
import type { Image } from "../block/image.ts";
import type { OpenedImage } from "../block/image/opened.ts";
import type { Opener } from "../block/image/program.ts";
import { COMMAND_WAYS } from "../block/image/open.ts";
import { openWhenFree } from "../block/image/wait.ts";
import { unlessAborted } from "../core/deadline.ts";
import { describeError, XentoolError } from "../core/errors.ts";
import { moduleLogger } from "../core/log.ts";
import type { SpawnWorker } from "../plane/plane.ts";
import type { Platform } from "../platform/platform.ts";
import type { Xenstore } from "../xenstore/client.ts";
import { backendDir, describeDevice, frontendDir, type DeviceAddress } from "./address.ts";
import { HOLDER_PATIENCE_MS } from "./bounds.ts";
import { isDevice, writeKeys } from "./device/backend-directory.ts";
import type { DeviceEnd } from "./device/decide.ts";
import { BlkbackDevice, type DeviceOptions } from "./device/device.ts";
import { lockDevice } from "./device/device-lock.ts";
import { openDiskImage } from "./image/disk-image.ts";
import { isRingInUse } from "./device/end-states.ts";
import { offeredDisk, offeredKeys } from "./device/features.ts";
import { enterServerJail, planeJail, type JailWish } from "./jail.ts";
import { keysOfRates, type AskedRates } from "./limits/rate-keys.ts";
import { removeOfGoneGuests } from "./device/remains.ts";
import { removeWriteLog } from "./data-plane/server-line.ts";
import { announceImage, refuseOthersOffer } from "./device/sharing.ts";
import { statsPath } from "./stats/stats.ts";
import { createDevice, destroyDevice, expectOurFrontend, SERVE_KEY } from "./toolstack.ts";

const logger = moduleLogger("blkback");

export interface ServeOptions extends DeviceOptions {
  readonly path: string;
  readonly address: DeviceAddress;
  readonly readOnly: boolean;
  /** Others may write to the image, too. */
  readonly shared: boolean;
  /** "raw": treat the image as raw, whatever it looks like. */
  readonly format?: "raw" | undefined;
  /** How to open an image that is not raw. */
  readonly opener?: Opener | undefined;
  readonly direct: boolean;
  /** To the NBD server of the image, at most. */
  readonly connections?: number;
  /** False: a qcow2 is read and written by its daemon alone. */
  readonly inPlace?: boolean;
  /** Written into the device's keys: they count for whoever serves it next, too. */
  readonly askedRates?: AskedRates;
  /** Enter a jail before the guest can say anything. Not with an `opener`. */
  readonly jailWish?: JailWish | undefined;
  /** How long a guest may take to let go after `stop` has fired. */
  readonly detachTimeoutMs: number;
}

/** How serving ended. `left`: the guest did not let go, and the device stays for another server. */
export type ServeEnd = DeviceEnd | "left";

/**
 * Serves until the device has ended or `stop` fires; after `stop`, `force` ends the wait for the guest. `onOffered`
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
  const { address } = options;
  await removeOfGoneGuests(platform, xenstore);
  using cleanup = new DisposableStack();
  const lock = lockDevice(options.statsDir, address);
  cleanup.defer(() => lock.release());
  await using opened = await openServedImage(xenstore, options, stop, spawnWorker);
  const { image } = opened;
  let removes = false;
  try {
    const origin = await ensureDevice(xenstore, image, options);
    removes = origin === "made";
    await announceImage(xenstore, address, image);
    await writeKeys(xenstore, address, keysOfRates(options.askedRates ?? {}));
    const ground = { platform: platform.descriptor, statsDir: options.statsDir };
    // A program that opens the image for us is started again when it dies, which nobody in a jail can do.
    const wish = options.opener === undefined ? options.jailWish : undefined;
    const parts = wish && enterServerJail(wish, ground, image);
    const jail = parts === undefined ? undefined : planeJail(parts, ground, image);
    const how = { ...options, jail, dial: opened.dial };
    const device = await BlkbackDevice.start(platform, xenstore, address, image, how, spawnWorker);
    // From now on a guest may use the device, whatever becomes of us, until it has let go.
    removes = false;
    opened.reportTo?.((why) => void device.noteTrouble(why));
    onOffered();
    const end = await unlessAborted(device.ended, stop);
    const closed = end === undefined ? await device.detach(options.detachTimeoutMs, force) : true;
    if (!closed) {
      await device.abandon();
      return "left";
    }
    const ended = await device.ended;
    // If the device was removed, another one may already exist under the same name.
    removes = origin !== "toolstack" && ended !== "removed";
    if (removes) removeWriteLog(statsPath(options.statsDir, address.frontend, address.devid));
    return expectKept(device, ended);
  } finally {
    if (removes && xenstore.failure === undefined)
      await destroyDevice(xenstore, address).catch((error: unknown) => logger.error(describeError(error)));
  }
}

/** A disk that may lack some of its guest's writes was not served well, however cleanly the guest let go. */
function expectKept(device: BlkbackDevice, end: DeviceEnd): DeviceEnd {
  if (device.lost === undefined) return end;
  throw new XentoolError(
    "io",
    `a flush of ${describeDevice(device.address)} failed, and what the guest wrote before may be lost: ${device.lost}`,
  );
}

function openServedImage(
  xenstore: Xenstore,
  options: ServeOptions,
  stop: AbortSignal,
  spawnWorker: SpawnWorker,
): Promise<OpenedImage> {
  const { address, path: source, readOnly, shared, direct, format, opener, statsDir } = options;
  const { connections, inPlace } = options;
  const sectorSizeBytes = options.offer.logicalSectorBytes;
  const asked = { source, readOnly, shared, direct, format, opener, connections, inPlace, sectorSizeBytes };
  return openWhenFree(
    () => openDiskImage(xenstore, address, { ...asked, ways: COMMAND_WAYS, statsDir, spawnWorker, stop }),
    (waitedMs) => waitedMs < HOLDER_PATIENCE_MS && !stop.aborted,
  );
}

/**
 * Who created a device. Devices created by a `serve`, this one or an earlier one, are removed by the one that serves
 * them last.
 */
type Origin = "made" | "serve" | "toolstack";

/** Creates the device if it does not exist; an existing device is served as it is. */
async function ensureDevice(xenstore: Xenstore, image: Image, options: ServeOptions): Promise<Origin> {
  const { address, readOnly, offer } = options;
  const dir = backendDir(address);
  await removeLeftover(xenstore, address);
  if (!(await isDevice(xenstore, address))) {
    const { deviceType } = offer;
    const offered = offeredKeys(offer, options.grantMode, image.info, offeredDisk(offer, image.info));
    await createDevice(xenstore, { address, readOnly, deviceType, params: image.path, offered });
    return "made";
  }
  await expectOurFrontend(xenstore, address);
  const mode = await xenstore.tryRead(`${dir}/mode`);
  if (mode === "r" && !readOnly)
    throw new XentoolError(
      "usage",
      `${describeDevice(address)} was created read-only: serve it with --mode r`,
    );
  if ((await xenstore.tryRead(`${dir}/${SERVE_KEY}`)) === null) {
    await refuseOthersOffer(xenstore, address);
    return "toolstack";
  }
  await expectSameImage(xenstore, options, image.path);
  return "serve";
}

/**
 * A device whose guest's directory is gone reaches nobody. It is removed if a `serve` created it, and refused
 * otherwise.
 */
async function removeLeftover(xenstore: Xenstore, address: DeviceAddress): Promise<void> {
  if (!(await isDevice(xenstore, address))) return;
  const state = xenstore.tryRead(`${frontendDir(address)}/state`);
  if ((await state.catch(() => "it may not be read")) !== null) return;
  if ((await xenstore.tryRead(`${backendDir(address)}/${SERVE_KEY}`)) === null)
    throw new XentoolError(
      "environment",
      `${describeDevice(address)} has lost its guest's directory: remove it first (xentool blkback destroy)`,
    );
  await destroyDevice(xenstore, address);
}

/** A disk in use by a guest must not turn into another one because of a mistyped name. */
async function expectSameImage(
  xenstore: Xenstore,
  { address }: ServeOptions,
  imagePath: string,
): Promise<void> {
  const before = await xenstore.tryRead(`${backendDir(address)}/params`);
  if (before === null || before === imagePath) return;
  if (await isRingInUse(xenstore, address))
    throw new XentoolError(
      "usage",
      `${describeDevice(address)} is in use with the image ${before}: serve that one`,
    );
  await writeKeys(xenstore, address, { params: imagePath });
}
