// What a device offers, in the two steps of the handshake: the limits that the guest needs before it creates its ring
// (state 2), and the disk itself once the ring is served (state 4). public/io/blkif.h defines the keys.
import { availableParallelism } from "node:os";
import type { TargetInfo } from "../../block/target.ts";
import { SECTOR_SIZE, VDISK_CDROM, VDISK_READONLY } from "../../protocol/blkif.ts";
import { RING_MAX_PAGE_ORDER } from "../../protocol/ring.ts";
import type { GrantMode } from "../data-plane/data/path.ts";
import type { OfferedDisk } from "../data-plane/requests.ts";

export interface Offer {
  readonly deviceType: "disk" | "cdrom";
  readonly logicalSectorBytes: 512 | 4096;
  /** Queues, each with a ring of its own; at most MAX_QUEUES. */
  readonly maxQueues: number;
  /** Rings of up to 2^order pages. */
  readonly maxRingPageOrder: number;
  /** At most MAX_INDIRECT_SEGMENTS; 0: indirect requests are not offered. */
  readonly maxIndirectSegments: number;
}

export const DEFAULT_OFFER: Offer = {
  deviceType: "disk",
  maxQueues: Math.min(availableParallelism(), 4),
  logicalSectorBytes: 512,
  maxRingPageOrder: RING_MAX_PAGE_ORDER,
  maxIndirectSegments: 256,
};

export function offeredDisk(offer: Offer, target: TargetInfo): OfferedDisk {
  return {
    sectors512: target.sizeBytes / SECTOR_SIZE,
    readOnly: target.readOnly,
    logicalSectorBytes: offer.logicalSectorBytes,
    canDiscard: target.canDiscard && !target.readOnly,
    canSecureDiscard: target.canSecureDiscard && !target.readOnly,
    maxIndirectSegments: offer.maxIndirectSegments,
  };
}

/** What a frontend may choose; `readRingParameters` holds it to that. */
export const MAX_QUEUES_KEY = "multi-queue-max-queues";
export const MAX_RING_PAGE_ORDER_KEY = "max-ring-page-order";
/** Written by both ends: the backend may keep grants mapped. */
export const PERSISTENT_KEY = "feature-persistent";

type Keys = Readonly<Record<string, number>>;

/**
 * Written before state 2, and not again: a guest whose ring is served goes by what it read, and so does the next
 * server.
 */
export function ringKeys(offer: Offer, grantMode: GrantMode): Keys {
  return {
    [PERSISTENT_KEY]: grantMode === "persistent" ? 1 : 0,
    [MAX_QUEUES_KEY]: offer.maxQueues,
    [MAX_RING_PAGE_ORDER_KEY]: offer.maxRingPageOrder,
    ...(offer.maxIndirectSegments > 0 && { "feature-max-indirect-segments": offer.maxIndirectSegments }),
  };
}

/**
 * Written before state 2, because old frontends (Windows' XENVBD) read the features as soon as the device is offered,
 * and again with state 4. `sectors` counts units of 512 bytes, whatever the sector size is.
 */
export function diskKeys(offer: Offer, target: TargetInfo, disk: OfferedDisk): Keys {
  const granularity = Math.max(target.discardGranularityBytes, offer.logicalSectorBytes);
  return {
    sectors: disk.sectors512,
    info: (offer.deviceType === "cdrom" ? VDISK_CDROM : 0) | (disk.readOnly ? VDISK_READONLY : 0),
    "sector-size": offer.logicalSectorBytes,
    "physical-sector-size": Math.max(target.physicalSectorBytes, offer.logicalSectorBytes),
    "feature-flush-cache": 1,
    "feature-barrier": 1,
    "feature-discard": disk.canDiscard ? 1 : 0,
    ...(disk.canDiscard && {
      // blkfront uses the granularity only when the alignment is there, too.
      "discard-granularity": granularity,
      "discard-alignment": 0,
      "discard-secure": disk.canSecureDiscard ? 1 : 0,
    }),
  };
}

/** All keys that a device writes when it is offered, with state 2. */
export function offeredKeys(offer: Offer, grantMode: GrantMode, target: TargetInfo, disk: OfferedDisk): Keys {
  return { ...ringKeys(offer, grantMode), ...diskKeys(offer, target, disk) };
}
