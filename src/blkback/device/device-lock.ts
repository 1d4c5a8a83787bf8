// One server per device: a lock in the state directory. It is released when the process ends, so kill -9 leaves the
// device to the next server. With the lock come the files that the last server left, wherever that had them.
import { join } from "node:path";
import { XentoolError } from "../../core/errors.ts";
import type { JailUser } from "../../native/jail.ts";
import { takeLock, type LockFile } from "../../native/lock-file.ts";
import { describeDevice, type DeviceAddress } from "../address.ts";
import { giveToGuest, takeFromGuest } from "./state-directory.ts";

/** The `reason` in the context of the error thrown when the device is already served. */
export const SERVED = "served";

export function lockPath(
  statsDir: string,
  { frontend, devid }: Pick<DeviceAddress, "frontend" | "devid">,
): string {
  return join(statsDir, `${frontend}-${devid}.lock`);
}

/**
 * For a server whose files are in the state directory. Throws `environment` when another process serves the device.
 * Release the lock to let others serve it.
 */
export function lockDevice(statsDir: string, address: DeviceAddress): LockFile {
  return lockAnd(statsDir, address, takeFromGuest);
}

/** The same for the process of a guest, whose files are in its guest's directory and `user`'s; without one, ours. */
export function lockForGuest(statsDir: string, address: DeviceAddress, user?: JailUser): LockFile {
  return lockAnd(statsDir, address, (dir, disk) => giveToGuest(dir, disk, user));
}

function lockAnd(statsDir: string, address: DeviceAddress, moveFiles: typeof takeFromGuest): LockFile {
  const lock = takeLock(lockPath(statsDir, address));
  if (lock !== undefined) {
    try {
      moveFiles(statsDir, address);
      return lock;
    } catch (error) {
      lock.release();
      throw new XentoolError("environment", `cannot move the files of ${describeDevice(address)}`, {}, error);
    }
  }
  throw new XentoolError("environment", `${describeDevice(address)} is served by another process`, {
    reason: SERVED,
  });
}
