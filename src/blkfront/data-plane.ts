// The data plane of one disk, from the guest's side. What is started between two pushes goes on one ring while that has
// room, as one processor's requests do in Linux, and what comes next on the next ring. So a batch costs both sides one
// notification, however many rings there are. Responses become completions by tag. Synchronous: nothing here awaits,
// allocates or throws per request. The caller decides when to sleep.
import type { EvtchnPort } from "../core/types.ts";
import { PAGE_SIZE } from "../core/types.ts";
import {
  BLKIF_OP_FLUSH_DISKCACHE,
  BLKIF_OP_WRITE,
  BLKIF_OP_WRITE_BARRIER,
  BLKIF_RSP_EOPNOTSUPP,
  BLKIF_RSP_ERROR,
  BLKIF_RSP_OKAY,
} from "../protocol/blkif.ts";
import { Doorbell } from "../platform/doorbell.ts";
import type { FrontRing } from "./front-ring.ts";
import type { GrantedPool } from "./granted-pool.ts";
import { FrontLane, type LaneGround, type TransferOp } from "./lane.ts";

/** Called with the tag of a completed operation and the worst BLKIF_RSP_* of its requests. */
export type OnDone = (tag: number, status: number) => void;

export interface FrontDataPlaneOptions extends LaneGround {
  /** At least one. The ports are all ports of `channels`. */
  readonly rings: readonly { readonly ring: FrontRing; readonly port: EvtchnPort }[];
  /** Tags are 0 to `tags` - 1; each may be used by one operation at a time. */
  readonly tags: number;
}

export class FrontDataPlane {
  readonly pool: GrantedPool;
  readonly doorbell: Doorbell;
  /** Set by the data plane's user before its first operation. */
  onDone: OnDone = () => {};
  readonly #lanes: readonly FrontLane[];
  /** By tag: requests not answered yet, and the worst status so far. */
  readonly #parts: Uint16Array;
  readonly #status: Int16Array;
  /** The lane of this batch. */
  #turn = 0;
  readonly #onPart = (tag: number, status: number): void => this.#partDone(tag, status);

  constructor(options: FrontDataPlaneOptions) {
    const { rings, pool, channels, tags } = options;
    this.pool = pool;
    this.#lanes = rings.map(({ ring, port }) => new FrontLane(ring, port, options));
    this.#parts = new Uint16Array(tags);
    this.#status = new Int16Array(tags);
    this.doorbell = new Doorbell(this.#lanes, channels, 0);
  }

  /** How many rings there are. */
  get lanes(): number {
    return this.#lanes.length;
  }

  /** True when the caller may sleep until `doorbell.fd` is readable, which any further response makes it. */
  maySleep(): boolean {
    if (this.inFlight > 0 && this.doorbell.look(performance.now())) return false;
    return this.doorbell.arm();
  }

  /** Must be called after a sleep that ended because `doorbell.fd` was readable. */
  woke(): void {
    this.doorbell.take();
    this.doorbell.slept(performance.now());
  }

  /** Why the data plane is unusable: the backend broke the protocol on one of the rings. */
  get failure(): string | undefined {
    const lanes = this.#lanes;
    for (let index = 0; index < lanes.length; index++) {
      const { fault } = lanes[index].ring;
      if (fault !== undefined) return lanes.length === 1 ? fault : `queue ${index}: ${fault}`;
    }
    return undefined;
  }

  /** Requests that are waiting for their response. */
  get inFlight(): number {
    const lanes = this.#lanes;
    let count = 0;
    for (let index = 0; index < lanes.length; index++) count += lanes[index].ring.inFlight;
    return count;
  }

  /** How many transfers of `bytes` the rings and the pool can hold at the same time; 0: not even one. */
  transfersThatFit(bytes: number): number {
    const pages = Math.ceil(bytes / PAGE_SIZE);
    const [lane] = this.#lanes;
    const byRing = Math.floor(lane.ring.slots / lane.requestsFor(BLKIF_OP_WRITE, pages));
    return Math.min(
      byRing * this.#lanes.length,
      Math.floor(this.pool.pageCount / (pages + lane.tablePages(pages))),
    );
  }

  /**
   * Reads or writes `bytes` (whole sectors) at `sector` (of 512 bytes) into or from the run of pages at `page`. Does
   * nothing and returns false when the rings or the pool are too full: try again after completions.
   */
  transfer(op: TransferOp, tag: number, sector: number, page: number, bytes: number): boolean {
    return this.#transfer(op, tag, sector, page, 1, bytes);
  }

  /** Writes `bytes` (whole sectors) of zeroes at `sector`. False as in `transfer`. */
  writeZeroes(tag: number, sector: number, bytes: number): boolean {
    return this.#transfer(BLKIF_OP_WRITE, tag, sector, this.pool.zeroPage, 0, bytes);
  }

  /** Makes everything completed before durable, whichever ring it was on. False as in `transfer`. */
  flush(tag: number): boolean {
    return this.#begin(tag, this.#laneFor(1).empty(BLKIF_OP_FLUSH_DISKCACHE, tag));
  }

  /** Like `flush`, for a backend that supports only barriers. */
  barrier(tag: number): boolean {
    return this.#begin(tag, this.#laneFor(1).empty(BLKIF_OP_WRITE_BARRIER, tag));
  }

  /** Tells the backend that `sectors` at `sector` (of 512 bytes) are unused. False as in `transfer`. */
  discard(tag: number, sector: number, sectors: number, secure = false): boolean {
    return this.#begin(tag, this.#laneFor(1).discard(tag, sector, sectors, secure));
  }

  /** Publishes what was started since the last push, and notifies the backend where it asked for that. */
  push(): void {
    const lanes = this.#lanes;
    let isBatch = false;
    for (let index = 0; index < lanes.length; index++) if (lanes[index].push()) isBatch = true;
    if (isBatch) this.#turn = (this.#turn + 1) % lanes.length;
  }

  /** Takes new responses and reports the operations that they complete. Returns the number of responses. */
  reap(): number {
    const lanes = this.#lanes;
    let count = 0;
    for (let index = 0; index < lanes.length; index++) count += lanes[index].reap(this.#onPart);
    return count;
  }

  #transfer(
    op: TransferOp,
    tag: number,
    sector: number,
    page: number,
    pageStep: number,
    bytes: number,
  ): boolean {
    const requests = this.#lanes[0].requestsFor(op, Math.ceil(bytes / PAGE_SIZE));
    return this.#begin(tag, this.#laneFor(requests).transfer(op, tag, sector, page, pageStep, bytes));
  }

  /** The batch's lane or, if that has no room for that many requests, the next one that has; if none has, any. */
  #laneFor(requests: number): FrontLane {
    const lanes = this.#lanes;
    let lane = lanes[this.#turn];
    for (let other = 1; other < lanes.length && lane.ring.free < requests; other++)
      lane = lanes[(this.#turn + other) % lanes.length];
    return lane;
  }

  /** An operation of `parts` requests was staged, or none was. Returns which. */
  #begin(tag: number, parts: number): boolean {
    if (parts === 0) return false;
    this.#parts[tag] = parts;
    this.#status[tag] = BLKIF_RSP_OKAY;
    return true;
  }

  #partDone(tag: number, status: number): void {
    const known = status === BLKIF_RSP_OKAY || status === BLKIF_RSP_EOPNOTSUPP ? status : BLKIF_RSP_ERROR;
    if (known < this.#status[tag]) this.#status[tag] = known;
    const left = this.#parts[tag] - 1;
    this.#parts[tag] = left;
    if (left === 0) this.onDone(tag, this.#status[tag]);
  }
}
