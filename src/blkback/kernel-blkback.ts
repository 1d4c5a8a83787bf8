// The kernel's own backend for disks (xen-blkback), which finds devices of kind vbd by itself: taking one from it that
// it was quicker to find than we, but none that it serves to a guest.
import { existsSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { XentoolError } from "../core/errors.ts";
import { describeDevice, type DeviceAddress } from "./address.ts";
import { SERVED } from "./device-lock.ts";

/**
 * Takes the device away from the kernel, if that has it. Fails when it is in use there (`isLive`): a disk that is to
 * be ours, with our hotplug script, the kernel cannot have brought so far, because it has no image for it.
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
