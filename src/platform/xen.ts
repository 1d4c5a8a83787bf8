// Real Xen's adapter: /dev/xen/evtchn, gntdev and gntalloc through the shim, one ioctl a call.
import { closeSync, constants, existsSync, openSync } from "node:fs";
import { XentoolError } from "../core/errors.ts";
import { PAGE_SIZE, type Domid, type EvtchnPort, type GrantRef } from "../core/types.ts";
import type { GrantCopyBatch } from "../native/grant-copy.ts";
import { Mapping } from "../native/memory.ts";
import { check, checkAddress, shim, type Pointer } from "../native/shim.ts";
import type {
  Access,
  EventChannels,
  GrantShare,
  GrantTable,
  Platform,
  SharedPages,
  UnmapNotify,
  XenstoreEndpoint,
} from "./platform.ts";

const EVTCHN_DEVICE = "/dev/xen/evtchn";
const GNTDEV_DEVICE = "/dev/xen/gntdev";
const GNTALLOC_DEVICE = "/dev/xen/gntalloc";
/** Dom0's xenstored listens here; everyone else goes through the kernel. */
const XENSTORED_SOCKETS = ["/run/xenstored/socket", "/var/run/xenstored/socket"];
const XENBUS_DEVICES = ["/dev/xen/xenbus", "/proc/xen/xenbus"];

export interface XenDescriptor {
  readonly name: "xen";
  readonly domid: Domid;
}

/** Whether this is a Linux domain on Xen whose event channels can be opened. */
export function onXen(): boolean {
  return existsSync(EVTCHN_DEVICE);
}

/** How xenstore is reached: XENSTORED_PATH, the daemon's socket, or the kernel's device. */
export function xenstoreEndpoint(env: Readonly<Record<string, string | undefined>>): XenstoreEndpoint {
  const named = env["XENSTORED_PATH"];
  if (named !== undefined && named !== "") return { kind: "socket", path: named };
  const socket = XENSTORED_SOCKETS.find((path) => existsSync(path));
  if (socket !== undefined) return { kind: "socket", path: socket };
  const device = XENBUS_DEVICES.find((path) => existsSync(path));
  return { kind: "device", path: device ?? (XENBUS_DEVICES[0] as string) };
}

/** Non-blocking, because an evtchn device without events would otherwise keep its reader. */
function openXenDevice(path: string, module: string): number {
  try {
    return openSync(path, constants.O_RDWR | constants.O_NONBLOCK);
  } catch (error) {
    const hint = existsSync(path) ? "run as root" : `is the kernel module ${module} loaded?`;
    throw new XentoolError("environment", `cannot open ${path} (${hint})`, { path }, error);
  }
}

/** An open device. Mappings need it to end: it is closed with the last of them. */
class Device {
  readonly fd: number;
  #users = 1;
  #closed = false;

  constructor(path: string, module: string) {
    this.fd = openXenDevice(path, module);
  }

  retain(): void {
    this.#users++;
  }

  release(): void {
    if (--this.#users === 0) closeSync(this.fd);
  }

  close(): void {
    if (this.#closed) return;
    this.#closed = true;
    this.release();
  }
}

export class XenPlatform implements Platform {
  readonly name = "xen";
  readonly domid: Domid;
  readonly descriptor: XenDescriptor;
  readonly xenstore: XenstoreEndpoint;

  constructor(descriptor: XenDescriptor) {
    this.descriptor = descriptor;
    this.domid = descriptor.domid;
    this.xenstore = xenstoreEndpoint(process.env);
  }

  openEventChannels(): EventChannels {
    return new XenEventChannels();
  }

  openGrantTable(): GrantTable {
    return new XenGrantTable();
  }

  openGrantShare(): GrantShare {
    return new XenGrantShare();
  }

  close(): void {}
}

class XenEventChannels implements EventChannels {
  readonly #device = new Device(EVTCHN_DEVICE, "xen-evtchn");

  get fd(): number {
    return this.#device.fd;
  }

  bindInterdomain(domid: Domid, remotePort: EvtchnPort): EvtchnPort {
    const port = shim.xt_xen_evtchn_bind_interdomain(this.fd, domid, remotePort);
    return check(port, `bind to event channel ${remotePort} of domain ${domid}`) as EvtchnPort;
  }

  bindUnbound(domid: Domid): EvtchnPort {
    const port = shim.xt_xen_evtchn_bind_unbound(this.fd, domid);
    return check(port, `make an event channel for domain ${domid}`) as EvtchnPort;
  }

  notify(port: EvtchnPort): number {
    return shim.xt_xen_evtchn_notify(this.fd, port);
  }

  pending(ports: Uint32Array): number {
    return shim.xt_evtchn_pending(this.fd, ports, ports.length);
  }

  unmask(port: EvtchnPort): number {
    return shim.xt_xen_evtchn_unmask(this.fd, port);
  }

  unbind(port: EvtchnPort): void {
    check(shim.xt_xen_evtchn_unbind(this.fd, port), `close event channel ${port}`);
  }

  restrict(domid: Domid): boolean {
    return shim.xt_xen_evtchn_restrict(this.fd, domid) === 0;
  }

  close(): void {
    this.#device.close();
  }
}

/**
 * Makes the Mapping of `pageCount` pages at `address`, with its unmap-notify. `unmap` runs once: when the
 * Mapping is closed, or at once when the kernel refuses the notify.
 */
function makeMapping(
  device: Device,
  address: Pointer,
  pageCount: number,
  setNotify: () => number,
  unmap: () => void,
): Mapping {
  device.retain();
  const release = (): void => {
    unmap();
    device.release();
  };
  const result = setNotify();
  if (result < 0) release();
  check(result, "set an unmap-notify");
  return new Mapping(address, pageCount * PAGE_SIZE, release);
}

class XenGrantTable implements GrantTable {
  readonly #device = new Device(GNTDEV_DEVICE, "xen-gntdev");

  map(domid: Domid, refs: ArrayLike<number>, access: Access, unmapNotify?: UnmapNotify): Mapping {
    const list = Uint32Array.from(refs);
    const indexOut = new BigUint64Array(1);
    const { fd } = this.#device;
    const address = checkAddress(
      shim.xt_xen_grant_map(fd, domid, list, list.length, access === "rw" ? 1 : 0, indexOut),
      `map ${list.length} grants of domain ${domid}`,
    );
    const index = Number(indexOut[0]);
    return makeMapping(
      this.#device,
      address,
      list.length,
      () =>
        unmapNotify === undefined
          ? 0
          : shim.xt_xen_grant_unmap_notify(fd, index, unmapNotify.clearByteAt ?? -1, unmapNotify.port ?? -1),
      () => shim.xt_xen_grant_unmap(fd, address, index, list.length),
    );
  }

  copy(batch: GrantCopyBatch): number {
    return shim.xt_xen_grant_copy(this.#device.fd, batch.memory.address as Pointer, batch.count);
  }

  close(): void {
    this.#device.close();
  }
}

class XenGrantShare implements GrantShare {
  readonly #device = new Device(GNTALLOC_DEVICE, "xen-gntalloc");

  share(domid: Domid, pageCount: number, access: Access, unmapNotify?: UnmapNotify): SharedPages {
    const refs = new Uint32Array(pageCount);
    const indexOut = new BigUint64Array(1);
    const { fd } = this.#device;
    const address = checkAddress(
      shim.xt_xen_share(fd, domid, pageCount, access === "rw" ? 1 : 0, refs, indexOut),
      `share ${pageCount} pages with domain ${domid}`,
    );
    const index = Number(indexOut[0]);
    const mapping = makeMapping(
      this.#device,
      address,
      pageCount,
      () =>
        unmapNotify === undefined
          ? 0
          : shim.xt_xen_share_notify(fd, index, unmapNotify.clearByteAt ?? -1, unmapNotify.port ?? -1),
      () => shim.xt_xen_unshare(fd, address, index, pageCount),
    );
    return { refs: Array.from(refs) as GrantRef[], mapping };
  }

  close(): void {
    this.#device.close();
  }
}
