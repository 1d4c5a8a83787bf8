// The orders from the control side of a disk to its plane. Everything in them is structured-cloneable.
import type { Image } from "../block/image.ts";
import type { Domid, EvtchnPort } from "../core/types.ts";
import type { EngineKind } from "../native/reactor.ts";
import type { FailureMessage } from "../plane/protocol.ts";
import type { PlatformDescriptor } from "../platform/platform.ts";
import type { BlkifAbi } from "../protocol/blkif.ts";
import type { DiskLimits } from "./requests.ts";

/** The type of the order for `Plane.carryOut` to serve one ring. It reports once, when the ring is served. */
export interface BlkbackOrder {
  readonly order: {
    readonly name: string;
    readonly verbosity: number;
    readonly platform: PlatformDescriptor;
    readonly frontend: Domid;
    readonly refs: readonly number[];
    readonly remotePort: EvtchnPort;
    readonly abi: BlkifAbi["name"];
    readonly image: Image;
    readonly engine: EngineKind;
    /** Filters as given to `--filter`. */
    readonly filters: readonly string[];
    readonly limits: DiskLimits;
    readonly grantMode: "copy" | "map";
    readonly statsPath: string;
    readonly journalPath: string;
  };
  readonly report: "connected";
  /** The result of a plane that has stopped and released everything. */
  readonly result: {
    /** Why it stopped by itself. `protocol`: the guest is at fault; any other kind: the host is, or we are. */
    readonly failure: FailureMessage | undefined;
    /** Why some of the guest's writes may not be on the disk. */
    readonly lost: string | undefined;
  };
}
