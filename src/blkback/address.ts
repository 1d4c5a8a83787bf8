// A device's address: the four numbers and names that make up the paths of a block device's two xenstore directories.
import type { Domid } from "../core/types.ts";
import { vdevName } from "../protocol/blkif.ts";
import { backendPath, frontendPath } from "../protocol/xenbus.ts";

export interface DeviceAddress {
  /** The domain that serves the device. */
  readonly backend: Domid;
  /** The backend's directory name, which shows who serves it (`vbd`: kernel blkback, `qdisk`: QEMU or us). */
  readonly kind: string;
  /** The domain that uses the device. */
  readonly frontend: Domid;
  readonly devid: number;
  /** The frontend's directory name; another than vbd is for frontends that no kernel's driver is to take. */
  readonly frontendClass?: string;
}

/** A kind that the kernel's own backend does not claim. */
export const DEFAULT_KIND = "qdisk";

export function backendDir(address: DeviceAddress): string {
  return backendPath(address.backend, address.kind, address.frontend, address.devid);
}

/** The node where backends write why they do not serve a device. */
export function errorDir(address: DeviceAddress): string {
  return `/local/domain/${address.backend}/error/backend/${address.kind}/${address.frontend}/${address.devid}`;
}

export function frontendDir(address: DeviceAddress): string {
  return frontendPath(address.frontend, address.frontendClass ?? "vbd", address.devid);
}

/** For people, e.g. "xvdb of domain 1". */
export function describeDevice(address: DeviceAddress): string {
  return `${vdevName(address.devid)} of domain ${address.frontend}`;
}
