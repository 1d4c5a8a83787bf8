// How to make the ring: what was asked for, within what the backend offers.
import { ABI_X86_32, ABI_X86_64, type BlkifAbi } from "../protocol/blkif.ts";
import { RING_MAX_PAGE_ORDER } from "../protocol/ring.ts";
import { DEFAULT_POOL_PAGES } from "./granted-pool.ts";
import type { BackendLimits } from "./handshake.ts";

/** Segments of our largest requests: what backends offer, and small enough to keep many in flight. */
const DEFAULT_INDIRECT_SEGMENTS = 256;

/** What was asked for; the backend's limits take precedence. */
export interface RingOptions {
  readonly abi?: BlkifAbi["name"];
  readonly ringPageOrder?: number;
  readonly maxIndirectSegments?: number;
  readonly poolPages?: number;
}

export interface RingChoice {
  readonly abi: BlkifAbi;
  readonly ringPageOrder: number;
  readonly maxIndirectSegments: number;
  readonly poolPages: number;
}

/** The ring that the options and the backend's limits allow. */
export function chooseRing(options: RingOptions, limits: BackendLimits): RingChoice {
  const order = Math.min(options.ringPageOrder ?? RING_MAX_PAGE_ORDER, limits.maxRingPageOrder);
  const segments = options.maxIndirectSegments ?? DEFAULT_INDIRECT_SEGMENTS;
  return {
    abi: options.abi === "x86_32" ? ABI_X86_32 : ABI_X86_64,
    ringPageOrder: order,
    maxIndirectSegments: Math.min(segments, limits.maxIndirectSegments),
    poolPages: options.poolPages ?? DEFAULT_POOL_PAGES,
  };
}
