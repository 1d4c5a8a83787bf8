// Coordinates through xenstore who uses an image. Xen's hotplug script `block` (tools/hotplug/Linux/block,
// check_sharing) refuses a device that another backend's `physical-device` and `mode` show as written to. We write
// `physical-device` so that the script sees us, and read that of other backends so that we see the kernel's blkback,
// which opens a device without claiming it. `physical-device-path` is left alone: with it libxl would also hand the
// image to QEMU, as an emulated disk.
import { fstatSync } from "node:fs";
import type { Image } from "../../block/image.ts";
import { tryStat } from "../../block/image/attempt.ts";
import { physicalDevice } from "../../block/image/host-uses.ts";
import { identify } from "../../block/image/known.ts";
import { XentoolError } from "../../core/errors.ts";
import { parseXenbusState, XenbusState, xenbusStateName } from "../../protocol/xenbus.ts";
import type { Xenstore } from "../../xenstore/client.ts";
import type { XenstoreOperations } from "../../xenstore/operations.ts";
import { backendDir, describeDevice, type DeviceAddress } from "../address.ts";
import { isDevice, type BackendDirectory } from "./backend-directory.ts";
import { devicesOf } from "./device-directories.ts";
import { isRingInUse, readBackendState, readFrontendState } from "./end-states.ts";

/**
 * Which file or device was served here as a raw disk, which the guest may have written anything to since; or what a
 * server or a program has, and then by which name, too.
 */
const RAW_KEY = "xentool-raw";
const DEVICE_KEY = "physical-device";

/**
 * Records that the device shows `image`; `claimed` is the device's directory, if it has been claimed already. Throws
 * `usage`, changing nothing, when a guest is using the device with another image: the path may lead to another one by
 * now.
 */
export async function announceImage(
  xenstore: Xenstore,
  address: DeviceAddress,
  image: Image,
  claimed?: BackendDirectory,
): Promise<void> {
  const dir = backendDir(address);
  const { identity, device } = identityOf(image);
  const readShown = (from: XenstoreOperations): Promise<(string | null)[]> =>
    Promise.all([RAW_KEY, DEVICE_KEY].map((key) => from.tryRead(`${dir}/${key}`)));
  // Read outside the transaction: a guest that writes its state all the time could make each transaction fail.
  const [isUsed, shown] = await Promise.all([isRingInUse(xenstore, address), readShown(xenstore)]);
  // As in a takeover, while a guest waits.
  if (shown[0] === identity && shown[1] === (device ?? null)) return;
  await xenstore.transaction(async (tx) => {
    if (!(await (claimed?.isThere(tx) ?? isDevice(tx, address)))) return;
    const [before = null, deviceBefore = null] = await readShown(tx);
    if (isUsed && before !== null && !isSameIdentity(before, identity))
      throw new XentoolError(
        "usage",
        `${describeDevice(address)} is in use with another image than ${image.path} is now (${before}, not ${identity}): serve that one`,
      );
    await tx.write(`${dir}/${RAW_KEY}`, identity);
    if (device !== undefined) await tx.write(`${dir}/${DEVICE_KEY}`, device);
    else if (deviceBefore !== null) await tx.rm(`${dir}/${DEVICE_KEY}`);
  });
}

/** How the device's keys name the image; `device` only for a block device. */
function identityOf(image: Image): { readonly identity: string; readonly device?: string | undefined } {
  if (image.kind === "nbd") {
    const its = image.identity === undefined ? [] : [image.identity];
    return { identity: [image.path, ...its].join(", "), device: image.device };
  }
  return { identity: image.identity, device: physicalDevice(fstatSync(image.fd)) };
}

/** Whether a server of ours shows an image as this device. */
export async function showsImage(xenstore: Xenstore, address: DeviceAddress): Promise<boolean> {
  return (await xenstore.tryRead(`${backendDir(address)}/${RAW_KEY}`)) !== null;
}

/** An older xentool wrote a block device's identity without its diskseq, and only the path of what a program opens. */
function isSameIdentity(before: string, now: string): boolean {
  return `${now},`.startsWith(`${before},`);
}

/**
 * Whether a guest already had `path` here as its raw disk. It then stays raw, whatever the guest has written to its
 * first sector.
 */
export async function hasServedRaw(
  xenstore: Xenstore,
  address: DeviceAddress,
  path: string,
): Promise<boolean> {
  const served = await xenstore.tryRead(`${backendDir(address)}/${RAW_KEY}`);
  const stat = tryStat(path);
  const identity = stat && identify(stat);
  if (served !== null && identity?.isSure === true && served === identity.text) return true;
  return isRingInUse(xenstore, address);
}

/**
 * Throws `environment` when another program, e.g. QEMU, has offered the device to its guest: with two servers on one
 * ring both lose requests, and we cannot tell whether the other one has ended.
 */
export async function refuseOthersOffer(xenstore: Xenstore, address: DeviceAddress): Promise<void> {
  const dir = backendDir(address);
  const state = parseXenbusState(await xenstore.tryRead(`${dir}/state`));
  const { Unknown, Initialising, Closed } = XenbusState;
  if (state === Unknown || state === Initialising || state === Closed) return;
  if ((await xenstore.tryRead(`${dir}/${RAW_KEY}`)) !== null) return;
  throw new XentoolError(
    "environment",
    `${describeDevice(address)} is ${xenbusStateName(state)}, and not by xentool: another program serves it`,
  );
}

/**
 * Throws `environment` when another program's backend shows the block device to a guest, and it or we would write to
 * it.
 */
export async function refuseOthersDevice(
  xenstore: Xenstore,
  address: DeviceAddress,
  path: string,
  readOnly: boolean,
): Promise<void> {
  const stat = tryStat(path);
  const device = stat && physicalDevice(stat);
  if (device === undefined) return;
  for (const other of await devicesOf(xenstore, address.backend)) {
    const dir = backendDir(other);
    if (dir === backendDir(address) || !(await isOthersUse(xenstore, dir, device, readOnly))) continue;
    const vdev = (await xenstore.tryRead(`${dir}/dev`)) ?? other.devid;
    throw new XentoolError(
      "environment",
      `${path} is in use: it is ${vdev} of domain ${other.frontend} (${other.kind})`,
    );
  }
}

/**
 * Whether the disk of ours that is called `user` (`describeDevice`) will keep its image, rather than let go of it soon:
 * it is of the same kind as `address`, and neither its guest nor a toolstack has begun to end it.
 */
export async function keepsImage(
  xenstore: Xenstore,
  { backend, kind }: DeviceAddress,
  user: string,
): Promise<boolean> {
  const holder = (await devicesOf(xenstore, backend, kind)).find((it) => describeDevice(it) === user);
  if (holder === undefined) return false;
  const { Initialising, Connected } = XenbusState;
  const states = [await readBackendState(xenstore, holder), await readFrontendState(xenstore, holder)];
  const areUp = states.every((state) => state >= Initialising && state <= Connected);
  return areUp && (await xenstore.tryRead(`${backendDir(holder)}/online`)) === "1";
}

/** Our own disks are skipped: the locks on the image decide between those. */
async function isOthersUse(
  xenstore: Xenstore,
  dir: string,
  device: string,
  readOnly: boolean,
): Promise<boolean> {
  const read = (key: string): Promise<string | null> => xenstore.tryRead(`${dir}/${key}`);
  if ((await read(DEVICE_KEY)) !== device || (await read(RAW_KEY)) !== null) return false;
  if (parseXenbusState(await read("state")) === XenbusState.Closed) return false;
  return !readOnly || (await read("mode")) !== "r";
}
