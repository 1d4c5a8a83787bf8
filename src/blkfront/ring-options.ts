// How to make the rings: what was asked for, within what the backend offers.
import { ABI_X86_32, ABI_X86_64, type BlkifAbi } from "../protocol/blkif.ts";
import { RING_MAX_PAGE_ORDER } from "../protocol/ring.ts";
import { DEFAULT_POOL_PAGES } from "./granted-pool.ts";
import type { BackendLimits } from "./handshake.ts";

/** The most queues that can be asked for. */
export const MAX_QUEUES = 16;

/** Segments of our largest requests: what backends offer, and small enough to keep many in flight. */
const DEFAULT_INDIRECT_SEGMENTS = 256;

/** What was asked for; the backend's limits take precedence. */
export interface RingOptions {
  readonly abi?: BlkifAbi["name"];
  readonly queues?: number;
  readonly ringPageOrder?: number;
  readonly maxIndirectSegments?: number;
  readonly poolPages?: number;
}

export interface RingChoice {
  readonly abi: BlkifAbi;
  readonly queues: number;
  readonly ringPageOrder: number;
  readonly maxIndirectSegments: number;
  readonly poolPages: number;
}

/** The rings that the options and the backend's limits allow. */
export function chooseRings(options: RingOptions, limits: BackendLimits): RingChoice {
  const order = Math.min(options.ringPageOrder ?? RING_MAX_PAGE_ORDER, limits.maxRingPageOrder);
  const segments = options.maxIndirectSegments ?? DEFAULT_INDIRECT_SEGMENTS;
  return {
    abi: options.abi === "x86_32" ? ABI_X86_32 : ABI_X86_64,
    queues: Math.min(options.queues ?? 1, limits.maxQueues),
    ringPageOrder: order,
    maxIndirectSegments: Math.min(segments, limits.maxIndirectSegments),
    poolPages: options.poolPages ?? DEFAULT_POOL_PAGES,
  };
}
