// The orders from the control side of a disk to its plane. Everything in them is structured-cloneable.
import type { Image } from "../../block/image.ts";
import type { Domid } from "../../core/types.ts";
import type { PlaneJail } from "../../native/jail.ts";
import type { EngineKind } from "../../native/reactor.ts";
import type { FailureMessage } from "../../plane/protocol.ts";
import type { PlatformDescriptor } from "../../platform/platform.ts";
import type { BlkifAbi } from "../../protocol/blkif.ts";
import type { GrantMode } from "./data/path.ts";
import type { OfferedDisk } from "./requests.ts";
import type { RingAddress } from "../device/ring-parameters.ts";
import type { SharedDiskHandle } from "./shared-disk.ts";

/** The disk waits for the image's server, and why; null: no longer. `isOver`: it has waited for long enough. */
export interface Held {
  readonly type: "held";
  readonly why: string | null;
  readonly isOver: boolean;
}

/** What the plane tells while it serves. */
export type BlkbackReport =
  /** The rings are served, now that all planes of the disk are ready. */
  | { readonly type: "connected" }
  /** A connection to the image's server is wanted (see `Dial`); the control page has the answer. */
  | { readonly type: "dial"; readonly anew: boolean }
  | Held;

/** The type of the order for `Plane.carryOut` to serve the rings of a disk, or some of them. */
export interface BlkbackOrder {
  readonly order: {
    readonly name: string;
    /** What servers of this very device leave to each other is named with it. */
    readonly deviceId: string;
    readonly verbosity: number;
    readonly platform: PlatformDescriptor;
    readonly frontend: Domid;
    /**
     * The rings that the guest may mean: of the first set whose pages and ports exist, this plane serves those of its
     * seat, a lane for each. There is one set only if there are several planes.
     */
    readonly sets: readonly (readonly RingAddress[])[];
    /** What it has in common with the disk's other planes, and which one it is. */
    readonly shared: SharedDiskHandle;
    readonly seat: number;
    readonly abi: BlkifAbi["name"];
    readonly image: Image;
    /** How long the disk waits for a server of its image that is not there. */
    readonly holdMs: number;
    readonly engine: EngineKind;
    /** Filters as given to `--filter`. */
    readonly filters: readonly string[];
    readonly disk: OfferedDisk;
    /** `persistent` only for a guest that agreed to it. */
    readonly grantMode: GrantMode;
    readonly statsPath: string;
    /** Entered before the guest's first byte is looked at. */
    readonly jail: PlaneJail | undefined;
  };
  readonly report: BlkbackReport;
  /** The result of a plane that has stopped and released everything. */
  readonly result: {
    /** Why it stopped by itself. `protocol`: the guest is at fault; any other kind: the host is, or we are. */
    readonly failure: FailureMessage | undefined;
    /** Why some of the guest's writes may not be on the disk. */
    readonly lost: string | undefined;
  };
}
