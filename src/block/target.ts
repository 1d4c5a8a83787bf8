// The block port: what a data plane needs from whatever stores the bytes. Adapters are in targets/; filters/ are
// targets around another one. A target only starts operations and reports when they end; only the reactor waits.
import type { IoOp, OnEnd } from "../native/reactor.ts";

export interface TargetInfo {
  /** A multiple of 512. */
  readonly sizeBytes: number;
  readonly readOnly: boolean;
  readonly canDiscard: boolean;
  readonly canSecureDiscard: boolean;
  readonly discardGranularityBytes: number;
  readonly physicalSectorBytes: number;
}

export interface BlockTarget {
  /** Properties at the time it was opened. */
  readonly info: TargetInfo;
  /**
   * Starts an operation with the reactor's next wait. Its end is reported with `tag` to the `OnEnd` that the target
   * was opened with, never before that wait. `length` is in bytes, but for READV and WRITEV it is the number of
   * iovecs at `address`. Never blocks, never throws.
   */
  start(op: IoOp, tag: number, offset: number, length: number, address: number): void;
}

/** One that has something of its own to close. */
export interface ClosableTarget extends BlockTarget {
  /** Before what operations use is closed. `isOver`: no other server of the same disk is to go on. */
  close(isOver: boolean): void;
}

/** Opens a target that reports to `onEnd` when its operations end. */
export type OpenTarget = (onEnd: OnEnd) => BlockTarget;
