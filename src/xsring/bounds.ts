// The sizes and times of xsring, with their reasons. test/unit/bounds.test.ts asserts how they depend on each other.
import { XS_HEADER_BYTES, XS_PAYLOAD_MAX } from "../protocol/xs-wire.ts";

/** Characters shown of a violation's reason. */
export const REASON_LIMIT = 200;

/** A reset of both streams is complete after this time. */
export const HALF_RESET_US_MAX = 100_000;
/** Cells in which a ring is drawn, and waiting requests listed beside it: together they fit a terminal of 24 lines. */
export const CELLS = 64;
export const WAITING_MAX = 12;

/** Bytes without a packet's beginning after which a stream is given up: two of the largest packets. */
export const UNKNOWN_BYTES_MAX = 2 * (XS_HEADER_BYTES + XS_PAYLOAD_MAX);

/** The fields end here; a file may lack the rest of the page. */
export const RING_BYTES_MIN = 2080;

/** More than a hexadecimal dump of a page takes, offsets and characters included. */
export const FILE_BYTES_MAX = 64 * 1024;

/** A request that has waited this long is shown as unfinished. */
export const UNFINISHED_US = 100_000;

/** A ring holds 64 requests, and a server that does not answer can take more than that. */
export const PENDING_MAX = 4096;
/** Between two looks at a ring that is to settle, and at one that is being closed. */
export const SETTLE_LOOK_MS = 5;
export const LOOK_MS = 2;

/** A server that has not looked at the ring within this time is sent another event. */
export const KICK_MS = 1000;

/** Characters shown of each string by default. */
export const STRING_LIMIT = 64;

/** Limits the strings shown per packet: a directory may have a thousand names. */
export const STRINGS_MAX = 16;

/** After this many looks in a row without news, at some tens of microseconds each, a ring counts as quiet. */
export const BUSY_LOOKS = 200;

/** A side counts as waiting once the ring has stood still for this long: on a busy ring somebody always waits. */
export const STILL_MS = 200;

/** A request's size while none has been seen: a header, and a path. */
export const TYPICAL_BYTES = XS_HEADER_BYTES + 32;

/** At most so much is believed to have crossed a ring that began anew since the look before. */
export const FRESH_BYTES_MAX = 1 << 20;
