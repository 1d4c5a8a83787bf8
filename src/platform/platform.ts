// The platform port: what xentool needs from Xen, and nothing more. Two adapters: xen.ts (/dev/xen/*)
// and sim.ts (the simulated platform). One conformance suite, test/conformance/platform, holds for both.
//
// Calls made per request or per batch do not throw: they answer 0 or a negative errno. The others throw
// an XentoolError.
import type { Domid, EvtchnPort, GrantRef } from "../core/types.ts";
import type { Mapping } from "../native/memory.ts";
import type { GrantCopyBatch } from "../native/grant-copy.ts";

export interface Platform {
  readonly name: "xen" | "sim";
  readonly domid: Domid;
  /** Where this domain's xenstore is reached; xenstore/transport.ts opens it. */
  readonly xenstore: XenstoreEndpoint;
  /** Structured-cloneable: `openPlatform(descriptor)` in a worker gives the same platform. */
  readonly descriptor: PlatformDescriptor;
  openEventChannels(): EventChannels;
  openGrantTable(): GrantTable;
  openGrantShare(): GrantShare;
  /** Closes what this object itself holds. Handles opened through it are closed by their owners. */
  close(): void;
}

export type XenstoreEndpoint =
  | { readonly kind: "socket"; readonly path: string }
  | { readonly kind: "device"; readonly path: string }
  | { readonly kind: "ring"; readonly path: string; open(): StoreRing };

/** A guest's own end of its xenstore ring (public/io/xs_wire.h). */
export interface StoreRing {
  readonly page: Pick<Mapping, "bytes" | "words">;
  readonly events: Pick<EventChannels, "notify">;
  readonly port: EvtchnPort;
  /** Has `wake` run for each event on the port until the function it gives back is called. */
  onEvent(wake: () => void): () => void;
  /** Gives page and port back. */
  close?(): void;
}

export type PlatformDescriptor =
  | { readonly name: "xen"; readonly domid: Domid }
  | {
      readonly name: "sim";
      readonly dir: string;
      readonly domid: Domid;
      /** How xenstore is reached: as a program on a host does, or as a guest's kernel. Default: the socket. */
      readonly xenstore?: "socket" | "ring";
    };

/** An open event-channel handle, as /dev/xen/evtchn: a port that was delivered stays masked until unmasked. */
export interface EventChannels {
  /** Readable (poll) when a delivered port waits to be read. */
  readonly fd: number;
  /** Connects to `remotePort` of `domid`. The new local port gets one event at once, as on Xen. */
  bindInterdomain(domid: Domid, remotePort: EvtchnPort): EvtchnPort;
  /** A new port that `domid` may connect to. */
  bindUnbound(domid: Domid): EvtchnPort;
  /** Sends an event to the peer of `port`. 0 or -errno. */
  notify(port: EvtchnPort): number;
  /** Reads delivered ports into `ports` without blocking; returns how many (0: none) or -errno. */
  pending(ports: Uint32Array): number;
  /** Lets `port` deliver again; an event that came while it was masked is delivered now. 0 or -errno. */
  unmask(port: EvtchnPort): number;
  /** Closes `port`. The peer is not told: Xen sends no event. */
  unbind(port: EvtchnPort): void;
  /** Gives up the right to bind to any domain but `domid`. False where the kernel does not allow it. */
  restrict(domid: Domid): boolean;
  close(): void;
}

export type Access = "r" | "rw";

/** What happens to a page when its mapping or share goes away, even by the death of the process. */
export interface UnmapNotify {
  /** Offset in the mapping of a byte that is cleared, if any. */
  readonly clearByteAt?: number;
  /** Port of an open EventChannels to notify, if any. */
  readonly port?: EvtchnPort;
}

/** Another domain's grants: mapped, or copied in batches. As /dev/xen/gntdev. */
export interface GrantTable {
  /**
   * Maps `refs` of `domid` as one contiguous Mapping. A bad or revoked grant fails here, with `io`;
   * "r" gives memory that cannot be written. Close the Mapping to unmap.
   */
  map(domid: Domid, refs: ArrayLike<number>, access: Access, unmapNotify?: UnmapNotify): Mapping;
  /**
   * Runs every copy of the batch and fills in its statuses. 0, or -errno when the call as a whole failed
   * (then the statuses say nothing).
   */
  copy(batch: GrantCopyBatch): number;
  close(): void;
}

/** Pages of ours that another domain may map. As /dev/xen/gntalloc. */
export interface GrantShare {
  /** `pageCount` zeroed pages granted to `domid`: one Mapping, and a reference a page. */
  share(domid: Domid, pageCount: number, access: Access, unmapNotify?: UnmapNotify): SharedPages;
  close(): void;
}

export interface SharedPages {
  readonly refs: readonly GrantRef[];
  /** Closing it ends the grants; a page that the peer still maps is not reused until it lets go. */
  readonly mapping: Mapping;
}
