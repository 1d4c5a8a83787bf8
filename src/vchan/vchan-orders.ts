// What the control side of a vchan orders its plane to do, one order at a time, and the results. All of it is
// structured-cloneable.
import type { Domid } from "../core/types.ts";
import type { PlatformDescriptor } from "../platform/platform.ts";
import type { VchanOrders } from "../protocol/vchan.ts";
import type { BenchJob, BenchMeasure } from "./bench.ts";
import type { RelayOptions, RelayResult } from "./relay.ts";
import type { VchanKeys } from "./rendezvous.ts";

export type VchanTask =
  /** Share new rings: returns the keys. Rings that were shared before stay until `close-before`. */
  | {
      readonly op: "serve";
      readonly platform: PlatformDescriptor;
      readonly peer: Domid;
      readonly orders: VchanOrders;
    }
  /** Wait for the client: returns false when stopped before it came. */
  | { readonly op: "await-client" }
  /** Connect to a server. */
  | {
      readonly op: "connect";
      readonly platform: PlatformDescriptor;
      readonly peer: Domid;
      readonly keys: VchanKeys;
    }
  /** Wait for a connection to a listening socket: returns its descriptor, or undefined when stopped. */
  | { readonly op: "accept"; readonly listener: number }
  | ({ readonly op: "relay" } & RelayOptions)
  /** Serve a benchmark's jobs until the peer closes: returns how many. */
  | { readonly op: "bench-serve" }
  | { readonly op: "bench-run"; readonly job: BenchJob; readonly timeoutMs: number | undefined }
  /** Tell the client before that we are gone and release its rings. */
  | { readonly op: "close-before" }
  /** The same for everything there is. */
  | { readonly op: "close" };

export interface VchanResults {
  readonly serve: { readonly keys: VchanKeys; readonly readSize: number; readonly writeSize: number };
  readonly "await-client": boolean;
  readonly connect: {
    readonly readSize: number;
    readonly writeSize: number;
    readonly peerSpeaksOfEnd: boolean;
  };
  readonly accept: number | undefined;
  readonly relay: RelayResult;
  readonly "bench-serve": number;
  readonly "bench-run": BenchMeasure;
  readonly "close-before": undefined;
  readonly close: undefined;
}

/** The type of the orders with this `op`, for `Plane.carryOut`. They send no reports. */
export interface VchanOrder<Op extends VchanTask["op"] = VchanTask["op"]> {
  readonly order: Extract<VchanTask, { op: Op }>;
  readonly report: never;
  readonly result: VchanResults[Op];
}
