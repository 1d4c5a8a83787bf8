// How a request's data gets from the guest's pages to the target and back: copy.ts, map.ts or persistent.ts.
// Nothing here fails as a whole: a bad grant marks the request that named it, in `requests.failed`.
import type { Domid } from "../../../core/types.ts";

/**
 * `persistent`: pages stay mapped from one request to the next. Devices offer it, and use `copy` with a guest that does
 * not accept.
 */
export type GrantMode = "copy" | "map" | "persistent";

/** Where the parser gets indirect pages from, each byte copied once. */
export interface SegmentSource {
  /** Copies `length` bytes at `offset` of the page `ref` of `domid` to our `address`, before `run` returns. */
  fromGrant(row: number, domid: Domid, ref: number, offset: number, length: number, address: number): void;
  run(): void;
}

export interface DataPath {
  /** Sets memory aside for the one request of `op`. Returns false if there is none at the moment. */
  reserve(op: number): boolean;
  /** Makes room for `row` behind the requests of `op`. Returns false if it needs an operation of its own. */
  append(op: number, row: number): boolean;
  /**
   * Prepares the memory of the first `count` of `ops` for the target. For operations that write, it then holds the
   * guest's data.
   */
  gather(ops: Uint16Array, count: number): void;
  /** Delivers to the guest what the first `count` of `ops`, which are all reads, have read. */
  scatter(ops: Uint16Array, count: number): void;
  /** Takes back the memory of `op`. */
  release(op: number): void;
  /**
   * How the rest of `op` is to be transferred. 0: directly, at `operations.address` plus `done`; otherwise with this
   * many iovecs at `vectorAddress`.
   */
  vectors(op: number): number;
  vectorAddress(op: number): number;
  close(): void;
}
