// What a frontend's control side orders its plane to do, and what the plane reports. All of it is
// structured-cloneable.
import type { PlatformDescriptor } from "../platform/platform.ts";
import type { FailureMessage } from "../plane/protocol.ts";
import type { BlkifAbi } from "../protocol/blkif.ts";
import type { BenchOptions, BenchResult } from "./bench.ts";
import type { FrontDeviceOptions, RingAddress } from "./device.ts";
import type { VerifyOptions } from "./verify.ts";

/** What is done with the disk. */
export type BlkfrontJob =
  | { readonly type: "nbd"; readonly listener: number; readonly exportName: string }
  | { readonly type: "bench"; readonly options: BenchOptions }
  | { readonly type: "verify"; readonly options: VerifyOptions };

export type BlkfrontReport =
  /** The rings can be offered to the backend, by queue. */
  | { readonly type: "shared"; readonly rings: readonly RingAddress[] }
  /** The job is over; everything is kept until the backend has let go. */
  | {
      readonly type: "finished";
      readonly failure: FailureMessage | undefined;
      readonly bench: BenchResult | undefined;
    };

/** The type of the order, for `Plane.carryOut`. It ends when everything is released. */
export interface BlkfrontOrder {
  readonly order: Omit<FrontDeviceOptions, "abi"> & {
    readonly name: string;
    readonly verbosity: number;
    readonly platform: PlatformDescriptor;
    readonly abi: BlkifAbi["name"];
    readonly devid: number;
    readonly maxIndirectSegments: number;
    readonly job: BlkfrontJob;
  };
  readonly report: BlkfrontReport;
  readonly result: void;
}
