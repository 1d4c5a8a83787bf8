// One server for each device: a lock beside the device's statistics. It ends with the process, so that kill -9
// leaves the device to the next one.
import { join } from "node:path";
import { XentoolError } from "../core/errors.ts";
import { takeLock, type LockFile } from "../native/lock-file.ts";
import { describeDevice, type DeviceAddress } from "./address.ts";

/** In the context of the error that tells so. */
export const SERVED = "served";

/** Fails with `environment` when another process serves the device. Give it back to let others serve it. */
export function lockDevice(statsDir: string, address: DeviceAddress): LockFile {
  const lock = takeLock(join(statsDir, `${address.frontend}-${address.devid}.lock`));
  if (lock !== undefined) return lock;
  throw new XentoolError("environment", `${describeDevice(address)} is served by another process`, {
    reason: SERVED,
  });
}
