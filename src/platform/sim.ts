// The simulated platform's adapter: one process's attachment to a host directory (csrc/sim_*.c). What it
// opens behaves like the devices of a Linux domain on Xen; the suite in test/conformance says how.
import { XentoolError } from "../core/errors.ts";
import { PAGE_SIZE, type Domid, type EvtchnPort, type GrantRef } from "../core/types.ts";
import type { GrantCopyBatch } from "../native/grant-copy.ts";
import { XT_SIM_STORE_GREF } from "../native/abi.ts";
import { Mapping } from "../native/memory.ts";
import { check, checkAddress, errnoName, errnoText, shim, type Pointer } from "../native/shim.ts";
import { PortStream } from "./port-stream.ts";
import type {
  Access,
  EventChannels,
  GrantShare,
  GrantTable,
  Platform,
  SharedPages,
  StoreRing,
  UnmapNotify,
  XenstoreEndpoint,
} from "./platform.ts";

export interface SimDescriptor {
  readonly name: "sim";
  readonly dir: string;
  readonly domid: Domid;
  readonly xenstore?: "socket" | "ring";
}

/** A domain's own end of its xenstore ring, which in a real guest belongs to the kernel. */
export interface StoreRingEnd {
  readonly page: Mapping;
  readonly port: EvtchnPort;
}

const NO_SUCH_HOST = new Set(["ENOENT", "ECONNREFUSED", "ENOTDIR"]);

/** `text` as C wants it. */
export function cString(text: string): Uint8Array {
  return new TextEncoder().encode(`${text}\0`);
}

/** Attaches to the host in `dir` as a process of `domid`. Synchronous: nothing waits for the host. */
export function attachSim(dir: string, domid: number, isHost = false): Pointer {
  const handle = shim.xt_sim_open(cString(dir), domid, isHost ? 1 : 0);
  if (handle >= 0) return handle as Pointer;
  throw new XentoolError("environment", attachFailure(dir, domid, handle), {
    dir,
    domid,
    errno: errnoName(handle),
  });
}

function attachFailure(dir: string, domid: number, result: number): string {
  const errno = errnoName(result);
  if (NO_SUCH_HOST.has(errno))
    return `no simulated host runs in ${dir}: start one with \`xentool sim start\``;
  if (errno === "ESRCH") return `the simulated host in ${dir} has no domain ${domid}`;
  if (errno === "EAGAIN") return `the simulated host in ${dir} has no slot left for another process`;
  if (errno === "EPROTO") return `the simulated host in ${dir} is of another version of xentool`;
  return `cannot attach to the simulated host in ${dir}: ${errnoText(result)}`;
}

export class SimPlatform implements Platform {
  readonly name = "sim";
  readonly domid: Domid;
  readonly descriptor: SimDescriptor;
  readonly xenstore: XenstoreEndpoint;
  readonly #handle: Pointer;
  #closed = false;

  /** Fails with `environment` when no host runs in the directory or it has no such domain. */
  constructor(descriptor: SimDescriptor, isHost = false) {
    this.descriptor = descriptor;
    this.domid = descriptor.domid;
    const dir = `${descriptor.dir}/dom${descriptor.domid}`;
    this.xenstore =
      descriptor.xenstore === "ring"
        ? { kind: "ring", path: `the ring of domain ${this.domid}`, open: () => this.#openRing() }
        : { kind: "socket", path: `${dir}/xenstored` };
    this.#handle = attachSim(descriptor.dir, descriptor.domid, isHost);
  }

  openEventChannels(): SimEventChannels {
    return new SimEventChannels(this.#handle);
  }

  openGrantTable(): GrantTable {
    return new SimGrantTable(this.#handle);
  }

  openGrantShare(): GrantShare {
    return new SimGrantShare(this.#handle);
  }

  /**
   * The guest's end of this domain's xenstore ring. One holder at a time; closing `channels` gives the
   * port back, closing the page unmaps it. The grant stays.
   */
  openStoreRing(channels: SimEventChannels): StoreRingEnd {
    const port = channels.adoptStorePort();
    const address = checkAddress(
      shim.xt_sim_own_page(this.#handle, XT_SIM_STORE_GREF),
      "map this domain's xenstore page",
    );
    return { page: new Mapping(address, PAGE_SIZE, () => shim.xt_memory_free(address, PAGE_SIZE)), port };
  }

  /** The ring with its events on this thread, for a xenstore client. */
  #openRing(): StoreRing {
    const channels = this.openEventChannels();
    const { page, port } = this.openStoreRing(channels);
    const wakes = new Set<() => void>();
    const stream = new PortStream(channels, () => wakes.forEach((wake) => wake()));
    return {
      page,
      port,
      events: channels,
      onEvent: (wake) => {
        wakes.add(wake);
        return () => void wakes.delete(wake);
      },
      close: () => {
        page.close();
        void stream.close().then(() => channels.close());
      },
    };
  }

  /** For tests: the host sees this attachment die as with kill -9. What is open must be closed all the same. */
  crash(): void {
    shim.xt_sim_crash(this.#handle);
  }

  close(): void {
    if (this.#closed) return;
    this.#closed = true;
    shim.xt_sim_close(this.#handle);
  }

  [Symbol.dispose](): void {
    this.close();
  }
}

export class SimEventChannels implements EventChannels {
  readonly fd: number;
  readonly #sim: Pointer;
  readonly #handle: number;
  #restrictedTo: Domid | undefined;
  #closed = false;

  constructor(sim: Pointer) {
    const handle = new Uint32Array(1);
    this.#sim = sim;
    this.fd = check(shim.xt_sim_evtchn_open(sim, handle), "open an event-channel handle");
    this.#handle = handle[0] as number;
  }

  bindInterdomain(domid: Domid, remotePort: EvtchnPort): EvtchnPort {
    this.#checkPeer(domid);
    const port = shim.xt_sim_evtchn_bind_interdomain(this.#sim, this.#handle, domid, remotePort);
    return check(port, `bind to event channel ${remotePort} of domain ${domid}`) as EvtchnPort;
  }

  bindUnbound(domid: Domid): EvtchnPort {
    this.#checkPeer(domid);
    const port = shim.xt_sim_evtchn_bind_unbound(this.#sim, this.#handle, domid);
    return check(port, `make an event channel for domain ${domid}`) as EvtchnPort;
  }

  adoptStorePort(): EvtchnPort {
    const port = shim.xt_sim_evtchn_adopt_store(this.#sim, this.#handle);
    return check(port, "take over this domain's xenstore event channel") as EvtchnPort;
  }

  notify(port: EvtchnPort): number {
    return shim.xt_sim_evtchn_notify(this.#sim, this.#handle, port);
  }

  pending(ports: Uint32Array): number {
    return shim.xt_evtchn_pending(this.fd, ports, ports.length);
  }

  unmask(port: EvtchnPort): number {
    return shim.xt_sim_evtchn_unmask(this.#sim, this.#handle, port);
  }

  unbind(port: EvtchnPort): void {
    check(shim.xt_sim_evtchn_unbind(this.#sim, this.#handle, port), `close event channel ${port}`);
  }

  restrict(domid: Domid): boolean {
    if (this.#restrictedTo !== undefined) return false;
    this.#restrictedTo = domid;
    return true;
  }

  close(): void {
    if (this.#closed) return;
    this.#closed = true;
    shim.xt_sim_evtchn_close(this.#sim, this.#handle, this.fd);
  }

  #checkPeer(domid: Domid): void {
    if (this.#restrictedTo === undefined || this.#restrictedTo === domid) return;
    const message = `this event-channel handle is restricted to domain ${this.#restrictedTo}, not ${domid}`;
    throw new XentoolError("io", message, { errno: "EACCES", domid });
  }
}

/** Clear-byte offset and port as the shim takes them: -1 is none. */
function notifyArguments(notify: UnmapNotify | undefined): [number, number] {
  return [notify?.clearByteAt ?? -1, notify?.port ?? -1];
}

class SimGrantTable implements GrantTable {
  readonly #sim: Pointer;

  constructor(sim: Pointer) {
    this.#sim = sim;
  }

  map(domid: Domid, refs: ArrayLike<number>, access: Access, unmapNotify?: UnmapNotify): Mapping {
    const address = new Float64Array(1);
    const writable = access === "rw" ? 1 : 0;
    const [clearByte, port] = notifyArguments(unmapNotify);
    const list = Uint32Array.from(refs);
    const handle = checkAddress(
      shim.xt_sim_grant_map(this.#sim, domid, list, list.length, writable, clearByte, port, address),
      `map ${list.length} grants of domain ${domid}`,
    );
    return new Mapping(address[0] as number, list.length * PAGE_SIZE, () => shim.xt_sim_grant_unmap(handle));
  }

  copy(batch: GrantCopyBatch): number {
    return shim.xt_sim_grant_copy(this.#sim, batch.memory.address as Pointer, batch.count);
  }

  close(): void {}
}

class SimGrantShare implements GrantShare {
  readonly #sim: Pointer;

  constructor(sim: Pointer) {
    this.#sim = sim;
  }

  share(domid: Domid, pageCount: number, access: Access, unmapNotify?: UnmapNotify): SharedPages {
    const address = new Float64Array(1);
    const refs = new Uint32Array(pageCount);
    const writable = access === "rw" ? 1 : 0;
    const [clearByte, port] = notifyArguments(unmapNotify);
    const handle = checkAddress(
      shim.xt_sim_share(this.#sim, domid, pageCount, writable, clearByte, port, refs, address),
      `share ${pageCount} pages with domain ${domid}`,
    );
    const mapping = new Mapping(address[0] as number, pageCount * PAGE_SIZE, () =>
      shim.xt_sim_unshare(handle),
    );
    return { refs: Array.from(refs) as GrantRef[], mapping };
  }

  close(): void {}
}
