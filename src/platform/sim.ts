// A simulated host as a platform: one process's attachment to its directory (csrc/xen/sim_*.c), plus the domain's
// xenstore ring, which in a real guest belongs to the kernel.
import { XentoolError } from "../core/errors.ts";
import { PAGE_SIZE, type EvtchnPort } from "../core/types.ts";
import { XT_SIM_STORE_GREF } from "../native/abi.ts";
import { Mapping } from "../native/memory.ts";
import { check, checkAddress, cString, errnoName, errnoText, shim, type Pointer } from "../native/shim.ts";
import { NativePlatform, type DeviceKind, type NativeEventChannels } from "./adapter.ts";
import type { PlatformDescriptor, StoreRing, XenstoreEndpoint } from "./platform.ts";
import { PortStream } from "./port-stream.ts";

export type SimDescriptor = Extract<PlatformDescriptor, { readonly name: "sim" }>;

/** A domain's own end of its xenstore ring, which in a real guest belongs to the kernel. */
export interface StoreRingEnd {
  readonly page: Mapping;
  readonly port: EvtchnPort;
}

const NO_SUCH_HOST = new Set(["ENOENT", "ECONNREFUSED", "ENOTDIR"]);

/** Attaches to the host in `dir` as a process of `domid`. Synchronous, because nothing waits for the host. */
export function attachSim(dir: string, domid: number, isHost = false): Pointer {
  const handle = shim.xt_sim_open(cString(dir), domid, isHost ? 1 : 0);
  if (handle >= 0) return handle as Pointer;
  if (NO_SUCH_HOST.has(errnoName(handle))) throw noSimulatedHost(dir);
  throw new XentoolError("environment", attachFailure(dir, domid, handle), {
    dir,
    domid,
    errno: errnoName(handle),
  });
}

/** The error for a directory in which no simulated host runs. */
export function noSimulatedHost(dir: string, cause?: unknown): XentoolError {
  const message = `no simulated host runs in ${dir}: start one with \`xentool sim start\``;
  return new XentoolError("environment", message, { dir }, cause);
}

function attachFailure(dir: string, domid: number, result: number): string {
  const errno = errnoName(result);
  if (errno === "ESRCH") return `the simulated host in ${dir} has no domain ${domid}`;
  if (errno === "EAGAIN") return `the simulated host in ${dir} has no slot left for another process`;
  if (errno === "EPROTO") return `the simulated host in ${dir} is of another version of xentool`;
  return `cannot attach to the simulated host in ${dir}: ${errnoText(result)}`;
}

const WHAT: Readonly<Record<DeviceKind, string>> = {
  evtchn: "an event-channel handle",
  gntdev: "a grant table",
  gntalloc: "pages to share",
};

export class SimPlatform extends NativePlatform {
  readonly name = "sim";
  readonly descriptor: SimDescriptor;
  readonly xenstore: XenstoreEndpoint;

  /** Fails with `environment` if no host runs in the directory or it has no such domain. */
  constructor(descriptor: SimDescriptor, isHost = false) {
    super(attachSim(descriptor.dir, descriptor.domid, isHost), descriptor.domid);
    this.descriptor = descriptor;
    this.xenstore =
      descriptor.xenstore === "ring"
        ? { kind: "ring", path: `the ring of domain ${this.domid}`, open: () => this.#openRing() }
        : { kind: "socket", path: `${descriptor.dir}/dom${descriptor.domid}/xenstored` };
  }

  /**
   * The guest's end of this domain's xenstore ring. Only one holder at a time: closing `channels` releases the port,
   * closing the page unmaps it. The grant remains.
   */
  openStoreRing(channels: NativeEventChannels): StoreRingEnd {
    const adopted = shim.xt_sim_adopt_store_port(channels.handle);
    const port = check(adopted, "take over this domain's xenstore event channel") as EvtchnPort;
    const address = checkAddress(
      shim.xt_sim_own_page(this.handle, XT_SIM_STORE_GREF),
      "map this domain's xenstore page",
    );
    return { page: new Mapping(address, PAGE_SIZE, () => shim.xt_memory_free(address, PAGE_SIZE)), port };
  }

  /** For tests: the host sees this attachment die as with kill -9. Open handles must still be closed. */
  crash(): void {
    shim.xt_sim_crash(this.handle);
  }

  protected opened(device: DeviceKind, result: number): Pointer {
    return checkAddress(result, `open ${WHAT[device]}`);
  }

  /** The ring with its events delivered on this thread, for a xenstore client. */
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
}
