// One ring of a disk, from the guest's side: turns an operation into requests, all on this ring, publishes them, and
// says which operation a response is a part of. What an operation's parts amount to is the disk's affair
// (data-plane.ts).
import { PAGE_SIZE, type EvtchnPort } from "../core/types.ts";
import {
  BLKIF_DISCARD_SECURE,
  BLKIF_MAX_INDIRECT_PAGES_PER_REQUEST,
  BLKIF_MAX_SEGMENTS_PER_REQUEST,
  BLKIF_OP_DISCARD,
  type BLKIF_OP_FLUSH_DISKCACHE,
  BLKIF_OP_INDIRECT,
  type BLKIF_OP_READ,
  type BLKIF_OP_WRITE,
  BLKIF_OP_WRITE_BARRIER,
  REQUEST,
  SECTOR_SIZE,
  SECTORS_PER_PAGE,
  SEGMENT,
  SEGMENTS_PER_INDIRECT_PAGE,
} from "../protocol/blkif.ts";
import type { EventChannels } from "../platform/platform.ts";
import { RING_LIES, type FrontRing } from "./front-ring.ts";
import type { GrantedPool } from "./granted-pool.ts";

const TWO_32 = 2 ** 32;
const SECTOR_WORD = REQUEST.sectorNumber / 4;
const SEGMENT_WORD = REQUEST.segments / 4;
const SEGMENT_WORDS = SEGMENT.bytes / 4;
const INDIRECT_GREF_WORD = REQUEST.indirectGrefs / 4;
const DISCARD_WORD = REQUEST.discardNrSectors / 4;
const PAGE_WORDS = PAGE_SIZE / 4;

export type TransferOp = typeof BLKIF_OP_READ | typeof BLKIF_OP_WRITE | typeof BLKIF_OP_WRITE_BARRIER;
/** Operations that may be without data. */
export type EmptyOp = typeof BLKIF_OP_FLUSH_DISKCACHE | typeof BLKIF_OP_WRITE_BARRIER;

/** Called with the tag and the status of each request that was answered. */
export type OnPart = (tag: number, status: number) => void;

/** What all lanes of a disk have in common. */
export interface LaneGround {
  readonly pool: GrantedPool;
  readonly channels: EventChannels;
  /** The device's number, which every request carries. */
  readonly handle: number;
  /** Segments of an indirect request; if at most 11, none is made. */
  readonly maxIndirectSegments: number;
}

export class FrontLane {
  readonly ring: FrontRing;
  readonly port: EvtchnPort;
  readonly #pool: GrantedPool;
  readonly #channels: EventChannels;
  readonly #handle: number;
  readonly #maxSegments: number;
  /** By request id: its tag, and the indirect pages it holds. */
  readonly #tagOf: Uint16Array;
  readonly #indirectPages: Int32Array;
  readonly #indirectCount: Uint8Array;

  constructor(ring: FrontRing, port: EvtchnPort, ground: LaneGround) {
    this.ring = ring;
    this.port = port;
    this.#pool = ground.pool;
    this.#channels = ground.channels;
    this.#handle = ground.handle & 0xffff;
    this.#maxSegments = Math.max(BLKIF_MAX_SEGMENTS_PER_REQUEST, ground.maxIndirectSegments);
    this.#tagOf = new Uint16Array(ring.slots);
    this.#indirectPages = new Int32Array(ring.slots * BLKIF_MAX_INDIRECT_PAGES_PER_REQUEST);
    this.#indirectCount = new Uint8Array(ring.slots);
  }

  /** Requests that a transfer of `pages` pages takes. */
  requestsFor(op: TransferOp, pages: number): number {
    return Math.ceil(pages / this.#segmentsOf(op));
  }

  /** Pages for the segment lists of a transfer of `pages`. */
  tablePages(pages: number): number {
    const perRequest = this.#maxSegments;
    const rest = pages % perRequest;
    const whole = perRequest > BLKIF_MAX_SEGMENTS_PER_REQUEST ? Math.floor(pages / perRequest) : 0;
    const forRest = rest > BLKIF_MAX_SEGMENTS_PER_REQUEST ? Math.ceil(rest / SEGMENTS_PER_INDIRECT_PAGE) : 0;
    return whole * Math.ceil(perRequest / SEGMENTS_PER_INDIRECT_PAGE) + forRest;
  }

  /**
   * Stages the requests of a transfer of `bytes` at `sector`, from or to the pages that begin with `page`; a
   * `pageStep` of 0 means the same page again and again. Returns the number of requests, 0 when there is no room.
   */
  transfer(
    op: TransferOp,
    tag: number,
    sector: number,
    page: number,
    pageStep: number,
    bytes: number,
  ): number {
    const pages = Math.ceil(bytes / PAGE_SIZE);
    const perRequest = this.#segmentsOf(op);
    const requests = this.requestsFor(op, pages);
    if (requests > this.ring.free) return 0;
    if (op !== BLKIF_OP_WRITE_BARRIER && this.tablePages(pages) > this.#pool.freePages) return 0;
    const sectors = bytes / SECTOR_SIZE;
    for (let done = 0; done < pages; done += perRequest) {
      const count = Math.min(perRequest, pages - done);
      const doneSectors = done * SECTORS_PER_PAGE;
      const lastSect = (Math.min(sectors - doneSectors, count * SECTORS_PER_PAGE) - 1) % SECTORS_PER_PAGE;
      const from = page + done * pageStep;
      if (count <= BLKIF_MAX_SEGMENTS_PER_REQUEST)
        this.#stageDirect(op, tag, sector + doneSectors, from, pageStep, count, lastSect);
      else this.#stageIndirect(op, tag, sector + doneSectors, from, pageStep, count, lastSect);
    }
    return requests;
  }

  /** Stages a request without data. Returns 1, or 0 when there is no room. */
  empty(operation: EmptyOp, tag: number): number {
    if (this.ring.free === 0) return 0;
    const at = this.#stage(operation, operation, tag, 0);
    this.ring.requests.bytes[at + REQUEST.nrSegments] = 0;
    return 1;
  }

  /** Stages a discard of `sectors` at `sector`. Returns 1, or 0 when there is no room. */
  discard(tag: number, sector: number, sectors: number, secure: boolean): number {
    if (this.ring.free === 0) return 0;
    const at = this.#stage(BLKIF_OP_DISCARD, BLKIF_OP_DISCARD, tag, sector);
    const { bytes, words } = this.ring.requests;
    bytes[at + REQUEST.discardFlag] = secure ? BLKIF_DISCARD_SECURE : 0;
    words[at / 4 + DISCARD_WORD] = sectors >>> 0;
    words[at / 4 + DISCARD_WORD + 1] = sectors / TWO_32;
    return 1;
  }

  /** Publishes what is staged, and notifies the backend if it asked for that. Returns whether there was anything. */
  push(): boolean {
    if (this.ring.staged === 0) return false;
    if (this.ring.push()) this.#channels.notify(this.port);
    return true;
  }

  /** Takes new responses, frees what their requests held, and reports each. Returns how many there were. */
  reap(onPart: OnPart): number {
    const { ring } = this;
    if (ring.fault !== undefined) return 0;
    const count = ring.fetch();
    if (count === RING_LIES) return 0;
    const { ids, statuses } = ring;
    for (let index = 0; index < count; index++) {
      const id = ids[index];
      const pages = this.#indirectCount[id];
      for (let at = 0; at < pages; at++)
        this.#pool.release(this.#indirectPages[id * BLKIF_MAX_INDIRECT_PAGES_PER_REQUEST + at], 1);
      ring.release(id);
      onPart(this.#tagOf[id], statuses[index]);
    }
    return count;
  }

  /** The most of one request; a barrier is never indirect. */
  #segmentsOf(op: TransferOp): number {
    return op === BLKIF_OP_WRITE_BARRIER ? BLKIF_MAX_SEGMENTS_PER_REQUEST : this.#maxSegments;
  }

  /** Fills in what every request has. Returns the byte offset of the request in `requests`. */
  #stage(operation: number, expected: number, tag: number, sector: number): number {
    const { ring } = this;
    const id = ring.take();
    this.#tagOf[id] = tag;
    this.#indirectCount[id] = 0;
    const at = ring.stage(id, operation, expected);
    const { bytes, words } = ring.requests;
    bytes[at + REQUEST.handle] = this.#handle;
    bytes[at + REQUEST.handle + 1] = this.#handle >> 8;
    words[at / 4 + SECTOR_WORD] = sector >>> 0;
    words[at / 4 + SECTOR_WORD + 1] = sector / TWO_32;
    return at;
  }

  #stageDirect(
    op: TransferOp,
    tag: number,
    sector: number,
    page: number,
    pageStep: number,
    count: number,
    lastSect: number,
  ): void {
    const at = this.#stage(op, op, tag, sector);
    const { bytes, words } = this.ring.requests;
    bytes[at + REQUEST.nrSegments] = count;
    this.#fillSegments(words, at / 4 + SEGMENT_WORD, page, pageStep, count, lastSect);
  }

  #stageIndirect(
    op: TransferOp,
    tag: number,
    sector: number,
    page: number,
    pageStep: number,
    count: number,
    lastSect: number,
  ): void {
    const pool = this.#pool;
    const at = this.#stage(BLKIF_OP_INDIRECT, op, tag, sector);
    const { bytes, words } = this.ring.requests;
    const id = words[at / 4 + REQUEST.id / 4];
    bytes[at + REQUEST.indirectOp] = op;
    bytes[at + REQUEST.indirectNrSegments] = count;
    bytes[at + REQUEST.indirectNrSegments + 1] = count >> 8;
    bytes[at + REQUEST.indirectHandle] = this.#handle;
    bytes[at + REQUEST.indirectHandle + 1] = this.#handle >> 8;
    for (let done = 0, index = 0; done < count; done += SEGMENTS_PER_INDIRECT_PAGE, index++) {
      const table = pool.allocate(1);
      const part = Math.min(SEGMENTS_PER_INDIRECT_PAGE, count - done);
      const last = done + part === count ? lastSect : SECTORS_PER_PAGE - 1;
      this.#fillSegments(pool.words, table * PAGE_WORDS, page + done * pageStep, pageStep, part, last);
      this.#indirectPages[id * BLKIF_MAX_INDIRECT_PAGES_PER_REQUEST + index] = table;
      this.#indirectCount[id] = index + 1;
      words[at / 4 + INDIRECT_GREF_WORD + index] = pool.refs[table];
    }
  }

  /** Whole pages, except that the last one ends with sector `lastSect`. */
  #fillSegments(
    words: Uint32Array,
    at: number,
    page: number,
    pageStep: number,
    count: number,
    lastSect: number,
  ): void {
    const { refs } = this.#pool;
    let word = at;
    for (let index = 0; index < count; index++, word += SEGMENT_WORDS) {
      words[word] = refs[page + index * pageStep];
      words[word + 1] = (SECTORS_PER_PAGE - 1) << 8;
    }
    words[word - 1] = lastSect << 8;
  }
}
