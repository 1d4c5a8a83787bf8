// What xenstore tells of who uses an image. Xen's hotplug script `block` (tools/hotplug/Linux/block, check_sharing)
// refuses a device that another backend's `physical-device` and `mode` say is written; we write the one so that it
// sees us, and read the other so that we see the kernel's blkback, which opens a device without claiming it.
// `physical-device-path` is left alone: by it libxl would hand the image to QEMU as well, as an emulated disk.
import { fstatSync } from "node:fs";
import type { Image } from "../block/image.ts";
import { tryStat } from "../block/image/attempt.ts";
import { majorMinor } from "../block/image/host-uses.ts";
import { identify, type ImageIdentity } from "../block/image/known.ts";
import { XentoolError } from "../core/errors.ts";
import { parseXenbusState, XenbusState, xenbusStateName } from "../protocol/xenbus.ts";
import type { Xenstore } from "../xenstore/client.ts";
import { backendDir, describeDevice, frontendDir, type DeviceAddress } from "./address.ts";
import { isDevice, type BackendDirectory } from "./backend-directory.ts";
import { isInUse } from "./decide.ts";

/** Which file or device was served here as a raw disk: the guest may have written anything to it since. */
const RAW_KEY = "xentool-raw";
const DEVICE_KEY = "physical-device";

/** Says that the device shows `image`; `claimed`: its directory, if it has been claimed already. */
export async function announceImage(
  xenstore: Xenstore,
  address: DeviceAddress,
  image: Image,
  claimed?: BackendDirectory,
): Promise<void> {
  const dir = backendDir(address);
  const device = image.isBlockDevice ? physicalDevice(image.path) : undefined;
  const { text: identity } = identify(fstatSync(image.fd));
  await xenstore.transaction(async (tx) => {
    if (!(await (claimed?.isThere(tx) ?? isDevice(tx, address)))) return;
    await tx.write(`${dir}/${RAW_KEY}`, identity);
    if (device !== undefined) await tx.write(`${dir}/${DEVICE_KEY}`, device);
    else if (await tx.exists(`${dir}/${DEVICE_KEY}`)) await tx.rm(`${dir}/${DEVICE_KEY}`);
  });
}

/** Whether a guest has had `path` as its raw disk here: then it keeps it, whatever it has made of its first sector. */
export async function hasServedRaw(
  xenstore: Xenstore,
  address: DeviceAddress,
  path: string,
): Promise<boolean> {
  const dir = backendDir(address);
  const served = await xenstore.tryRead(`${dir}/${RAW_KEY}`);
  const identity = identityOf(path);
  if (served !== null && identity?.isSure === true && served === identity.text) return true;
  const [backend, frontend] = [dir, frontendDir(address)].map((end) =>
    xenstore.tryRead(`${end}/state`).catch(() => null),
  );
  return isInUse(parseXenbusState((await backend) ?? null), parseXenbusState((await frontend) ?? null));
}

/**
 * Throws when another program has offered the device to its guest, QEMU for example: with two servers on one ring both
 * lose requests, and which of them has ended we cannot tell.
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

/** Throws when another program's backend shows the block device to a guest, and one of us two would write it. */
export async function refuseOthersDevice(
  xenstore: Xenstore,
  address: DeviceAddress,
  path: string,
  readOnly: boolean,
): Promise<void> {
  const device = physicalDevice(path);
  if (device === undefined) return;
  const root = `/local/domain/${address.backend}/backend`;
  for (const kind of await names(xenstore, root))
    for (const frontend of await names(xenstore, `${root}/${kind}`))
      for (const devid of await names(xenstore, `${root}/${kind}/${frontend}`)) {
        const dir = `${root}/${kind}/${frontend}/${devid}`;
        if (dir === backendDir(address) || !(await isOthersUse(xenstore, dir, device, readOnly))) continue;
        const vdev = (await xenstore.tryRead(`${dir}/dev`)) ?? devid;
        throw new XentoolError(
          "environment",
          `${path} is in use: it is ${vdev} of domain ${frontend} (${kind})`,
        );
      }
}

/** Among our own disks the locks on the image decide. */
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

/** As `stat -L -c %t:%T` has it, which is what the script compares; undefined for a file. */
function physicalDevice(path: string): string | undefined {
  const stat = tryStat(path);
  if (stat?.isBlockDevice() !== true) return undefined;
  return majorMinor(stat.rdev)
    .map((part) => part.toString(16))
    .join(":");
}

/** Undefined: there is none, or it may not be looked at. */
function identityOf(path: string): ImageIdentity | undefined {
  const stat = tryStat(path);
  return stat === undefined ? undefined : identify(stat);
}

async function names(xenstore: Xenstore, path: string): Promise<string[]> {
  return (await xenstore.exists(path)) ? xenstore.directory(path) : [];
}
