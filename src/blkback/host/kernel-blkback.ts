// The kernel's own block backend (xen-blkback), which claims devices of kind vbd by itself. A device that it claimed
// before we could is taken from it, but never one that it serves to a guest.
import { existsSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { XentoolError } from "../../core/errors.ts";
import { describeDevice, type DeviceAddress } from "../address.ts";
import { SERVED } from "../device/device-lock.ts";

/**
 * Unbinds the device from the kernel's backend, if that holds it. Throws `environment` when it is in use there
 * (`isLive`). A disk meant for us, with our hotplug script, cannot be in use there, because the kernel has no image
 * for it.
 */
export function releaseFromKernel(address: DeviceAddress, isLive: boolean, sysfs = "/sys"): void {
  const name = `vbd-${address.frontend}-${address.devid}`;
  const driver = join(sysfs, "bus/xen-backend/drivers/vbd");
  if (address.kind !== "vbd" || !existsSync(join(driver, name))) return;
  if (isLive)
    throw new XentoolError("environment", `${describeDevice(address)} is served by the kernel's blkback`, {
      reason: SERVED,
    });
  writeFileSync(join(driver, "unbind"), name);
}
