// Turns the private copies of a batch's slots into checked requests: decodes them, fetches the segments of indirect
// ones, and checks everything against the disk before any other code sees it. Every rule that a hostile request could
// break is in this file, and every byte that a guest can change in the meantime is copied exactly once.
import type { Domid } from "../../core/types.ts";
import type { Mapping } from "../../native/memory.ts";
import {
  BLKIF_DISCARD_SECURE,
  BLKIF_MAX_INDIRECT_PAGES_PER_REQUEST,
  BLKIF_MAX_SEGMENTS_PER_REQUEST,
  BLKIF_OP_DISCARD,
  BLKIF_OP_FLUSH_DISKCACHE,
  BLKIF_OP_INDIRECT,
  BLKIF_OP_READ,
  BLKIF_OP_WRITE,
  BLKIF_OP_WRITE_BARRIER,
  REQUEST,
  SECTORS_PER_PAGE,
  SECTOR_SIZE,
  SEGMENT,
  SEGMENTS_PER_INDIRECT_PAGE,
} from "../../protocol/blkif.ts";
import type { SegmentSource } from "./data/path.ts";
import {
  BAD_INDIRECT_PAGE,
  BAD_SEGMENT,
  BEYOND_THE_END,
  MISALIGNED,
  NO_DISCARD,
  NO_SECURE_DISCARD,
  NO_SEGMENTS,
  BAD_INDIRECT_OPERATION,
  NOT_REFUSED,
  READ_ONLY,
  TOO_MANY_SEGMENTS,
  UNKNOWN_OPERATION,
} from "./refusals.ts";
import {
  KIND_BARRIER,
  KIND_DISCARD,
  KIND_FLUSH,
  KIND_READ,
  KIND_SECURE_DISCARD,
  KIND_WRITE,
  type OfferedDisk,
  type RequestTable,
} from "./requests.ts";

/**
 * The verdict on a request that may proceed. Any other verdict is the reason why it is answered at once: one of
 * refusals.ts, or NOT_REFUSED because there is nothing to do.
 */
export const ADMITTED = -1;
/** Used while parsing: the segments are on indirect pages and must be fetched first. */
const NEEDS_INDIRECT = -2;

const WORDS = REQUEST.bytes / 4;
const ID_WORD = REQUEST.id / 4;
const SECTOR_WORD = REQUEST.sectorNumber / 4;
const SEGMENT_WORD = REQUEST.segments / 4;
const DISCARD_WORD = REQUEST.discardNrSectors / 4;
const INDIRECT_GREF_WORD = REQUEST.indirectGrefs / 4;
const TWO_32 = 2 ** 32;
/** From this high word on, a sector number is beyond what a double counts exactly: 2^53. */
const MAX_SECTOR_HIGH = 2 ** 21;

export class RequestParser {
  /** Indexed by slot of the last batch: the row of its request, and the verdict on it. */
  readonly rows: Uint16Array;
  readonly verdicts: Int8Array;
  /** Number of indirect requests in the last batch. */
  indirect = 0;
  /** Number of requests in the last batch that are refused. */
  bad = 0;
  readonly #requests: RequestTable;
  readonly #slots: Mapping;
  readonly #disk: OfferedDisk;
  readonly #source: SegmentSource;
  readonly #domid: Domid;
  readonly #lane: number;
  readonly #segmentWords: Uint32Array;
  readonly #segmentBytes: Uint8Array;

  /**
   * `slots` are the private copies, up to `size` of them; `source` fetches the indirect pages of `domid`. Rows are
   * those of `lane`.
   */
  constructor(
    domid: Domid,
    size: number,
    requests: RequestTable,
    slots: Mapping,
    disk: OfferedDisk,
    source: SegmentSource,
    lane = 0,
  ) {
    this.rows = new Uint16Array(size);
    this.verdicts = new Int8Array(size);
    this.#requests = requests;
    this.#slots = slots;
    this.#disk = disk;
    this.#source = source;
    this.#domid = domid;
    this.#lane = lane;
    this.#segmentWords = requests.segments.words;
    this.#segmentBytes = requests.segments.bytes;
  }

  /** Takes a row for each of the first `count` slots and gives a verdict on each. */
  admit(count: number, nowMs: number): void {
    const { rows, verdicts } = this;
    this.indirect = 0;
    this.bad = 0;
    for (let slot = 0; slot < count; slot++) {
      const row = this.#requests.take(nowMs, this.#lane);
      rows[slot] = row;
      verdicts[slot] = this.#decode(slot, row);
      if (verdicts[slot] !== NEEDS_INDIRECT) continue;
      this.indirect++;
      this.#fetchIndirect(row);
    }
    if (this.indirect > 0) this.#source.run();
    for (let slot = 0; slot < count; slot++) {
      const row = rows[slot];
      if (verdicts[slot] === NEEDS_INDIRECT)
        verdicts[slot] = this.#requests.failed[row] === 0 ? this.#checkSegments(row) : BAD_INDIRECT_PAGE;
      if (verdicts[slot] > NOT_REFUSED) this.bad++;
    }
  }

  /** Queues the copies of the indirect pages of `row`, straight to where its segments are stored. */
  #fetchIndirect(row: number): void {
    const requests = this.#requests;
    let left = requests.segmentCount[row];
    let address = requests.segmentAddress(row);
    for (let page = 0; left > 0; page++) {
      const bytes = Math.min(left, SEGMENTS_PER_INDIRECT_PAGE) * SEGMENT.bytes;
      const ref = requests.indirectGrefs[row * BLKIF_MAX_INDIRECT_PAGES_PER_REQUEST + page];
      this.#source.fromGrant(row, this.#domid, ref, 0, bytes, address);
      address += bytes;
      left -= SEGMENTS_PER_INDIRECT_PAGE;
    }
  }

  #decode(slot: number, row: number): number {
    const requests = this.#requests;
    const words = this.#slots.words;
    const bytes = this.#slots.bytes;
    const word = slot * WORDS;
    const at = slot * REQUEST.bytes;
    const operation = bytes[at];
    requests.operation[row] = operation;
    requests.idLow[row] = words[word + ID_WORD];
    requests.idHigh[row] = words[word + ID_WORD + 1];
    const sectorHigh = words[word + SECTOR_WORD + 1];
    const sector = words[word + SECTOR_WORD] + sectorHigh * TWO_32;
    requests.start[row] = sector * SECTOR_SIZE;
    const count = bytes[at + REQUEST.nrSegments];
    switch (operation) {
      case BLKIF_OP_READ:
      case BLKIF_OP_WRITE:
        requests.kind[row] = operation === BLKIF_OP_READ ? KIND_READ : KIND_WRITE;
        return count === 0 ? NO_SEGMENTS : this.#decodeDirect(row, word, count, sectorHigh);
      case BLKIF_OP_FLUSH_DISKCACHE:
      case BLKIF_OP_WRITE_BARRIER:
        // A flush that carries data is carried out as a barrier: flush, write, flush.
        requests.kind[row] =
          count === 0 && operation === BLKIF_OP_FLUSH_DISKCACHE ? KIND_FLUSH : KIND_BARRIER;
        return count === 0 ? ADMITTED : this.#decodeDirect(row, word, count, sectorHigh);
      case BLKIF_OP_DISCARD:
        return this.#decodeDiscard(row, word, at, sector);
      case BLKIF_OP_INDIRECT:
        return this.#decodeIndirect(row, word, at, sectorHigh);
      default:
        return UNKNOWN_OPERATION;
    }
  }

  #decodeDirect(row: number, word: number, count: number, sectorHigh: number): number {
    const requests = this.#requests;
    if (count > BLKIF_MAX_SEGMENTS_PER_REQUEST) return TOO_MANY_SEGMENTS;
    if (sectorHigh >= MAX_SECTOR_HIGH) return BEYOND_THE_END;
    const from = this.#slots.words;
    const to = this.#segmentWords;
    const base = row * requests.segmentStride * 2;
    for (let i = 0; i < count * 2; i++) to[base + i] = from[word + SEGMENT_WORD + i];
    requests.segmentCount[row] = count;
    return this.#checkSegments(row);
  }

  #decodeIndirect(row: number, word: number, at: number, sectorHigh: number): number {
    const requests = this.#requests;
    const inner = this.#slots.bytes[at + REQUEST.indirectOp];
    const count = read16(this.#slots.bytes, at + REQUEST.indirectNrSegments);
    requests.operation[row] = inner;
    if (inner !== BLKIF_OP_READ && inner !== BLKIF_OP_WRITE) return BAD_INDIRECT_OPERATION;
    if (count === 0) return NO_SEGMENTS;
    if (count > this.#disk.maxIndirectSegments) return TOO_MANY_SEGMENTS;
    if (sectorHigh >= MAX_SECTOR_HIGH) return BEYOND_THE_END;
    requests.kind[row] = inner === BLKIF_OP_READ ? KIND_READ : KIND_WRITE;
    requests.segmentCount[row] = count;
    for (let i = 0; i < BLKIF_MAX_INDIRECT_PAGES_PER_REQUEST; i++)
      requests.indirectGrefs[row * BLKIF_MAX_INDIRECT_PAGES_PER_REQUEST + i] =
        this.#slots.words[word + INDIRECT_GREF_WORD + i];
    return NEEDS_INDIRECT;
  }

  #decodeDiscard(row: number, word: number, at: number, sector: number): number {
    const requests = this.#requests;
    const disk = this.#disk;
    const secure = (this.#slots.bytes[at + REQUEST.discardFlag] & BLKIF_DISCARD_SECURE) !== 0;
    const words = this.#slots.words;
    const countHigh = words[word + DISCARD_WORD + 1];
    const count = words[word + DISCARD_WORD] + countHigh * TWO_32;
    if (disk.readOnly) return READ_ONLY;
    if (!disk.canDiscard) return NO_DISCARD;
    if (secure && !disk.canSecureDiscard) return NO_SECURE_DISCARD;
    // Beyond 2^53 the sum is inexact, but then it is far beyond any disk.
    if (sector + count > disk.sectors512) return BEYOND_THE_END;
    requests.kind[row] = secure ? KIND_SECURE_DISCARD : KIND_DISCARD;
    requests.length[row] = count * SECTOR_SIZE;
    return count === 0 ? NOT_REFUSED : this.#checkRange(row);
  }

  /** Checks the segments of `row`, wherever they came from, and sets its length. */
  #checkSegments(row: number): number {
    const requests = this.#requests;
    const disk = this.#disk;
    const bytes = this.#segmentBytes;
    const count = requests.segmentCount[row];
    let at = row * requests.segmentStride * SEGMENT.bytes + SEGMENT.firstSect;
    let sectors = 0;
    for (let i = 0; i < count; i++, at += SEGMENT.bytes) {
      const first = bytes[at];
      const last = bytes[at + 1];
      if (first > last || last >= SECTORS_PER_PAGE) return BAD_SEGMENT;
      sectors += last - first + 1;
    }
    if (disk.readOnly && requests.kind[row] !== KIND_READ) return READ_ONLY;
    requests.length[row] = sectors * SECTOR_SIZE;
    return this.#checkRange(row);
  }

  #checkRange(row: number): number {
    const requests = this.#requests;
    const disk = this.#disk;
    const start = requests.start[row];
    const length = requests.length[row];
    if (start + length > disk.sectors512 * SECTOR_SIZE) return BEYOND_THE_END;
    const unit = disk.logicalSectorBytes;
    if (unit !== SECTOR_SIZE && (start % unit !== 0 || length % unit !== 0)) return MISALIGNED;
    return ADMITTED;
  }
}

function read16(bytes: Uint8Array, at: number): number {
  return bytes[at] | (bytes[at + 1] << 8);
}
