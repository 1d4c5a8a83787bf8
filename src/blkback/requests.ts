// The requests of one ring, as columns: decoded from the private copies of their slots, checked against the
// disk before anything else sees them. Every rule that a hostile request could break is in this file.
import { allocateMemory, type Mapping } from "../native/memory.ts";
import {
  BLKIF_DISCARD_SECURE,
  BLKIF_MAX_SEGMENTS_PER_REQUEST,
  BLKIF_OP_DISCARD,
  BLKIF_OP_FLUSH_DISKCACHE,
  BLKIF_OP_INDIRECT,
  BLKIF_OP_READ,
  BLKIF_OP_WRITE,
  BLKIF_OP_WRITE_BARRIER,
  BLKIF_RSP_EOPNOTSUPP,
  BLKIF_RSP_ERROR,
  REQUEST,
  SECTORS_PER_PAGE,
  SECTOR_SIZE,
  SEGMENT,
} from "../protocol/blkif.ts";

/** What a request asks for, once decoded. */
export const KIND_READ = 0;
export const KIND_WRITE = 1;
export const KIND_FLUSH = 2;
export const KIND_DISCARD = 3;
export const KIND_SECURE_DISCARD = 4;
/** Flush, write (unless it has no data), flush; nothing passes it in either direction. */
export const KIND_BARRIER = 5;

/** `decode`'s answers besides the negative statuses: ready, or its segments are still on indirect pages. */
export const DECODED = 0;
export const NEEDS_INDIRECT = 1;
/** Nothing is to be done for it: answer OKAY. */
export const NOTHING_TO_DO = 2;

export interface DiskLimits {
  /** Capacity in sectors of 512 bytes. */
  sectors512: number;
  readonly readOnly: boolean;
  readonly logicalSectorBytes: number;
  readonly canDiscard: boolean;
  readonly canSecureDiscard: boolean;
  /** 0 when indirect requests are not offered. */
  readonly maxIndirectSegments: number;
}

const WORDS = REQUEST.bytes / 4;
const ID_WORD = REQUEST.id / 4;
const SECTOR_WORD = REQUEST.sectorNumber / 4;
const SEGMENT_WORD = REQUEST.segments / 4;
const DISCARD_WORD = REQUEST.discardNrSectors / 4;
const INDIRECT_GREF_WORD = REQUEST.indirectGrefs / 4;
const TWO_32 = 2 ** 32;
/** Above this high word a sector number is beyond what a double counts exactly: 2^53. */
const MAX_SECTOR_HIGH = 2 ** 21;

export class RequestTable {
  /** The operation to echo in the response; for an indirect request its inner one. */
  readonly echo: Uint8Array;
  readonly kind: Uint8Array;
  readonly idLow: Uint32Array;
  readonly idHigh: Uint32Array;
  /** First byte on the disk, and how many. */
  readonly start: Float64Array;
  readonly length: Float64Array;
  readonly segmentCount: Uint16Array;
  /** Grant references of the indirect pages, 8 a request. */
  readonly indirectGrefs: Uint32Array;
  /** Order of arrival. */
  readonly sequence: Float64Array;
  readonly startedAtMs: Float64Array;
  /** Set when one of its grants could not be copied or mapped. */
  readonly failed: Uint8Array;
  /** Set after a merged operation failed: it is tried again by itself. */
  readonly alone: Uint8Array;
  /** Next request of the same I/O operation, or -1. */
  readonly next: Int16Array;
  /** Every request's segments, `segmentStride` of SEGMENT.bytes each. */
  readonly segments: Mapping;
  readonly segmentStride: number;
  readonly #segmentWords: Uint32Array;
  readonly #segmentBytes: Uint8Array;
  readonly #slots: Mapping;
  readonly #limits: DiskLimits;
  readonly #free: Uint16Array;
  #freeCount: number;
  #arrivals = 0;

  /** For up to `size` requests at once; `slots` are the private copies that `decode` reads. */
  constructor(size: number, slots: Mapping, limits: DiskLimits) {
    this.echo = new Uint8Array(size);
    this.kind = new Uint8Array(size);
    this.idLow = new Uint32Array(size);
    this.idHigh = new Uint32Array(size);
    this.start = new Float64Array(size);
    this.length = new Float64Array(size);
    this.segmentCount = new Uint16Array(size);
    this.indirectGrefs = new Uint32Array(size * 8);
    this.sequence = new Float64Array(size);
    this.startedAtMs = new Float64Array(size);
    this.failed = new Uint8Array(size);
    this.alone = new Uint8Array(size);
    this.next = new Int16Array(size);
    this.segmentStride = Math.max(16, Math.ceil(limits.maxIndirectSegments / 512) * 512);
    this.segments = allocateMemory(size * this.segmentStride * SEGMENT.bytes);
    this.#segmentWords = this.segments.words;
    this.#segmentBytes = this.segments.bytes;
    this.#slots = slots;
    this.#limits = limits;
    this.#free = Uint16Array.from({ length: size }, (_, index) => size - 1 - index);
    this.#freeCount = size;
  }

  /** A free row. The ring's bound on unanswered requests guarantees that there is one. */
  take(nowMs: number): number {
    const row = this.#free[--this.#freeCount] as number;
    this.sequence[row] = this.#arrivals++;
    this.startedAtMs[row] = nowMs;
    this.failed[row] = 0;
    this.alone[row] = 0;
    this.next[row] = -1;
    this.segmentCount[row] = 0;
    this.length[row] = 0;
    return row;
  }

  release(row: number): void {
    this.#free[this.#freeCount++] = row;
  }

  /** Decodes slot `slot` of the last fetch into `row`: DECODED, NEEDS_INDIRECT, NOTHING_TO_DO or a BLKIF_RSP_*. */
  decode(slot: number, row: number): number {
    const words = this.#slots.words;
    const bytes = this.#slots.bytes;
    const word = slot * WORDS;
    const at = slot * REQUEST.bytes;
    const operation = bytes[at] as number;
    this.echo[row] = operation;
    this.idLow[row] = words[word + ID_WORD] as number;
    this.idHigh[row] = words[word + ID_WORD + 1] as number;
    const sectorHigh = words[word + SECTOR_WORD + 1] as number;
    const sector = (words[word + SECTOR_WORD] as number) + sectorHigh * TWO_32;
    this.start[row] = sector * SECTOR_SIZE;
    const count = bytes[at + REQUEST.nrSegments] as number;
    switch (operation) {
      case BLKIF_OP_READ:
      case BLKIF_OP_WRITE:
        this.kind[row] = operation === BLKIF_OP_READ ? KIND_READ : KIND_WRITE;
        return count === 0 || sectorHigh >= MAX_SECTOR_HIGH
          ? BLKIF_RSP_ERROR
          : this.#decodeDirect(row, word, count);
      case BLKIF_OP_FLUSH_DISKCACHE:
      case BLKIF_OP_WRITE_BARRIER:
        // A flush that carries data is done as a barrier: flush, write, flush.
        this.kind[row] = count === 0 && operation === BLKIF_OP_FLUSH_DISKCACHE ? KIND_FLUSH : KIND_BARRIER;
        if (count === 0) return DECODED;
        return sectorHigh >= MAX_SECTOR_HIGH ? BLKIF_RSP_ERROR : this.#decodeDirect(row, word, count);
      case BLKIF_OP_DISCARD:
        return this.#decodeDiscard(row, word, at, sector);
      case BLKIF_OP_INDIRECT:
        return this.#decodeIndirect(row, word, at, sectorHigh);
      default:
        return BLKIF_RSP_EOPNOTSUPP;
    }
  }

  /** Checks the segments of `row`, wherever they came from, and fixes its length: DECODED or BLKIF_RSP_ERROR. */
  checkSegments(row: number): number {
    const limits = this.#limits;
    const bytes = this.#segmentBytes;
    const count = this.segmentCount[row] as number;
    let at = row * this.segmentStride * SEGMENT.bytes + SEGMENT.firstSect;
    let sectors = 0;
    for (let i = 0; i < count; i++, at += SEGMENT.bytes) {
      const first = bytes[at] as number;
      const last = bytes[at + 1] as number;
      if (first > last || last >= SECTORS_PER_PAGE) return BLKIF_RSP_ERROR;
      sectors += last - first + 1;
    }
    if (limits.readOnly && this.kind[row] !== KIND_READ) return BLKIF_RSP_ERROR;
    this.length[row] = sectors * SECTOR_SIZE;
    return this.#checkRange(row);
  }

  /** Grant reference of segment `index` of `row`. */
  gref(row: number, index: number): number {
    return this.#segmentWords[(row * this.segmentStride + index) * 2] as number;
  }

  /** First sector of segment `index` of `row` within its page. */
  firstSect(row: number, index: number): number {
    return this.#segmentBytes[
      (row * this.segmentStride + index) * SEGMENT.bytes + SEGMENT.firstSect
    ] as number;
  }

  /** Sectors of segment `index` of `row`. */
  sectCount(row: number, index: number): number {
    const at = (row * this.segmentStride + index) * SEGMENT.bytes;
    const bytes = this.#segmentBytes;
    return (bytes[at + SEGMENT.lastSect] as number) - (bytes[at + SEGMENT.firstSect] as number) + 1;
  }

  /** Where the segments of `row` lie, for the copy of its indirect pages. */
  segmentAddress(row: number): number {
    return this.segments.address + row * this.segmentStride * SEGMENT.bytes;
  }

  close(): void {
    this.segments.close();
  }

  #decodeDirect(row: number, word: number, count: number): number {
    if (count > BLKIF_MAX_SEGMENTS_PER_REQUEST) return BLKIF_RSP_ERROR;
    const from = this.#slots.words;
    const to = this.#segmentWords;
    const base = row * this.segmentStride * 2;
    for (let i = 0; i < count * 2; i++) to[base + i] = from[word + SEGMENT_WORD + i] as number;
    this.segmentCount[row] = count;
    return this.checkSegments(row);
  }

  #decodeIndirect(row: number, word: number, at: number, sectorHigh: number): number {
    const inner = this.#slots.bytes[at + REQUEST.indirectOp] as number;
    const count = read16(this.#slots.bytes, at + REQUEST.indirectNrSegments);
    this.echo[row] = inner;
    if (inner !== BLKIF_OP_READ && inner !== BLKIF_OP_WRITE) return BLKIF_RSP_ERROR;
    if (count === 0 || count > this.#limits.maxIndirectSegments) return BLKIF_RSP_ERROR;
    if (sectorHigh >= MAX_SECTOR_HIGH) return BLKIF_RSP_ERROR;
    this.kind[row] = inner === BLKIF_OP_READ ? KIND_READ : KIND_WRITE;
    this.segmentCount[row] = count;
    for (let i = 0; i < 8; i++)
      this.indirectGrefs[row * 8 + i] = this.#slots.words[word + INDIRECT_GREF_WORD + i] as number;
    return NEEDS_INDIRECT;
  }

  #decodeDiscard(row: number, word: number, at: number, sector: number): number {
    const limits = this.#limits;
    const secure = ((this.#slots.bytes[at + REQUEST.discardFlag] as number) & BLKIF_DISCARD_SECURE) !== 0;
    const words = this.#slots.words;
    const countHigh = words[word + DISCARD_WORD + 1] as number;
    const count = (words[word + DISCARD_WORD] as number) + countHigh * TWO_32;
    if (limits.readOnly) return BLKIF_RSP_ERROR;
    if (!limits.canDiscard || (secure && !limits.canSecureDiscard)) return BLKIF_RSP_EOPNOTSUPP;
    // Beyond 2^53 the sum is inexact, but then it is far beyond any disk.
    if (sector + count > limits.sectors512) return BLKIF_RSP_ERROR;
    this.kind[row] = secure ? KIND_SECURE_DISCARD : KIND_DISCARD;
    this.length[row] = count * SECTOR_SIZE;
    return count === 0 ? NOTHING_TO_DO : this.#checkRange(row);
  }

  #checkRange(row: number): number {
    const limits = this.#limits;
    const start = this.start[row] as number;
    const length = this.length[row] as number;
    if (start + length > limits.sectors512 * SECTOR_SIZE) return BLKIF_RSP_ERROR;
    const unit = limits.logicalSectorBytes;
    if (unit !== SECTOR_SIZE && (start % unit !== 0 || length % unit !== 0)) return BLKIF_RSP_ERROR;
    return DECODED;
  }
}

function read16(bytes: Uint8Array, at: number): number {
  return (bytes[at] as number) | ((bytes[at + 1] as number) << 8);
}
