// The adapter for every platform: the functions of csrc/xen/xen.h, which behave the same over Linux's devices and on a
// simulated host. xen.ts opens the former, sim.ts the latter.
import { PAGE_SIZE, type Domid, type EvtchnPort, type GrantRef } from "../core/types.ts";
import { XT_EVTCHN_NONBLOCK } from "../native/abi.ts";
import type { GrantCopyBatch } from "../native/grant-copy.ts";
import { Mapping } from "../native/memory.ts";
import { check, checkAddress, shim, type Pointer } from "../native/shim.ts";
import type {
  Access,
  EventChannels,
  GrantShare,
  GrantTable,
  Platform,
  PlatformDescriptor,
  SharedPages,
  UnmapNotify,
  XenstoreEndpoint,
} from "./platform.ts";

/** The kinds of handle that a platform can open. */
export type DeviceKind = "evtchn" | "gntdev" | "gntalloc";

/** A handle of the shim's, closed once. */
class NativeHandle implements Disposable {
  /** Identifies it to the shim's functions. */
  readonly handle: Pointer;
  #close: ((handle: Pointer) => unknown) | undefined;

  constructor(handle: Pointer, close: (handle: Pointer) => unknown) {
    this.handle = handle;
    this.#close = close;
  }

  close(): void {
    const close = this.#close;
    this.#close = undefined;
    close?.(this.handle);
  }

  [Symbol.dispose](): void {
    this.close();
  }
}

export abstract class NativePlatform extends NativeHandle implements Platform {
  abstract readonly name: "xen" | "sim";
  abstract readonly descriptor: PlatformDescriptor;
  abstract readonly xenstore: XenstoreEndpoint;
  readonly domid: Domid;

  protected constructor(handle: Pointer, domid: Domid) {
    super(handle, shim.xt_platform_close);
    this.domid = domid;
  }

  openEventChannels(): NativeEventChannels {
    return new NativeEventChannels(
      this.opened("evtchn", shim.xt_evtchn_open(this.handle, XT_EVTCHN_NONBLOCK)),
    );
  }

  openGrantTable(): GrantTable {
    return new NativeGrantTable(this.opened("gntdev", shim.xt_gnttab_open(this.handle)));
  }

  openGrantShare(): GrantShare {
    return new NativeGrantShare(this.opened("gntalloc", shim.xt_gntshr_open(this.handle)));
  }

  /** Returns the handle in `result`, or throws the appropriate error if it is a negative errno. */
  protected abstract opened(device: DeviceKind, result: number): Pointer;
}

export class NativeEventChannels extends NativeHandle implements EventChannels {
  readonly fd: number;

  constructor(handle: Pointer) {
    super(handle, shim.xt_evtchn_close);
    this.fd = shim.xt_evtchn_fd(handle);
  }

  bindInterdomain(domid: Domid, remotePort: EvtchnPort): EvtchnPort {
    const port = shim.xt_evtchn_bind_interdomain(this.handle, domid, remotePort);
    return check(port, `bind to event channel ${remotePort} of domain ${domid}`) as EvtchnPort;
  }

  bindUnbound(domid: Domid): EvtchnPort {
    const port = shim.xt_evtchn_bind_unbound(this.handle, domid);
    return check(port, `make an event channel for domain ${domid}`) as EvtchnPort;
  }

  notify(port: EvtchnPort): number {
    return shim.xt_evtchn_notify(this.handle, port);
  }

  pending(ports: Uint32Array): number {
    return shim.xt_evtchn_pending(this.handle, ports, ports.length);
  }

  unmask(port: EvtchnPort): number {
    return shim.xt_evtchn_unmask(this.handle, port);
  }

  unbind(port: EvtchnPort): void {
    check(shim.xt_evtchn_unbind(this.handle, port), `close event channel ${port}`);
  }

  restrict(domid: Domid): boolean {
    return shim.xt_evtchn_restrict(this.handle, domid) === 0;
  }
}

/** Clear-byte offset and port as the shim expects them; -1 for none. */
function notifyArguments(notify: UnmapNotify | undefined): [clearByte: number, port: number] {
  return [notify?.clearByteAt ?? -1, notify?.port ?? -1];
}

class NativeGrantTable extends NativeHandle implements GrantTable {
  constructor(handle: Pointer) {
    super(handle, shim.xt_gnttab_close);
  }

  map(domid: Domid, refs: ArrayLike<number>, access: Access, unmapNotify?: UnmapNotify): Mapping {
    const address = new Float64Array(1);
    const list = Uint32Array.from(refs);
    const domids = new Uint32Array(list.length).fill(domid);
    const writable = access === "rw" ? 1 : 0;
    const [clearByte, port] = notifyArguments(unmapNotify);
    const mapping = checkAddress(
      shim.xt_gnttab_map(this.handle, domids, list, list.length, writable, clearByte, port, address),
      `map ${list.length} grants of domain ${domid}`,
    );
    return new Mapping(address[0], list.length * PAGE_SIZE, () => shim.xt_gnttab_unmap(mapping));
  }

  copy(batch: GrantCopyBatch): number {
    return shim.xt_gnttab_copy(this.handle, batch.memory.address as Pointer, batch.count);
  }
}

class NativeGrantShare extends NativeHandle implements GrantShare {
  constructor(handle: Pointer) {
    super(handle, shim.xt_gntshr_close);
  }

  share(domid: Domid, pageCount: number, access: Access, unmapNotify?: UnmapNotify): SharedPages {
    const address = new Float64Array(1);
    const refs = new Uint32Array(pageCount);
    const writable = access === "rw" ? 1 : 0;
    const [clearByte, port] = notifyArguments(unmapNotify);
    const share = checkAddress(
      shim.xt_gntshr_share(this.handle, domid, pageCount, writable, clearByte, port, refs, address),
      `share ${pageCount} pages with domain ${domid}`,
    );
    const mapping = new Mapping(address[0], pageCount * PAGE_SIZE, () => shim.xt_gntshr_unshare(share));
    return { refs: Array.from(refs) as GrantRef[], mapping };
  }
}
