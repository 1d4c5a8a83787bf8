// One server for each device: a lock beside the device's statistics. It ends with the process, so that kill -9
// leaves the device to the next one.
import { closeSync, fstatSync, mkdirSync, openSync, rmSync, statSync } from "node:fs";
import { join } from "node:path";
import { XentoolError } from "../core/errors.ts";
import { check, errnoName, shim } from "../native/shim.ts";
import { describeDevice, type DeviceAddress } from "./address.ts";

/** In the context of the error that tells so. */
export const SERVED = "served";

/** Give it back to let others serve the device. */
export interface DeviceLock {
  release(): void;
}

/** Fails with `environment` when another process serves the device. */
export function lockDevice(statsDir: string, address: DeviceAddress): DeviceLock {
  mkdirSync(statsDir, { recursive: true, mode: 0o755 });
  const path = join(statsDir, `${address.frontend}-${address.devid}.lock`);
  for (;;) {
    const fd = openSync(path, "w", 0o644);
    const error = shim.xt_file_lock(fd, 1);
    if (error === 0 && isStill(fd, path)) return { release: () => release(fd, path) };
    closeSync(fd);
    if (error === 0) continue; // its owner removed it meanwhile
    if (errnoName(error) === "EAGAIN")
      throw new XentoolError("environment", `${describeDevice(address)} is served by another process`, {
        reason: SERVED,
      });
    check(error, `lock ${path}`);
  }
}

function isStill(fd: number, path: string): boolean {
  return statSync(path, { throwIfNoEntry: false })?.ino === fstatSync(fd).ino;
}

function release(fd: number, path: string): void {
  rmSync(path, { force: true });
  closeSync(fd);
}
