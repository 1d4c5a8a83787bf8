// How to make the rings: what was asked for, within what the backend offers.
import { ABI_X86_32, ABI_X86_64, type BlkifAbi } from "../protocol/blkif.ts";
import { RING_MAX_PAGE_ORDER } from "../protocol/ring.ts";
import { DEFAULT_INDIRECT_SEGMENTS, DEFAULT_POOL_PAGES } from "./bounds.ts";
import type { BackendOffer } from "./handshake.ts";

/** What was asked for; the backend's offer takes precedence. */
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

/** The rings that the options and the backend's offer allow. */
export function chooseRings(options: RingOptions, offer: BackendOffer): RingChoice {
  const order = Math.min(options.ringPageOrder ?? RING_MAX_PAGE_ORDER, offer.maxRingPageOrder);
  const segments = options.maxIndirectSegments ?? DEFAULT_INDIRECT_SEGMENTS;
  return {
    abi: options.abi === "x86_32" ? ABI_X86_32 : ABI_X86_64,
    queues: Math.min(options.queues ?? 1, offer.maxQueues),
    ringPageOrder: order,
    maxIndirectSegments: Math.min(segments, offer.maxIndirectSegments),
    poolPages: options.poolPages ?? DEFAULT_POOL_PAGES,
  };
}
