// The sizes that bound what one disk takes of the host, whatever its guest does. test/unit/bounds.test.ts asserts how
// they depend on each other.
import { PAGE_SIZE } from "../core/types.ts";
import { BLKIF_MAX_SEGMENTS_PER_REQUEST } from "../protocol/blkif.ts";

/** The most queues of one disk: blkfront asks for no more, and their requests share one table. */
export const MAX_QUEUES = 16;

/** Connections of one disk to an NBD server. */
export const MAX_CONNECTIONS = 16;

/** Slots of the largest ring. */
export const MAX_RING_SLOTS = 512;

/** Adjacent requests are merged up to this size; larger I/O gains nothing. */
export const MAX_MERGED_BYTES = 1 << 20;

/** Smallest memory for data in flight. When it is full, requests wait. */
const MIN_POOL_BYTES = 16 << 20;

/** Grant copies in one call. What is more takes several calls. */
export const COPY_BATCH = 4096;

/**
 * Grants of a ring that stay mapped while no request names them, as in Linux: as many as its frontend has, which are 32
 * requests with 32 segments and a page of these each.
 */
export const MAX_PERSISTENT_GRANTS = 1056;

/** How long the holder of a new disk's image may take to release it. */
export const HOLDER_PATIENCE_MS = 3000;

/**
 * Descriptors that a disk's thread waits for: a few of its own, and its connections to an NBD server. These count
 * twice, because the place of one that is closed is free only after the next wait.
 */
export const MAX_WATCHES = 8 + 2 * MAX_CONNECTIONS;

/** How long a server that is away may keep a disk whose guest has let go from closing: toolstacks wait for 10 s. */
export const CLOSING_PATIENCE_MS = 3000;

/**
 * How long a server may be silent while a disk closes whose guest is gone. Together with the time above it is less than
 * toolstacks wait; a flush that takes that long may still be under way.
 */
export const SILENT_PATIENCE_MS = 5000;

/** How long a guest's process may take to leave its disks. systemd (TimeoutStopSec) waits longer for all of us. */
export const LEAVING_PATIENCE_MS = 10_000;

/** How long a guest's process may take to close disks that are gone from xenstore. Slow storage may have to write. */
export const GONE_PATIENCE_MS = 60_000;

/** Linux's IOV_MAX: a request with more pieces takes several transfers. */
export const MAX_VECTORS = 1024;

/** Bytes of memory for data. There is room for two of the largest requests, so that one does not wait for memory. */
export function poolBytes(maxIndirectSegments: number): number {
  const largest = Math.max(BLKIF_MAX_SEGMENTS_PER_REQUEST, maxIndirectSegments) * PAGE_SIZE;
  return Math.max(MIN_POOL_BYTES, 2 * largest);
}

/**
 * How many operations may be in flight at once for this many requests: one each, a final flush, and a look at
 * an image's tables.
 */
export function reactorDepth(rows: number): number {
  return rows + 2;
}

/**
 * Nothing that a server leaves to the next one is larger, with the room for a file's last, large page: statistics, a
 * journal, a log of writes.
 */
export const STATE_BYTES_MAX = { stats: 4 << 20, journal: 4 << 20, writes: 64 << 20 };
