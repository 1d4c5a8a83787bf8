// The block port: what a data plane needs of whatever holds the bytes. Adapters: file.ts (files and block
// devices) and filter.ts (faults, delay and a log on top of another target).
import type { IoOp } from "../native/io-engine.ts";

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
  readonly info: TargetInfo;
  /** Completions of the last `run`: tag and result (bytes, 0 or -errno) in turn. */
  readonly done: Int32Array;
  /** Queues an operation; `tag` comes back with its completion. Never blocks, never throws. */
  submit(op: IoOp, tag: number, offset: number, length: number, address: number): void;
  /** Starts what is queued and waits for `wait` completions at most `timeoutUs`; how many, or -errno. */
  run(wait: number, timeoutUs: number): number;
  /** Reports `tag` with the completions whenever `fd` is readable. */
  watch(fd: number, tag: number): void;
  close(): void;
}
