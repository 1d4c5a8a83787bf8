// The block port: what a data plane needs of whatever holds the bytes. Adapters are in targets/; filters/ are targets
// around another one. A target only starts operations and reports their ends; only the reactor waits.
import type { IoOp, OnEnd } from "../native/reactor.ts";

export interface TargetInfo {
  /** A whole number of 512-byte sectors. */
  readonly sizeBytes: number;
  readonly readOnly: boolean;
  readonly canDiscard: boolean;
  readonly canSecureDiscard: boolean;
  readonly discardGranularityBytes: number;
  readonly physicalSectorBytes: number;
}

export interface BlockTarget {
  /** What it was when it was opened. */
  readonly info: TargetInfo;
  /**
   * Starts an operation with the reactor's next wait; `tag` comes back with its end, to the `OnEnd` that the target
   * was opened with, never before that wait. `length` counts bytes, and of READV and WRITEV the pieces at
   * `address`. Never blocks, never throws.
   */
  start(op: IoOp, tag: number, offset: number, length: number, address: number): void;
}

/** Opens a target whose operations' ends are told to `onEnd`. */
export type OpenTarget = (onEnd: OnEnd) => BlockTarget;
