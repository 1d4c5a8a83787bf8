// One server per device: a lock beside the device's statistics. It is released when the process ends, so kill -9
// leaves the device to the next server.
import { join } from "node:path";
import { XentoolError } from "../core/errors.ts";
import { takeLock, type LockFile } from "../native/lock-file.ts";
import { describeDevice, type DeviceAddress } from "./address.ts";

/** The `reason` in the context of the error thrown when the device is already served. */
export const SERVED = "served";

export function lockPath(
  statsDir: string,
  { frontend, devid }: Pick<DeviceAddress, "frontend" | "devid">,
): string {
  return join(statsDir, `${frontend}-${devid}.lock`);
}

/** Throws `environment` when another process serves the device. Release the lock to let others serve it. */
export function lockDevice(statsDir: string, address: DeviceAddress): LockFile {
  const lock = takeLock(lockPath(statsDir, address));
  if (lock !== undefined) return lock;
  throw new XentoolError("environment", `${describeDevice(address)} is served by another process`, {
    reason: SERVED,
  });
}
