// The frontend's end of the shared ring. Its indices and the list of what is in flight are private. The shared page
// holds only the backend's claims, which are copied once and believed only where they match that list (XSA-155 seen
// from the other side). A backend that lies stops the ring.
import type { Mapping } from "../native/memory.ts";
import { allocateMemory } from "../native/memory.ts";
import { shim, type Pointer } from "../native/shim.ts";
import { REQUEST, type BlkifAbi } from "../protocol/blkif.ts";
import { RING_RSP_PROD, ringSlots } from "../protocol/ring.ts";
import { PAGE_SIZE } from "../core/types.ts";

/** The result of `fetch` when the backend broke the protocol; `fault` has the details. */
export const RING_LIES = -1;

const NOT_IN_FLIGHT = 0xffff;
const ID_WORD = REQUEST.id / 4;

export class FrontRing {
  readonly slots: number;
  /** Requests staged for the next push, in the layout REQUEST, at the offsets that `stage` returned. */
  readonly requests: Mapping;
  /** The responses of the last fetch: ids, and BLKIF_RSP_*. */
  readonly ids: Uint16Array;
  readonly statuses: Int16Array;
  /** What the backend did wrong. */
  fault: string | undefined;
  readonly #abi: BlkifAbi;
  readonly #shared: Mapping;
  readonly #responses: Mapping;
  /** By id: the operation that its response must name, or NOT_IN_FLIGHT. */
  readonly #expected: Uint16Array;
  readonly #free: Uint16Array;
  #freeCount: number;
  #staged = 0;
  #reqProd = 0;
  #rspCons = 0;

  /** Creates a ring on pages that nobody shares, or at least nobody reads, yet. */
  constructor(shared: Mapping, abi: BlkifAbi) {
    this.#shared = shared;
    this.#abi = abi;
    this.slots = ringSlots(shared.sizeBytes / PAGE_SIZE, abi.slotBytes);
    this.requests = allocateMemory(this.slots * REQUEST.bytes);
    this.#responses = allocateMemory(this.slots * abi.responseBytes);
    this.ids = new Uint16Array(this.slots);
    this.statuses = new Int16Array(this.slots);
    this.#expected = new Uint16Array(this.slots).fill(NOT_IN_FLIGHT);
    this.#free = Uint16Array.from({ length: this.slots }, (_, index) => this.slots - 1 - index);
    this.#freeCount = this.slots;
    shim.xt_ring_init(shared.address as Pointer);
  }

  /** Requests that can be staged now. */
  get free(): number {
    return this.#freeCount;
  }

  /** Requests that wait for the next push. */
  get staged(): number {
    return this.#staged;
  }

  /** Requests that are staged, or pushed and not released yet. */
  get inFlight(): number {
    return this.slots - this.#freeCount;
  }

  /** Takes an id; `free` must not be 0. Its request must be staged before the next push. */
  take(): number {
    return this.#free[--this.#freeCount];
  }

  /**
   * Starts the request of `id`. Returns the byte offset in `requests` where the caller fills in the rest. `expected` is
   * the operation that the response will name: for an indirect request, the inner one.
   */
  stage(id: number, operation: number, expected: number): number {
    const at = this.#staged++ * REQUEST.bytes;
    const { bytes, words } = this.requests;
    bytes[at] = operation;
    const word = at / 4 + ID_WORD;
    words[word] = id;
    words[word + 1] = 0;
    this.#expected[id] = expected;
    return at;
  }

  /** Publishes what was staged, at least one request. True when the backend wants to be notified. */
  push(): boolean {
    const count = this.#staged;
    this.#staged = 0;
    const from = this.requests.address as Pointer;
    const shared = this.#shared.address as Pointer;
    const { slotBytes, gapBytes } = this.#abi;
    const wanted = shim.xt_ring_push_requests(
      shared,
      from,
      this.#reqProd,
      count,
      this.slots,
      slotBytes,
      gapBytes,
    );
    this.#reqProd = (this.#reqProd + count) >>> 0;
    return wanted !== 0;
  }

  /** Polls for `us` (0: once). True as soon as the backend has put responses on the ring since the last fetch. */
  hasNews(us: number): boolean {
    if (this.inFlight === 0) return false;
    const prod = (this.#shared.address + RING_RSP_PROD * 4) as Pointer;
    return shim.xt_changes_within(prod, this.#rspCons, us) !== 0;
  }

  /**
   * Copies every new response off the ring. Returns how many are in `ids`, each of which must be released, or
   * RING_LIES.
   */
  fetch(): number {
    const prod = Atomics.load(this.#shared.words, RING_RSP_PROD);
    const fresh = (prod - this.#rspCons) >>> 0;
    if (fresh === 0) return 0;
    if (fresh > (this.#reqProd - this.#rspCons) >>> 0) {
      this.#blame(`rsp_prod is ${prod}`);
      return RING_LIES;
    }
    const to = this.#responses.address as Pointer;
    const shared = this.#shared.address as Pointer;
    const { slotBytes, responseBytes } = this.#abi;
    shim.xt_ring_copy_responses(to, shared, this.#rspCons, fresh, this.slots, slotBytes, responseBytes);
    for (let index = 0; index < fresh; index++) if (!this.#accept(index)) return RING_LIES;
    this.#rspCons = (this.#rspCons + fresh) >>> 0;
    return fresh;
  }

  /** Releases an id after its response was handled; only then may a new request use it. */
  release(id: number): void {
    this.#free[this.#freeCount++] = id;
  }

  /**
   * Asks to be notified of the next response, if there is to be one. True when one has already arrived, so that nobody
   * sleeps.
   */
  finalCheck(): boolean {
    if (this.inFlight === 0) return false;
    return (
      shim.xt_ring_final_check_responses(this.#shared.address as Pointer, this.#rspCons) !== this.#rspCons
    );
  }

  /** Frees the private copies. The owner keeps the shared mapping. */
  close(): void {
    this.requests.close();
    this.#responses.close();
  }

  /** Accepts one response, or records in `fault` why not. */
  #accept(index: number): boolean {
    const words = this.#responses.words;
    const at = (index * this.#abi.responseBytes) / 4;
    const id = words[at];
    const result = words[at + 2];
    const operation = result & 0xff;
    const expected = words[at + 1] === 0 && id < this.slots ? this.#expected[id] : NOT_IN_FLIGHT;
    if (operation !== expected) {
      this.#blame(
        expected === NOT_IN_FLIGHT
          ? `a response to request ${id}, which is not in flight`
          : `a response to operation ${operation}, where ${expected} was asked for`,
      );
      return false;
    }
    this.#expected[id] = NOT_IN_FLIGHT;
    this.ids[index] = id;
    this.statuses[index] = result >> 16;
    return true;
  }

  #blame(what: string): void {
    const own = `requests to ${this.#reqProd}, responses to ${this.#rspCons}, ${this.slots} slots`;
    this.fault = `the backend broke the ring: ${what} (${own})`;
  }
}
