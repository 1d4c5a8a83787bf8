// A platform on Xen's libraries, libxenevtchn and libxengnttab, as programs written in C use them. Which libraries that
// are, and of which domain, the environment decides (sim/programs.ts).
import { dlopen } from "bun:ffi";
import { XentoolError } from "../../src/core/errors.ts";
import { PAGE_SIZE, toDomid, type EvtchnPort, type GrantRef } from "../../src/core/types.ts";
import { Mapping } from "../../src/native/memory.ts";
import type {
  Access,
  EventChannels,
  GrantShare,
  GrantTable,
  Platform,
  UnmapNotify,
} from "../../src/platform/platform.ts";
import { isReadableWithin } from "../support/descriptors.ts";

const EIO = 5;
const PROT_READ = 1;
const PROT_WRITE = 2;
/** Stands for no byte, and for no port. */
const NONE = 0xffff_ffff;

const handle = { args: ["u64"], returns: "i32" } as const;
const open = { args: ["ptr", "u32"], returns: "u64" } as const;
const ofPort = { args: ["u64", "u32"], returns: "i32" } as const;
const ofArea = { args: ["u64", "u64", "u32"], returns: "i32" } as const;

const evtchn = dlopen("libxenevtchn.so.1", {
  xenevtchn_open: open,
  xenevtchn_close: handle,
  xenevtchn_fd: handle,
  xenevtchn_notify: ofPort,
  xenevtchn_bind_unbound_port: ofPort,
  xenevtchn_bind_interdomain: { args: ["u64", "u32", "u32"], returns: "i32" },
  xenevtchn_unbind: ofPort,
  xenevtchn_pending: handle,
  xenevtchn_unmask: ofPort,
  xenevtchn_restrict: { args: ["u64", "u16"], returns: "i32" },
}).symbols;

const gnttab = dlopen("libxengnttab.so.1", {
  xengnttab_open: open,
  xengnttab_close: handle,
  xengnttab_map_domain_grant_refs: { args: ["u64", "u32", "u32", "ptr", "i32"], returns: "u64" },
  xengnttab_map_grant_ref_notify: { args: ["u64", "u32", "u32", "i32", "u32", "u32"], returns: "u64" },
  xengnttab_unmap: ofArea,
  xengnttab_grant_copy: { args: ["u64", "u32", "ptr"], returns: "i32" },
  xengntshr_open: open,
  xengntshr_close: handle,
  xengntshr_share_pages: { args: ["u64", "u32", "i32", "ptr", "i32"], returns: "u64" },
  xengntshr_share_page_notify: { args: ["u64", "u32", "ptr", "i32", "u32", "u32"], returns: "u64" },
  xengntshr_unshare: ofArea,
}).symbols;

function failed(what: string): XentoolError {
  return new XentoolError("io", `${what} failed`);
}

function opened(handle: bigint, what: string): bigint {
  if (handle === 0n) throw failed(what);
  return handle;
}

function positive<T extends number>(result: number, what: string): T {
  if (result < 0) throw failed(what);
  return result as T;
}

/** The area of `count` pages at `address`, undone with a handle that lives as long as the process. */
function area(address: bigint, count: number, undo: (address: bigint, count: number) => number): Mapping {
  if (address === 0n) throw failed("mapping");
  return new Mapping(Number(address), count * PAGE_SIZE, () => {
    positive(undo(address, count), "unmapping");
  });
}

/** The library has notifies for single pages only. */
function notifyOf(notify: UnmapNotify, pages: number): [byte: number, port: number] {
  if (pages !== 1) throw new XentoolError("bug", "a notify for more than a page");
  return [notify.clearByteAt ?? NONE, notify.port ?? NONE];
}

class Channels implements EventChannels {
  readonly #handle = opened(evtchn.xenevtchn_open(null, 0), "xenevtchn_open");
  readonly fd = evtchn.xenevtchn_fd(this.#handle);
  readonly bindUnbound = (domid: number): EvtchnPort =>
    positive(evtchn.xenevtchn_bind_unbound_port(this.#handle, domid), "bind_unbound_port");
  readonly bindInterdomain = (domid: number, port: number): EvtchnPort =>
    positive(evtchn.xenevtchn_bind_interdomain(this.#handle, domid, port), "bind_interdomain");
  readonly notify = (port: number): number => evtchn.xenevtchn_notify(this.#handle, port);
  readonly unmask = (port: number): number => evtchn.xenevtchn_unmask(this.#handle, port);
  readonly unbind = (port: number): void =>
    void positive(evtchn.xenevtchn_unbind(this.#handle, port), "unbind");
  readonly restrict = (domid: number): boolean => evtchn.xenevtchn_restrict(this.#handle, domid) === 0;
  readonly close = (): void => void evtchn.xenevtchn_close(this.#handle);

  /** The library's descriptor blocks, so it is asked only while there is something. */
  pending(ports: Uint32Array): number {
    let count = 0;
    while (count < ports.length && isReadableWithin(this.fd, 0))
      ports[count++] = positive(evtchn.xenevtchn_pending(this.#handle), "pending");
    return count;
  }
}

class Table implements GrantTable {
  static #lasting: bigint | undefined;
  readonly #handle = opened(gnttab.xengnttab_open(null, 0), "xengnttab_open");
  readonly close = (): void => void gnttab.xengnttab_close(this.#handle);

  map(domid: number, refs: ArrayLike<number>, access: Access, notify?: UnmapNotify): Mapping {
    const protection = access === "rw" ? PROT_READ | PROT_WRITE : PROT_READ;
    const lasting = (Table.#lasting ??= opened(gnttab.xengnttab_open(null, 0), "xengnttab_open"));
    const address =
      notify === undefined
        ? gnttab.xengnttab_map_domain_grant_refs(
            this.#handle,
            refs.length,
            domid,
            Uint32Array.from(refs),
            protection,
          )
        : gnttab.xengnttab_map_grant_ref_notify(
            this.#handle,
            domid,
            refs[0],
            protection,
            ...notifyOf(notify, refs.length),
          );
    return area(address, refs.length, (...it) => gnttab.xengnttab_unmap(lasting, ...it));
  }

  copy(batch: Parameters<GrantTable["copy"]>[0]): number {
    return gnttab.xengnttab_grant_copy(this.#handle, batch.count, batch.memory.bytes) === 0 ? 0 : -EIO;
  }
}

class Share implements GrantShare {
  static #lasting: bigint | undefined;
  readonly #handle = opened(gnttab.xengntshr_open(null, 0), "xengntshr_open");
  readonly close = (): void => void gnttab.xengntshr_close(this.#handle);

  share(domid: number, pages: number, access: Access, notify?: UnmapNotify): ReturnType<GrantShare["share"]> {
    const refs = new Uint32Array(Math.max(1, pages));
    const writable = access === "rw" ? 1 : 0;
    const lasting = (Share.#lasting ??= opened(gnttab.xengntshr_open(null, 0), "xengntshr_open"));
    const address =
      notify === undefined
        ? gnttab.xengntshr_share_pages(this.#handle, domid, pages, refs, writable)
        : gnttab.xengntshr_share_page_notify(this.#handle, domid, refs, writable, ...notifyOf(notify, pages));
    const mapping = area(address, pages, (...it) => gnttab.xengntshr_unshare(lasting, ...it));
    return { refs: Array.from(refs, (ref) => ref as GrantRef), mapping };
  }
}

/** The platform of the domain that the environment names. It has nothing to close. */
export function xenLibraries(): Platform {
  const domid = toDomid(Number(process.env["XENTOOL_DOMID"]));
  const dir = process.env["XENTOOL_SIM"] ?? "";
  return {
    name: "sim",
    domid,
    xenstore: { kind: "socket", path: process.env["XENSTORED_PATH"] ?? "" },
    descriptor: { name: "sim", dir, domid },
    openEventChannels: () => new Channels(),
    openGrantTable: () => new Table(),
    openGrantShare: () => new Share(),
    close: () => {},
    [Symbol.dispose]: () => {},
  };
}
