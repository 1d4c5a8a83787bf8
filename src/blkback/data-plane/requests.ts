// The requests of a disk, as columns, and their segments. Each of its lanes has rows of its own. parse.ts fills them
// in; nothing in this file is checked.
import { allocateMemory, type Mapping } from "../../native/memory.ts";
import {
  BLKIF_MAX_INDIRECT_PAGES_PER_REQUEST,
  SEGMENT,
  SEGMENTS_PER_INDIRECT_PAGE,
} from "../../protocol/blkif.ts";

/** Kinds of requests, once decoded. */
export const KIND_READ = 0;
export const KIND_WRITE = 1;
export const KIND_FLUSH = 2;
export const KIND_DISCARD = 3;
export const KIND_SECURE_DISCARD = 4;
/** Flush, write (unless there is no data), flush. Nothing passes a barrier in either direction. */
export const KIND_BARRIER = 5;

/** In `heldMs`: the request has not passed the limits yet. */
export const STILL_HELD = -1;

/** The disk as its guest is offered it, which every request is checked against. */
export interface OfferedDisk {
  /** Capacity in sectors of 512 bytes. */
  sectors512: number;
  readonly readOnly: boolean;
  readonly logicalSectorBytes: number;
  readonly canDiscard: boolean;
  readonly canSecureDiscard: boolean;
  /** 0: indirect requests are not offered. */
  readonly maxIndirectSegments: number;
}

export class RequestTable {
  /** The operation that the response names: what was asked for, the inner one for an indirect request. */
  readonly operation: Uint8Array;
  readonly kind: Uint8Array;
  readonly idLow: Uint32Array;
  readonly idHigh: Uint32Array;
  /** First byte on the disk, and number of bytes. */
  readonly start: Float64Array;
  readonly length: Float64Array;
  readonly segmentCount: Uint16Array;
  /** Grant references of the indirect pages, BLKIF_MAX_INDIRECT_PAGES_PER_REQUEST each. */
  readonly indirectGrefs: Uint32Array;
  /** Order of arrival; -1 once it has been answered. */
  readonly sequence: Float64Array;
  readonly startedAtMs: Float64Array;
  /** How long the disk's limits held it back: 0 if they did not, STILL_HELD while they do. */
  readonly heldMs: Float64Array;
  /** Set when one of its grants could not be copied or mapped. */
  readonly failed: Uint8Array;
  /** Set after its merged operation failed: it is then tried without others. */
  readonly retried: Uint8Array;
  /** Next request in the same I/O operation, or -1. */
  readonly next: Int16Array;
  /** Segments of all requests: `segmentStride` segments of SEGMENT.bytes each per request. */
  readonly segments: Mapping;
  readonly segmentStride: number;
  readonly laneCount: number;
  readonly #segmentWords: Uint32Array;
  readonly #segmentBytes: Uint8Array;
  readonly #free: Uint16Array;
  /** By lane. */
  readonly #freeCount: Uint16Array;
  readonly #rowsPerLane: number;
  #arrivals = 0;

  /**
   * Holds up to `rowsPerLane` requests of each lane at once, each with up to 11 direct or `maxIndirectSegments`
   * indirect segments.
   */
  constructor(rowsPerLane: number, maxIndirectSegments: number, laneCount = 1) {
    const size = rowsPerLane * laneCount;
    this.laneCount = laneCount;
    this.operation = new Uint8Array(size);
    this.kind = new Uint8Array(size);
    this.idLow = new Uint32Array(size);
    this.idHigh = new Uint32Array(size);
    this.start = new Float64Array(size);
    this.length = new Float64Array(size);
    this.segmentCount = new Uint16Array(size);
    this.indirectGrefs = new Uint32Array(size * BLKIF_MAX_INDIRECT_PAGES_PER_REQUEST);
    this.sequence = new Float64Array(size);
    this.startedAtMs = new Float64Array(size);
    this.heldMs = new Float64Array(size);
    this.failed = new Uint8Array(size);
    this.retried = new Uint8Array(size);
    this.next = new Int16Array(size);
    this.segmentStride = Math.max(
      16,
      Math.ceil(maxIndirectSegments / SEGMENTS_PER_INDIRECT_PAGE) * SEGMENTS_PER_INDIRECT_PAGE,
    );
    this.segments = allocateMemory(size * this.segmentStride * SEGMENT.bytes);
    this.#segmentWords = this.segments.words;
    this.#segmentBytes = this.segments.bytes;
    this.#rowsPerLane = rowsPerLane;
    this.#freeCount = new Uint16Array(laneCount).fill(rowsPerLane);
    // Each lane hands out its rows from the first to the last.
    this.#free = Uint16Array.from({ length: size }, (_, index) => {
      const firstRow = index - (index % rowsPerLane);
      return firstRow + rowsPerLane - 1 - (index - firstRow);
    });
  }

  /** Takes a free row of `lane`. The ring's bound on unanswered requests guarantees that there is one. */
  take(nowMs: number, lane = 0): number {
    const row = this.#free[lane * this.#rowsPerLane + --this.#freeCount[lane]];
    this.sequence[row] = this.#arrivals++;
    this.startedAtMs[row] = nowMs;
    this.heldMs[row] = 0;
    this.failed[row] = 0;
    this.retried[row] = 0;
    this.next[row] = -1;
    this.segmentCount[row] = 0;
    this.length[row] = 0;
    return row;
  }

  laneOf(row: number): number {
    return Math.floor(row / this.#rowsPerLane);
  }

  release(row: number): void {
    const lane = this.laneOf(row);
    this.sequence[row] = -1;
    this.#free[lane * this.#rowsPerLane + this.#freeCount[lane]++] = row;
  }

  /** Grant reference of segment `index` of `row`. */
  gref(row: number, index: number): number {
    return this.#segmentWords[(row * this.segmentStride + index) * 2];
  }

  /** First sector of segment `index` of `row` within its page. */
  firstSect(row: number, index: number): number {
    return this.#segmentBytes[(row * this.segmentStride + index) * SEGMENT.bytes + SEGMENT.firstSect];
  }

  /** Sectors of segment `index` of `row`. */
  sectCount(row: number, index: number): number {
    const at = (row * this.segmentStride + index) * SEGMENT.bytes;
    const bytes = this.#segmentBytes;
    return bytes[at + SEGMENT.lastSect] - bytes[at + SEGMENT.firstSect] + 1;
  }

  /** Address of the segments of `row`, the destination of the copy from its indirect pages. */
  segmentAddress(row: number): number {
    return this.segments.address + row * this.segmentStride * SEGMENT.bytes;
  }

  close(): void {
    this.segments.close();
  }
}
