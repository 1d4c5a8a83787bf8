// The platform port: what xentool needs from Xen, and nothing more. There are two adapters: xen.ts (/dev/xen/*) and
// sim.ts (the simulated platform). Both must pass the same conformance suite, test/conformance/platform.
//
// Calls made per request or per batch do not throw: they return 0 or a negative errno. The others throw an
// XentoolError.
import type { Domid, EvtchnPort, GrantRef } from "../core/types.ts";
import type { Mapping } from "../native/memory.ts";
import type { GrantCopyBatch } from "../native/grant-copy.ts";

export interface Platform extends Disposable {
  readonly name: "xen" | "sim";
  readonly domid: Domid;
  /** Where to reach this domain's xenstore; xenstore/open.ts opens it. */
  readonly xenstore: XenstoreEndpoint;
  /** Structured-cloneable: `openPlatform(descriptor)` in a worker opens the same platform. */
  readonly descriptor: PlatformDescriptor;
  openEventChannels(): EventChannels;
  openGrantTable(): GrantTable;
  openGrantShare(): GrantShare;
  /** Closes what this object itself holds. Handles opened through it must be closed by their owners. */
  close(): void;
}

export type XenstoreEndpoint =
  | { readonly kind: "socket"; readonly path: string }
  | { readonly kind: "device"; readonly path: string }
  /** A connected socket; `path` is only a name. */
  | { readonly kind: "inherited"; readonly path: string; readonly fd: number }
  | { readonly kind: "ring"; readonly path: string; open(): StoreRing };

/** A guest's own end of its xenstore ring (public/io/xs_wire.h). */
export interface StoreRing {
  readonly page: Pick<Mapping, "bytes" | "words">;
  readonly events: Pick<EventChannels, "notify">;
  readonly port: EvtchnPort;
  /** Calls `wake` for each event on the port until the returned function is called. */
  onEvent(wake: () => void): () => void;
  /** Releases page and port. */
  close?(): void;
}

/** Descriptors of Xen's devices, for a thread that may not open them; they stay the lender's. */
export interface LentDevices {
  readonly evtchn: number;
  readonly gntdev: number;
}

export type PlatformDescriptor =
  | { readonly name: "xen"; readonly domid: Domid; readonly lent?: LentDevices | undefined }
  | {
      readonly name: "sim";
      readonly dir: string;
      readonly domid: Domid;
      /**
       * How to reach xenstore: through the socket, as a program on a host does (the default), or through the ring, as a
       * guest's kernel does.
       */
      readonly xenstore?: "socket" | "ring";
    };

/** An open event-channel handle, like /dev/xen/evtchn: a delivered port stays masked until it is unmasked. */
export interface EventChannels {
  /** Readable (poll) when a delivered port is waiting to be read. */
  readonly fd: number;
  /** Connects to `remotePort` of `domid`. As on Xen, the new local port immediately gets one event. */
  bindInterdomain(domid: Domid, remotePort: EvtchnPort): EvtchnPort;
  /** Makes a new port that `domid` may connect to. */
  bindUnbound(domid: Domid): EvtchnPort;
  /** Sends an event to the peer of `port`. Returns 0 or -errno. */
  notify(port: EvtchnPort): number;
  /** Reads delivered ports into `ports` without blocking. Returns how many (0: none) or -errno. */
  pending(ports: Uint32Array): number;
  /** Lets `port` deliver again; an event that arrived while it was masked is delivered now. Returns 0 or -errno. */
  unmask(port: EvtchnPort): number;
  /** Closes `port`. The peer is not notified: Xen sends no event. */
  unbind(port: EvtchnPort): void;
  /** Gives up the right to bind to any domain but `domid`. Returns false where the kernel does not allow that. */
  restrict(domid: Domid): boolean;
  close(): void;
}

export type Access = "r" | "rw";

/** The actions that follow the end of a page's mapping or share, even by the death of the process. */
export interface UnmapNotify {
  /** Offset in the mapping of a byte to clear, if any. */
  readonly clearByteAt?: number;
  /** Port of an open EventChannels to notify, if any. */
  readonly port?: EvtchnPort;
}

/** Another domain's grants: mapped, or copied in batches. Like /dev/xen/gntdev. */
export interface GrantTable {
  /**
   * Maps `refs` of `domid` as one contiguous Mapping. A bad or revoked grant makes this fail with `io`. With "r" the
   * memory is read-only. Close the Mapping to unmap.
   */
  map(domid: Domid, refs: ArrayLike<number>, access: Access, unmapNotify?: UnmapNotify): Mapping;
  /**
   * Runs every copy of the batch and fills in its statuses. Returns 0, or -errno if the call as a whole failed (the
   * statuses are then meaningless).
   */
  copy(batch: GrantCopyBatch): number;
  close(): void;
}

/** Pages of ours that another domain may map. Like /dev/xen/gntalloc. */
export interface GrantShare {
  /** Grants `pageCount` zeroed pages to `domid`. Returns one Mapping and a reference per page. */
  share(domid: Domid, pageCount: number, access: Access, unmapNotify?: UnmapNotify): SharedPages;
  close(): void;
}

export interface SharedPages {
  readonly refs: readonly GrantRef[];
  /** Closing it ends the grants; a page that the peer still maps is not reused until the peer unmaps it. */
  readonly mapping: Mapping;
}
