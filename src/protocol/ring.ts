// The shared ring of public/io/ring.h: the positions of its indices and its number of slots. Publishing and sleeping
// need fences, so that code is in csrc/ring.c.
import { PAGE_SIZE } from "../core/types.ts";

/** Positions of the indices, in 32-bit words from the ring's start. */
export const RING_REQ_PROD = 0;
export const RING_REQ_EVENT = 1;
export const RING_RSP_PROD = 2;
export const RING_RSP_EVENT = 3;
/**
 * A word of the header's padding, at byte 20. The backend uses it to tell rings apart: no frontend reads it, and each
 * clears it when it makes a ring. SHARED_RING_INIT (Linux, the BSDs, Windows, mini-os, OVMF, U-Boot, GRUB) clears from
 * there to the slots in every version, MirageOS's Ring.Rpc clears bytes 16 to 23, and OpenBSD's xbf uses a zeroed page.
 */
export const RING_MARK = 5;
export const RING_HEADER_BYTES = 64;

/** A ring has 2^order pages, with order 0 to 4. */
export const RING_MAX_PAGE_ORDER = 4;

/** Slots of a ring of `pageCount` pages with slots `stride` bytes apart: the largest power of two that fits. */
export function ringSlots(pageCount: number, stride: number): number {
  const fitting = Math.floor((pageCount * PAGE_SIZE - RING_HEADER_BYTES) / stride);
  return 2 ** Math.floor(Math.log2(fitting));
}
