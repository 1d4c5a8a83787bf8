// Why a request is answered with anything but OKAY: a small integer for each reason, and one table that says what the
// guest gets to see (the status of the response) and what people get to see (a name in JSON, and words). parse.ts finds
// most of the reasons; data-plane.ts adds those that only show while a request is carried out.
import { BLKIF_RSP_EOPNOTSUPP, BLKIF_RSP_ERROR, BLKIF_RSP_OKAY } from "../../protocol/blkif.ts";

export interface Refusal {
  /** In JSON. */
  readonly name: string;
  readonly status: number;
  /** Follows a count, as in "3 beyond the end of the disk". */
  readonly words: string;
}

const table: Refusal[] = [];

/**
 * Adds a reason to the table and returns its code, which is also the place of its counter in the statistics page. So a
 * new reason comes last.
 */
function reason(name: string, status: number, words: string): number {
  return table.push({ name, status, words });
}

/** Nothing is wrong, so that the response is OKAY. */
export const NOT_REFUSED = 0;
export const UNKNOWN_OPERATION = reason("unknownOperation", BLKIF_RSP_EOPNOTSUPP, "of an unknown operation");
export const BAD_INDIRECT_OPERATION = reason(
  "badIndirectOperation",
  BLKIF_RSP_ERROR,
  "indirect but neither read nor write",
);
export const NO_SEGMENTS = reason("noSegments", BLKIF_RSP_ERROR, "without segments");
export const TOO_MANY_SEGMENTS = reason("tooManySegments", BLKIF_RSP_ERROR, "with too many segments");
export const BAD_SEGMENT = reason("badSegment", BLKIF_RSP_ERROR, "with a segment that is not within a page");
export const BAD_INDIRECT_PAGE = reason(
  "badIndirectPage",
  BLKIF_RSP_ERROR,
  "with an indirect page that was not granted",
);
export const BAD_DATA_GRANT = reason(
  "badDataGrant",
  BLKIF_RSP_ERROR,
  "with a data page that was not granted",
);
export const BEYOND_THE_END = reason("beyondTheEnd", BLKIF_RSP_ERROR, "beyond the end of the disk");
export const MISALIGNED = reason("misaligned", BLKIF_RSP_ERROR, "of a part of a logical sector");
export const READ_ONLY = reason("readOnly", BLKIF_RSP_ERROR, "to change a read-only disk");
export const NO_DISCARD = reason("noDiscard", BLKIF_RSP_EOPNOTSUPP, "to discard, which is not offered");
export const NO_SECURE_DISCARD = reason(
  "noSecureDiscard",
  BLKIF_RSP_EOPNOTSUPP,
  "to discard securely, which is not offered",
);
/** A flush failed earlier on this ring. io-failures.ts explains why what follows must fail as well. */
export const AFTER_FAILED_FLUSH = reason("afterFailedFlush", BLKIF_RSP_ERROR, "after a flush that failed");
export const IMAGE_FAILED = reason("imageFailed", BLKIF_RSP_ERROR, "that the image failed");
export const IMAGE_CANNOT = reason("imageCannot", BLKIF_RSP_EOPNOTSUPP, "that the image does not support");

/** All reasons. The first has code 1. */
export const REFUSALS: readonly Refusal[] = table;

/** Indexed by the code of a reason, or NOT_REFUSED. */
export const STATUS_OF = Int8Array.of(BLKIF_RSP_OKAY, ...table.map(({ status }) => status));
