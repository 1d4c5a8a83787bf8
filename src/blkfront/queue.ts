// The data plane of one ring, from the guest's side. Operations become requests, a batch of requests is pushed with
// at most one notification, and responses become completions by tag. Synchronous: nothing here awaits, allocates or
// throws per request. The caller decides when to sleep.
import type { EvtchnPort } from "../core/types.ts";
import { PAGE_SIZE } from "../core/types.ts";
import type { EventChannels } from "../platform/platform.ts";
import {
  BLKIF_DISCARD_SECURE,
  BLKIF_MAX_INDIRECT_PAGES_PER_REQUEST,
  BLKIF_MAX_SEGMENTS_PER_REQUEST,
  BLKIF_OP_DISCARD,
  BLKIF_OP_FLUSH_DISKCACHE,
  BLKIF_OP_INDIRECT,
  type BLKIF_OP_READ,
  BLKIF_OP_WRITE,
  BLKIF_OP_WRITE_BARRIER,
  BLKIF_RSP_EOPNOTSUPP,
  BLKIF_RSP_ERROR,
  BLKIF_RSP_OKAY,
  REQUEST,
  SECTOR_SIZE,
  SECTORS_PER_PAGE,
  SEGMENT,
  SEGMENTS_PER_INDIRECT_PAGE,
} from "../protocol/blkif.ts";
import { Doorbell } from "../platform/doorbell.ts";
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

/** Called with the tag of a completed operation and the worst BLKIF_RSP_* of its requests. */
export type OnDone = (tag: number, status: number) => void;

export interface FrontQueueOptions {
  readonly ring: FrontRing;
  readonly pool: GrantedPool;
  readonly channels: EventChannels;
  readonly port: EvtchnPort;
  /** The device's number, which every request carries. */
  readonly handle: number;
  /** Segments of an indirect request; if at most 11, none is made. */
  readonly maxIndirectSegments: number;
  /** Tags are 0 to `tags` - 1; each may be used by one operation at a time. */
  readonly tags: number;
}

export class FrontQueue {
  readonly pool: GrantedPool;
  readonly doorbell: Doorbell;
  /** Set by the queue's user before its first operation. */
  onDone: OnDone = () => {};
  readonly #ring: FrontRing;
  readonly #notify: () => void;
  readonly #handle: number;
  readonly #maxSegments: number;
  /** By request id: its tag, and the indirect pages it holds. */
  readonly #tagOf: Uint16Array;
  readonly #indirectPages: Int32Array;
  readonly #indirectCount: Uint8Array;
  /** By tag: requests not answered yet, and the worst status so far. */
  readonly #parts: Uint16Array;
  readonly #status: Int16Array;

  constructor(options: FrontQueueOptions) {
    const { ring, pool, channels, port, tags } = options;
    this.#ring = ring;
    this.pool = pool;
    this.#handle = options.handle & 0xffff;
    this.#maxSegments = Math.max(BLKIF_MAX_SEGMENTS_PER_REQUEST, options.maxIndirectSegments);
    this.#tagOf = new Uint16Array(ring.slots);
    this.#indirectPages = new Int32Array(ring.slots * BLKIF_MAX_INDIRECT_PAGES_PER_REQUEST);
    this.#indirectCount = new Uint8Array(ring.slots);
    this.#parts = new Uint16Array(tags);
    this.#status = new Int16Array(tags);
    this.#notify = () => void channels.notify(port);
    this.doorbell = new Doorbell([{ ring, port }], channels, 0);
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

  /** Why the queue is unusable: the backend broke the protocol. */
  get failure(): string | undefined {
    return this.#ring.fault;
  }

  /** Requests that are waiting for their response. */
  get inFlight(): number {
    return this.#ring.inFlight;
  }

  /** How many transfers of `bytes` the ring and the pool can hold at the same time; 0: not even one. */
  transfersThatFit(bytes: number): number {
    const pages = Math.ceil(bytes / PAGE_SIZE);
    const byRing = Math.floor(this.#ring.slots / Math.ceil(pages / this.#maxSegments));
    return Math.min(byRing, Math.floor(this.pool.pageCount / (pages + this.#tablePages(pages))));
  }

  /**
   * Reads or writes `bytes` (whole sectors) at `sector` (of 512 bytes) into or from the run of pages at `page`. Does
   * nothing and returns false when the ring or the pool is too full: try again after completions.
   */
  transfer(op: TransferOp, tag: number, sector: number, page: number, bytes: number): boolean {
    return this.#transfer(op, tag, sector, page, 1, bytes);
  }

  /** Writes `bytes` (whole sectors) of zeroes at `sector`. False as in `transfer`. */
  writeZeroes(tag: number, sector: number, bytes: number): boolean {
    return this.#transfer(BLKIF_OP_WRITE, tag, sector, this.pool.zeroPage, 0, bytes);
  }

  /** Makes everything completed before durable. False as in `transfer`. */
  flush(tag: number): boolean {
    return this.#stageEmpty(BLKIF_OP_FLUSH_DISKCACHE, tag);
  }

  /** Like `flush`, for a backend that supports only barriers. */
  barrier(tag: number): boolean {
    return this.#stageEmpty(BLKIF_OP_WRITE_BARRIER, tag);
  }

  /** Tells the backend that `sectors` at `sector` (of 512 bytes) are unused. False as in `transfer`. */
  discard(tag: number, sector: number, sectors: number, secure = false): boolean {
    if (this.#ring.free === 0) return false;
    this.#begin(tag, 1);
    const at = this.#stage(BLKIF_OP_DISCARD, BLKIF_OP_DISCARD, tag, sector);
    const { bytes, words } = this.#ring.requests;
    bytes[at + REQUEST.discardFlag] = secure ? BLKIF_DISCARD_SECURE : 0;
    words[at / 4 + DISCARD_WORD] = sectors % TWO_32;
    words[at / 4 + DISCARD_WORD + 1] = sectors / TWO_32;
    return true;
  }

  /** Publishes what was started since the last push, and notifies the backend if it asked for that. */
  push(): void {
    if (this.#ring.push()) this.#notify();
  }

  /** Takes new responses and reports the operations that they complete. Returns the number of responses. */
  reap(): number {
    if (this.#ring.fault !== undefined) return 0;
    const count = this.#ring.fetch();
    if (count === RING_LIES) return 0;
    const { ids, statuses } = this.#ring;
    for (let index = 0; index < count; index++) this.#complete(ids[index], statuses[index]);
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
    const pages = Math.ceil(bytes / PAGE_SIZE);
    const barrier = op === BLKIF_OP_WRITE_BARRIER;
    const perRequest = barrier ? BLKIF_MAX_SEGMENTS_PER_REQUEST : this.#maxSegments;
    const parts = Math.ceil(pages / perRequest);
    if (parts > this.#ring.free) return false;
    if (!barrier && this.#tablePages(pages) > this.pool.freePages) return false;
    this.#begin(tag, parts);
    const sectors = bytes / SECTOR_SIZE;
    for (let done = 0; done < pages; done += perRequest) {
      const count = Math.min(perRequest, pages - done);
      const doneSectors = done * SECTORS_PER_PAGE;
      const lastSect = Math.min(sectors - doneSectors, count * SECTORS_PER_PAGE) - 1;
      const from = page + done * pageStep;
      if (count <= BLKIF_MAX_SEGMENTS_PER_REQUEST)
        this.#stageDirect(op, tag, sector + doneSectors, from, pageStep, count, lastSect % SECTORS_PER_PAGE);
      else
        this.#stageIndirect(
          op,
          tag,
          sector + doneSectors,
          from,
          pageStep,
          count,
          lastSect % SECTORS_PER_PAGE,
        );
    }
    return true;
  }

  /** Pages for the segment lists of a transfer of `pages`. */
  #tablePages(pages: number): number {
    const perRequest = this.#maxSegments;
    const rest = pages % perRequest;
    const whole = perRequest > BLKIF_MAX_SEGMENTS_PER_REQUEST ? Math.floor(pages / perRequest) : 0;
    const forRest = rest > BLKIF_MAX_SEGMENTS_PER_REQUEST ? Math.ceil(rest / SEGMENTS_PER_INDIRECT_PAGE) : 0;
    return whole * Math.ceil(perRequest / SEGMENTS_PER_INDIRECT_PAGE) + forRest;
  }

  #begin(tag: number, parts: number): void {
    this.#parts[tag] = parts;
    this.#status[tag] = BLKIF_RSP_OKAY;
  }

  /** Fills in what every request has. Returns the byte offset of the request in `requests`. */
  #stage(operation: number, echo: number, tag: number, sector: number): number {
    const ring = this.#ring;
    const id = ring.take();
    this.#tagOf[id] = tag;
    this.#indirectCount[id] = 0;
    const at = ring.stage(id, operation, echo);
    const { bytes, words } = ring.requests;
    bytes[at + REQUEST.handle] = this.#handle;
    bytes[at + REQUEST.handle + 1] = this.#handle >> 8;
    words[at / 4 + SECTOR_WORD] = sector % TWO_32;
    words[at / 4 + SECTOR_WORD + 1] = sector / TWO_32;
    return at;
  }

  #stageEmpty(operation: number, tag: number): boolean {
    if (this.#ring.free === 0) return false;
    this.#begin(tag, 1);
    const at = this.#stage(operation, operation, tag, 0);
    this.#ring.requests.bytes[at + REQUEST.nrSegments] = 0;
    return true;
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
    const { bytes, words } = this.#ring.requests;
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
    const { pool } = this;
    const at = this.#stage(BLKIF_OP_INDIRECT, op, tag, sector);
    const { bytes, words } = this.#ring.requests;
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
    const refs = this.pool.refs;
    let word = at;
    for (let index = 0; index < count; index++, word += SEGMENT_WORDS) {
      words[word] = refs[page + index * pageStep];
      words[word + 1] = (SECTORS_PER_PAGE - 1) << 8;
    }
    words[word - 1] = lastSect << 8;
  }

  #complete(id: number, status: number): void {
    const pages = this.#indirectCount[id];
    for (let index = 0; index < pages; index++)
      this.pool.release(this.#indirectPages[id * BLKIF_MAX_INDIRECT_PAGES_PER_REQUEST + index], 1);
    const tag = this.#tagOf[id];
    this.#ring.release(id);
    const known = status === BLKIF_RSP_OKAY || status === BLKIF_RSP_EOPNOTSUPP ? status : BLKIF_RSP_ERROR;
    if (known < this.#status[tag]) this.#status[tag] = known;
    const left = this.#parts[tag] - 1;
    this.#parts[tag] = left;
    if (left === 0) this.onDone(tag, this.#status[tag]);
  }
}
