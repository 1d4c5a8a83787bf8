// The toolstack's steps for one block device: create, hot-unplug, force off, remove. They do by hand what libxl
// does for a disk line; public/io/blkif.h and docs/misc/xenstore-paths define the nodes.
import { XentoolError } from "../core/errors.ts";
import { DOMID_FIRST_RESERVED, parseDecimal, type Domid } from "../core/types.ts";
import { noDomain } from "../platform/domains.ts";
import { domainExists } from "../xenstore/domains.ts";
import { XenbusState } from "../protocol/xenbus.ts";
import { vdevName } from "../protocol/blkif.ts";
import type { WaitOptions, Xenstore } from "../xenstore/client.ts";
import { errnoOf, nullIfDenied } from "../xenstore/errors.ts";
import { isDevice, removeBackend, writeKeys, type Keys } from "./device/backend-directory.ts";
import { backendDir, describeDevice, frontendDir, type DeviceAddress } from "./address.ts";
import { namesIn } from "./device/device-directories.ts";

export interface NewDevice {
  readonly address: DeviceAddress;
  readonly readOnly: boolean;
  readonly deviceType: "disk" | "cdrom";
  /** The image to serve. Empty: only the server started by hand for it knows, so no other may take the device. */
  readonly params: string;
  /** The first keys, if the server creates the device itself. The device then ends with its server; see SERVE_KEY. */
  readonly offered?: Keys;
}

/**
 * Written by `blkback serve` into a device that it has created and therefore removes in the end. If it was killed,
 * its successor removes the device.
 */
export const SERVE_KEY = "xentool-serve";

/**
 * Creates both directories of a device, with their owners. Throws `environment` when the device exists, or its domain
 * does not. QEMU and the kernels of dom0 serve all devices of a kind and take any that they find in state
 * 1. So a device that is already offered begins in state 2, and one without params has no state until its server is
 * there.
 */
export async function createDevice(xenstore: Xenstore, device: NewDevice): Promise<void> {
  const { address } = device;
  const back = backendDir(address);
  const front = frontendDir(address);
  if (!(await xenstore.exists(`/local/domain/${address.frontend}`))) throw noDomain(address.frontend);
  await xenstore.transaction(async (tx) => {
    if ((await tx.exists(front)) || (await isDevice(tx, address)))
      throw new XentoolError("environment", `${describeDevice(address)} exists already`);
    // A late write may have left remains of an earlier device.
    if (await tx.exists(back)) await tx.rm(back);
    await tx.mkdir(back);
    await tx.setPerms(back, [
      { domid: address.backend, access: "none" },
      { domid: address.frontend, access: "read" },
    ]);
    await tx.mkdir(front);
    await tx.setPerms(front, [
      { domid: address.frontend, access: "none" },
      { domid: address.backend, access: "read" },
    ]);
    const backend = {
      frontend: front,
      "frontend-id": address.frontend,
      params: device.params,
      online: 1,
      removable: device.deviceType === "cdrom" ? 1 : 0,
      bootable: 1,
      dev: vdevName(address.devid),
      type: address.kind,
      mode: device.readOnly || device.deviceType === "cdrom" ? "r" : "w",
      "device-type": device.deviceType,
      "hotplug-status": "connected",
      ...(device.params !== "" && { state: XenbusState.Initialising }),
      ...(device.offered !== undefined && { [SERVE_KEY]: 1, ...device.offered, state: XenbusState.InitWait }),
    };
    const frontend = {
      backend: back,
      "backend-id": address.backend,
      "virtual-device": address.devid,
      "device-type": device.deviceType,
      state: XenbusState.Initialising,
    };
    for (const [key, value] of Object.entries(backend)) await tx.write(`${back}/${key}`, String(value));
    for (const [key, value] of Object.entries(frontend)) await tx.write(`${front}/${key}`, String(value));
    if (await isForLibxl(tx, address))
      for (const [key, value] of Object.entries({ ...backend, backend: back }))
        await tx.write(`${libxlRecord(address)}/${key}`, String(value));
  });
}

/**
 * libxl's own record of a device. With it `xl block-list` shows the device, `xl block-detach` detaches it, `xl
 * block-attach` does not replace it, and it is removed with its domain even if nobody serves it.
 */
function libxlRecord({ frontend, devid }: DeviceAddress): string {
  return `/libxl/${frontend}/device/vbd/${devid}`;
}

/** qdisk is the one kind known to libxl for which it runs no script. */
async function isForLibxl(tx: Pick<Xenstore, "exists">, { kind, frontend }: DeviceAddress): Promise<boolean> {
  return kind === "qdisk" && (await tx.exists(`/libxl/${frontend}`));
}

/**
 * Removes all directories of the device that exist, whatever state they are in, but none of another backend's. The
 * frontend's is removed outside the transaction: a guest that writes to its directory all the time could make each
 * one fail.
 */
export async function destroyDevice(xenstore: Xenstore, address: DeviceAddress): Promise<void> {
  const [back, front, record] = [backendDir(address), frontendDir(address), libxlRecord(address)];
  const isOurs = (await otherBackend(xenstore, address)) === undefined;
  await removeBackend(xenstore, address, false);
  const isLibxls = (await readIfAllowed(xenstore, `${record}/backend`)) === back;
  if (isOurs) await removeIfThere(xenstore, front);
  if (isLibxls) await removeIfThere(xenstore, record);
}

/** libxl may be removing it at the same time. */
async function removeIfThere(xenstore: Xenstore, path: string): Promise<void> {
  try {
    if (await xenstore.exists(path)) await xenstore.rm(path);
  } catch (error) {
    if (errnoOf(error) !== "ENOENT") throw error;
  }
}

/** Hot-unplug: asks the backend to close, which asks the guest. The guest decides when. */
export async function closeDevice(xenstore: Xenstore, address: DeviceAddress): Promise<void> {
  await requireWritten(xenstore, address, { online: 0, state: XenbusState.Closing });
}

/**
 * Sets the state to Closed in the guest's place, for good: the guest can no longer write its state. Data that it has
 * not yet written to the disk is lost.
 */
export async function forceCloseDevice(xenstore: Xenstore, address: DeviceAddress): Promise<void> {
  await expectOurFrontend(xenstore, address);
  await requireWritten(xenstore, address, { online: 0 });
  const state = `${frontendDir(address)}/state`;
  try {
    await xenstore.setPerms(state, [
      { domid: 0, access: "none" },
      { domid: address.frontend, access: "read" },
      { domid: address.backend, access: "read" },
    ]);
  } catch (error) {
    if (errnoOf(error) !== "ENOENT") throw error;
  }
  // Only now that the guest cannot write the state: it could otherwise make each transaction fail.
  await xenstore.transaction(async (tx) => {
    if (await tx.exists(state)) await tx.write(state, String(XenbusState.Closed));
  });
}

/** Waits until the backend has closed or the device is gone; otherwise throws `timeout`, and says who is late. */
export async function waitUntilClosed(
  xenstore: Xenstore,
  address: DeviceAddress,
  timeoutMs: number,
  signal: AbortSignal,
): Promise<void> {
  const isClosed = (state: string | null): boolean => state === null || state === String(XenbusState.Closed);
  try {
    await xenstore.waitFor(`${backendDir(address)}/state`, isClosed, { timeoutMs, signal });
  } catch (error) {
    if (!(error instanceof XentoolError) || error.kind !== "timeout") throw error;
    const late = isClosed(await readIfAllowed(xenstore, `${frontendDir(address)}/state`))
      ? "the guest has let go, but the disk's server is gone or hangs; `xentool blkback destroy` removes the disk"
      : "the guest did not let go; it may still";
    const text = `${describeDevice(address)} has not closed within ${timeoutMs / 1000} s: ${late}`;
    throw new XentoolError("timeout", text, { timeoutMs });
  }
}

/** Writes `keys` into the backend's directory. Throws `environment` if there is no such device. */
export async function requireWritten(xenstore: Xenstore, address: DeviceAddress, keys: Keys): Promise<void> {
  if (!(await writeKeys(xenstore, address, keys))) throw await noDevice(xenstore, address);
}

/**
 * Asks the device's server by `keys`, and waits until it has written what `parse` takes for the answer to `answerKey`.
 * `outlook` ends the error when nobody does.
 */
export async function askServer<T>(
  xenstore: Xenstore,
  address: DeviceAddress,
  keys: Keys,
  answerKey: string,
  parse: (text: string | null) => T | undefined,
  wait: WaitOptions,
  outlook = "",
): Promise<T> {
  await requireWritten(xenstore, address, keys);
  const path = `${backendDir(address)}/${answerKey}`;
  try {
    return parse(await xenstore.waitFor(path, (text) => parse(text) !== undefined, wait)) as T;
  } catch (error) {
    if (!(error instanceof XentoolError) || error.kind !== "timeout") throw error;
    const text = `${describeDevice(address)} seems not to be served: nobody has answered${outlook}`;
    throw new XentoolError("timeout", text);
  }
}

/** The error for a device that does not exist, perhaps because its domain does not. */
export async function noDevice(xenstore: Xenstore, address: DeviceAddress): Promise<XentoolError> {
  if ((await domainExists(xenstore, address.frontend)) === false) return noDomain(address.frontend);
  const text = `there is no ${describeDevice(address)} with a backend of kind ${address.kind}`;
  return new XentoolError("environment", text);
}

/**
 * Throws `environment` when the frontend belongs to another backend's device by now: a mistyped kind would otherwise
 * hit another disk, perhaps one in use.
 */
export async function expectOurFrontend(xenstore: Xenstore, address: DeviceAddress): Promise<void> {
  const other = await otherBackend(xenstore, address);
  if (other === undefined) return;
  const text = `${describeDevice(address)} is the device of another backend, ${other}`;
  throw new XentoolError("environment", text);
}

/** The guest names its backend, so the name is trusted only if that backend has this very device. */
async function otherBackend(xenstore: Xenstore, address: DeviceAddress): Promise<string | undefined> {
  const named = await readIfAllowed(xenstore, `${frontendDir(address)}/backend`);
  if (named === null || named === backendDir(address)) return undefined;
  const [, owner, kind] = /^\/local\/domain\/([0-9]+)\/backend\/([\w-]+)\//.exec(named) ?? [];
  const backend = parseDecimal(owner ?? null, DOMID_FIRST_RESERVED - 1);
  if (backend === undefined || kind === undefined) return undefined;
  const other = backendDir({ ...address, backend: backend as Domid, kind });
  return named === other && (await readIfAllowed(xenstore, `${other}/state`)) !== null ? other : undefined;
}

function readIfAllowed(xenstore: Xenstore, path: string): Promise<string | null> {
  return xenstore.tryRead(path).catch(nullIfDenied);
}

/**
 * Finds the kind of the backend that serves this frontend, or undefined if there is none. Throws `usage` when there
 * are several.
 */
export async function findKind(
  xenstore: Xenstore,
  device: Omit<DeviceAddress, "kind">,
): Promise<string | undefined> {
  const found = await findKinds(xenstore, device);
  if (found.length < 2) return found[0];
  const text = `${vdevName(device.devid)} of domain ${device.frontend} has several backends: say --kind ${found.toSorted().join(" or ")}`;
  throw new XentoolError("usage", text);
}

/** The kinds of all backends of this domain that have a directory for this frontend. */
export async function findKinds(
  xenstore: Xenstore,
  { backend, frontend, devid }: Omit<DeviceAddress, "kind">,
): Promise<string[]> {
  const found: string[] = [];
  for (const kind of await namesIn(xenstore, `/local/domain/${backend}/backend`)) {
    const address = { backend, kind, frontend, devid };
    if ((await xenstore.tryRead(`${backendDir(address)}/frontend`)) === frontendDir(address))
      found.push(kind);
  }
  return found;
}
