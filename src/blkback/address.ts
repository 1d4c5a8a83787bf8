// Which device: the four numbers and names that a block device's two xenstore directories are made of.
import type { Domid } from "../core/types.ts";
import { vdevName } from "../protocol/blkif.ts";
import { backendPath, frontendPath } from "../protocol/xenbus.ts";

export interface DeviceAddress {
  /** The domain that serves. */
  readonly backend: Domid;
  /** The backend's directory name: who serves it (`vbd`: kernel blkback, `qdisk`: QEMU or we). */
  readonly kind: string;
  /** The domain that uses. */
  readonly frontend: Domid;
  readonly devid: number;
}

/** A kind that the kernel's own backend does not claim. */
export const DEFAULT_KIND = "qdisk";

export function backendDir(address: DeviceAddress): string {
  return backendPath(address.backend, address.kind, address.frontend, address.devid);
}

/** Where backends put the reason why they do not serve a device. */
export function errorDir(address: DeviceAddress): string {
  return `/local/domain/${address.backend}/error/backend/${address.kind}/${address.frontend}/${address.devid}`;
}

export function frontendDir(address: DeviceAddress): string {
  return frontendPath(address.frontend, "vbd", address.devid);
}

/** "xvdb of domain 1". */
export function describeDevice(address: DeviceAddress): string {
  return `${vdevName(address.devid)} of domain ${address.frontend}`;
}
