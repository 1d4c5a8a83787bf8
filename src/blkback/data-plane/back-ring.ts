// The backend's end of the shared ring. Its own two indices are private: the shared page holds the frontend's claims,
// which are read once and only compared with them.
import type { Mapping } from "../../native/memory.ts";
import { allocateMemory } from "../../native/memory.ts";
import { shim, type Pointer } from "../../native/shim.ts";
import { REQUEST, type BlkifAbi } from "../../protocol/blkif.ts";
import { RING_REQ_PROD, RING_RSP_PROD, ringSlots } from "../../protocol/ring.ts";
import { PAGE_SIZE } from "../../core/types.ts";

/** Returned by `fetch` when the frontend's req_prod is impossible. */
export const RING_LIES = -1;

const NONE = new Uint32Array(0);

export class BackRing {
  readonly slots: number;
  /** The requests of the last `fetch`, in the layout REQUEST, each copied off the ring exactly once. */
  readonly requests: Mapping;
  /** Responses to push, filled in at `RESPONSE` offsets with `abi.responseBytes` each. */
  readonly responses: Mapping;
  readonly #abi: BlkifAbi;
  readonly #shared: Mapping;
  #reqCons: number;
  #rspProd: number;
  #leftOver: number;

  /**
   * Attaches at rsp_prod to a ring that may already have been in use: a fresh ring has 0 there, and the successor of
   * a dead backend continues after the responses that the frontend has. `unanswered` holds the requests that the dead
   * backend had taken; the first `fetch` returns those.
   */
  constructor(shared: Mapping, abi: BlkifAbi, unanswered: Uint32Array = NONE) {
    this.#shared = shared;
    this.#abi = abi;
    this.slots = ringSlots(shared.sizeBytes / PAGE_SIZE, abi.slotBytes);
    this.requests = allocateMemory(this.slots * REQUEST.bytes);
    this.responses = allocateMemory(this.slots * abi.responseBytes);
    this.#rspProd = Atomics.load(shared.words, RING_RSP_PROD);
    this.#leftOver = unanswered.length / (REQUEST.bytes / 4);
    this.#reqCons = (this.#rspProd + this.#leftOver) >>> 0;
    this.requests.words.set(unanswered);
  }

  /** The shared page's req_prod and our own indices, for a message about impossible indices. */
  describe(): string {
    const shared = Atomics.load(this.#shared.words, RING_REQ_PROD);
    return `req_prod ${shared}, consumed to ${this.#reqCons}, answered to ${this.#rspProd}, ${this.slots} slots`;
  }

  /** Requests consumed and not yet answered. */
  get unanswered(): number {
    return (this.#reqCons - this.#rspProd) >>> 0;
  }

  /** Copies every new request to `requests`; returns how many, or RING_LIES. */
  fetch(): number {
    if (this.#leftOver > 0) {
      const count = this.#leftOver;
      this.#leftOver = 0;
      return count;
    }
    const prod = Atomics.load(this.#shared.words, RING_REQ_PROD);
    const fresh = (prod - this.#reqCons) >>> 0;
    if (fresh === 0) return 0;
    if (fresh > this.slots - this.unanswered) return RING_LIES;
    const to = this.requests.address as Pointer;
    const { slotBytes, gapBytes } = this.#abi;
    const shared = this.#shared.address as Pointer;
    shim.xt_ring_copy_requests(to, shared, this.#reqCons, fresh, this.slots, slotBytes, gapBytes);
    this.#reqCons = (this.#reqCons + fresh) >>> 0;
    return fresh;
  }

  /**
   * Polls for `us` microseconds (0: looks once); true as soon as the frontend has added requests since the last
   * fetch.
   */
  hasNews(us: number): boolean {
    const prod = (this.#shared.address + RING_REQ_PROD * 4) as Pointer;
    return shim.xt_changes_within(prod, this.#reqCons, us) !== 0;
  }

  /** Publishes the first `count` of `responses`; returns whether the frontend wants to be notified. */
  push(count: number): boolean {
    const from = this.responses.address as Pointer;
    const { slotBytes, responseBytes } = this.#abi;
    const shared = this.#shared.address as Pointer;
    const wanted = shim.xt_ring_push_responses(
      shared,
      from,
      this.#rspProd,
      count,
      this.slots,
      slotBytes,
      responseBytes,
    );
    this.#rspProd = (this.#rspProd + count) >>> 0;
    return wanted !== 0;
  }

  /** Asks to be notified of the next request. Returns true when one arrived in the meantime: then do not sleep. */
  finalCheck(): boolean {
    return (
      shim.xt_ring_final_check_requests(this.#shared.address as Pointer, this.#reqCons) !== this.#reqCons
    );
  }

  /** Frees the private copies. The shared mapping belongs to its owner. */
  close(): void {
    this.requests.close();
    this.responses.close();
  }
}
