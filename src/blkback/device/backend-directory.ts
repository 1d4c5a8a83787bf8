// The backend's directory of a device. It is written only in a transaction that has found the device there: a write
// in xenstore creates missing directories, so one that came after the toolstack removed the device would leave a
// partial directory behind. A server recognises the device that it serves by a mark, because a toolstack may remove a
// device and create another under the same name, for another image, before the server looks.
import { parseXenbusState, XenbusState } from "../../protocol/xenbus.ts";
import type { Unwatch, Xenstore } from "../../xenstore/client.ts";
import { errnoOf } from "../../xenstore/errors.ts";
import type { XenstoreOperations } from "../../xenstore/operations.ts";
import { backendDir, errorDir, frontendDir, type DeviceAddress } from "../address.ts";
import { readFrontendState } from "./end-states.ts";
import { isOurDevice } from "../watch/our-devices.ts";

/** Holds the server's mark. */
const MARK_KEY = "xentool-served-by";
/** Holds the device's own, which stays while servers come and go. */
const DEVICE_ID_KEY = "xentool-device";

/** States after which a guest connects. */
const INVITING: ReadonlySet<number> = new Set([XenbusState.InitWait, XenbusState.Connected]);

export type Keys = Readonly<Record<string, string | number>>;

/** Whether a server of ours has claimed the device, alive or not. */
export async function isClaimed(xenstore: XenstoreOperations, address: DeviceAddress): Promise<boolean> {
  return (await xenstore.tryRead(`${backendDir(address)}/${MARK_KEY}`)) !== null;
}

/** Whether a device exists, as opposed to the remains of one that a late write left. */
export function isDevice(xenstore: XenstoreOperations, address: DeviceAddress): Promise<boolean> {
  return xenstore.exists(`${backendDir(address)}/frontend`);
}

/** Writes `keys` for the toolstack, whoever serves the device. Returns false if there is no device. */
export function writeKeys(xenstore: Xenstore, address: DeviceAddress, keys: Keys): Promise<boolean> {
  return writeWhere(xenstore, (tx) => isDevice(tx, address), inside(address, keys));
}

/**
 * Writes `keys`, and state 2, which makes the toolstack read them. If the toolstack has asked the device to close,
 * its state stays, because it awaits our 6. `claimed` is the directory, if it has been claimed. Returns false if
 * there is no such device, or if it is closing.
 */
export function offerUnlessClosing(
  xenstore: Xenstore,
  address: DeviceAddress,
  keys: Keys,
  claimed?: BackendDirectory,
): Promise<boolean> {
  return xenstore.transaction(async (tx) => {
    if (!(await (claimed?.isThere(tx) ?? isDevice(tx, address)))) return false;
    const state = parseXenbusState(await tx.tryRead(`${backendDir(address)}/state`));
    const isClosing = state === XenbusState.Closing;
    const nodes = inside(address, isClosing ? keys : { ...keys, state: XenbusState.InitWait });
    for (const [path, value] of nodes) await tx.write(path, value);
    return !isClosing;
  });
}

/** Writes `keys` and state 2 if the device is ours and nobody has offered or refused it yet. Returns whether it did. */
export function offerIfNew(xenstore: Xenstore, address: DeviceAddress, keys: Keys): Promise<boolean> {
  const dir = backendDir(address);
  const isNew = async (tx: XenstoreOperations): Promise<boolean> =>
    (await isOurDevice(tx, dir, false)) &&
    parseXenbusState(await tx.tryRead(`${dir}/state`)) === XenbusState.Initialising;
  return writeWhere(xenstore, isNew, inside(address, { ...keys, state: XenbusState.InitWait }));
}

/**
 * Removes the backend's directory, and what would be empty or meaningless without it. With `onlyOffline`, keeps the
 * directory if the toolstack wants the device to stay, or has created another one.
 */
export function removeBackend(
  xenstore: Xenstore,
  address: DeviceAddress,
  onlyOffline: boolean,
): Promise<void> {
  return xenstore.transaction(async (tx) => {
    const dir = backendDir(address);
    const exists = await tx.exists(dir);
    if (exists && onlyOffline && (await tx.tryRead(`${dir}/online`)) !== "0") return;
    if (exists) await tx.rm(dir);
    await removeEmptyParent(tx, dir);
    await removeError(tx, address);
  });
}

async function removeError(tx: XenstoreOperations, address: DeviceAddress): Promise<void> {
  if (await tx.exists(errorDir(address))) await tx.rm(errorDir(address));
  await removeEmptyParent(tx, errorDir(address));
}

/** Some of a driver domain's directories may belong to the toolstack, and we may not be allowed to read them. */
async function removeEmptyParent(tx: XenstoreOperations, dir: string): Promise<void> {
  const parent = dir.replace(/\/[^/]*$/, "");
  try {
    if ((await tx.exists(parent)) && (await tx.directory(parent)).length === 0) await tx.rm(parent);
  } catch (error) {
    if (errnoOf(error) !== "EACCES") throw error;
  }
}

/** The directory as seen by the one server that has claimed the device. */
export class BackendDirectory {
  readonly #xenstore: Xenstore;
  readonly #address: DeviceAddress;
  /** Tells the device from all others that had its name or will have it, whoever serves them. */
  readonly deviceId: string;
  readonly #mark: string;
  /** The state that we wrote last. */
  #wrote: number | undefined;

  private constructor(xenstore: Xenstore, address: DeviceAddress, mark: string, deviceId: string) {
    this.#xenstore = xenstore;
    this.#address = address;
    this.#mark = mark;
    this.deviceId = deviceId;
  }

  /** Claims the device by marking it, if there is one. */
  static async claim(xenstore: Xenstore, address: DeviceAddress): Promise<BackendDirectory> {
    const mark = `${process.pid}-${crypto.randomUUID()}`;
    const deviceId = await xenstore.transaction(async (tx) => {
      const dir = backendDir(address);
      const reading = [isDevice(tx, address), tx.tryRead(`${dir}/${DEVICE_ID_KEY}`)] as const;
      const [isThere, known] = await Promise.all(reading);
      if (!isThere) return mark;
      if (known === null) await tx.write(`${dir}/${DEVICE_ID_KEY}`, mark);
      await tx.write(`${dir}/${MARK_KEY}`, mark);
      return known ?? mark;
    });
    return new BackendDirectory(xenstore, address, mark, deviceId);
  }

  /** Whether the device is still there and is the one that was claimed. */
  async isThere(xenstore: XenstoreOperations = this.#xenstore): Promise<boolean> {
    return (await xenstore.tryRead(`${backendDir(this.#address)}/${MARK_KEY}`)) === this.#mark;
  }

  /** Calls `onGone` when the device, or the guest's end of it, is gone, until the result is called. */
  async whenGone(onGone: () => void): Promise<Unwatch> {
    const look = async (): Promise<void> => {
      const frontend = await readFrontendState(this.#xenstore, this.#address);
      if (frontend === XenbusState.Unknown || !(await this.isThere())) onGone();
    };
    const paths = [backendDir(this.#address), `${frontendDir(this.#address)}/state`];
    const unwatch = await Promise.all(paths.map((path) => this.#xenstore.watch(path, look)));
    return async () => {
      await Promise.all(unwatch.map((it) => it()));
    };
  }

  /** Removes the error node once its reason no longer holds, or once nothing is left that it could be about. */
  clearError(): Promise<void> {
    return this.#xenstore.transaction(async (tx) => {
      const isOurs = (await this.isThere(tx)) || !(await isDevice(tx, this.#address));
      if (isOurs) await removeError(tx, this.#address);
    });
  }

  /**
   * Writes `keys` there, and `error` to the device's error node. A state that invites the guest is left out if the
   * toolstack has asked the device to close since we looked: a guest that reads Closing and then Connected may come to
   * harm (Linux 6.1's blkfront does). Returns false, writing nothing, if the device is gone.
   */
  write(keys: Keys, error?: string): Promise<boolean> {
    return this.#xenstore.transaction(async (tx) => {
      if (!(await this.isThere(tx))) return false;
      const { state, ...others } = keys;
      const isLate = INVITING.has(Number(state)) && (await this.#isAskedToClose(tx));
      const nodes = inside(this.#address, isLate ? others : keys);
      if (error !== undefined) nodes.push([`${errorDir(this.#address)}/error`, error]);
      await Promise.all(nodes.map(([path, value]) => tx.write(path, value)));
      if (state !== undefined && !isLate) this.#wrote = Number(state);
      return true;
    });
  }

  async #isAskedToClose(tx: XenstoreOperations): Promise<boolean> {
    const dir = backendDir(this.#address);
    if (parseXenbusState(await tx.tryRead(`${dir}/state`)) !== XenbusState.Closing) return false;
    // Closing may also be our own word, or a former server's, for a ring that was refused.
    const isTheirs = this.#wrote !== undefined && this.#wrote !== XenbusState.Closing;
    return isTheirs || (await tx.tryRead(`${dir}/online`)) === "0";
  }
}

function inside(address: DeviceAddress, keys: Keys): [string, string][] {
  return Object.entries(keys).map(([key, value]) => [`${backendDir(address)}/${key}`, String(value)]);
}

function writeWhere(
  xenstore: Xenstore,
  isThere: (tx: XenstoreOperations) => Promise<boolean>,
  nodes: readonly (readonly [path: string, value: string])[],
): Promise<boolean> {
  return xenstore.transaction(async (tx) => {
    if (!(await isThere(tx))) return false;
    for (const [path, value] of nodes) await tx.write(path, value);
    return true;
  });
}
