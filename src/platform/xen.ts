// Real Xen: Linux's devices /dev/xen/evtchn, gntdev and gntalloc, and the way to xenstore.
import { existsSync, openSync } from "node:fs";
import { XentoolError } from "../core/errors.ts";
import { checkAddress, errnoName, errnoText, shim, type Pointer } from "../native/shim.ts";
import { NativePlatform, type DeviceKind } from "./adapter.ts";
import type { PlatformDescriptor, XenstoreEndpoint } from "./platform.ts";

/** Dom0's xenstored listens here; all other domains go through the kernel. */
const XENSTORED_SOCKETS = ["/run/xenstored/socket", "/var/run/xenstored/socket"];
const XENBUS_DEVICES = ["/dev/xen/xenbus", "/proc/xen/xenbus"];

type XenDescriptor = Extract<PlatformDescriptor, { readonly name: "xen" }>;

function pathOf(device: DeviceKind): string {
  return `/dev/xen/${device}`;
}

/** Whether this is a Linux domain on Xen whose event channels can be opened. */
export function onXen(): boolean {
  return existsSync(pathOf("evtchn"));
}

/** The way to xenstore: XENSTORED_PATH, the daemon's socket, or the kernel's device. */
export function xenstoreEndpoint(env: Readonly<Record<string, string | undefined>>): XenstoreEndpoint {
  const named = env["XENSTORED_PATH"];
  if (named !== undefined && named !== "") return { kind: "socket", path: named };
  const socket = XENSTORED_SOCKETS.find((path) => existsSync(path));
  if (socket !== undefined) return { kind: "socket", path: socket };
  const device = XENBUS_DEVICES.find((path) => existsSync(path));
  return { kind: "device", path: device ?? XENBUS_DEVICES[0] };
}

/** The device of others' grants, for a process that may not open it later; its to close. */
export function openGrantDevice(): number {
  const path = pathOf("gntdev");
  try {
    return openSync(path, "r+");
  } catch (error) {
    throw new XentoolError("environment", `cannot open ${path}`, { path }, error);
  }
}

export class XenPlatform extends NativePlatform {
  readonly name = "xen";
  readonly descriptor: XenDescriptor;
  readonly xenstore: XenstoreEndpoint;

  constructor(descriptor: XenDescriptor) {
    const { evtchn, gntdev } = descriptor.lent ?? { evtchn: -1, gntdev: -1 };
    super(checkAddress(shim.xt_linux_open(evtchn, gntdev), "use Xen's devices"), descriptor.domid);
    this.descriptor = descriptor;
    this.xenstore = xenstoreEndpoint(process.env);
  }

  protected opened(device: DeviceKind, result: number): Pointer {
    if (result >= 0) return result as Pointer;
    const path = pathOf(device);
    const message = `cannot open ${path} (${openAdvice(device, result)})`;
    throw new XentoolError("environment", message, { path, errno: errnoName(result) });
  }
}

function openAdvice(device: DeviceKind, result: number): string {
  const errno = errnoName(result);
  if (errno === "EACCES" || errno === "EPERM") return "run as root";
  if (errno === "ENOENT" || errno === "ENXIO" || errno === "ENODEV")
    return `is the kernel module xen-${device} loaded?`;
  return errnoText(result);
}
