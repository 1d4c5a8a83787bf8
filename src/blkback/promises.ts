// What a guest was promised by the server of its ring, and must be kept by the next one.
import type { TargetInfo } from "../block/target.ts";
import { XentoolError } from "../core/errors.ts";
import { parseDecimal } from "../core/types.ts";
import { VDISK_READONLY } from "../protocol/blkif.ts";
import type { Xenstore } from "../xenstore/client.ts";
import { backendDir, describeDevice, type DeviceAddress } from "./address.ts";
import type { Offer } from "./features.ts";

interface PromisedKey {
  readonly key: string;
  /** Whether what is offered now keeps what the key has promised. */
  readonly keeps: (promised: number) => boolean;
}

/**
 * The keys that a guest has read and goes by while servers change, and what must be in their place: a disk that can be
 * written if it could be, the same sectors, and no less of the others.
 */
function promises(offer: Offer, { readOnly }: TargetInfo): PromisedKey[] {
  return [
    { key: "info", keeps: (promised) => !readOnly || (promised & VDISK_READONLY) !== 0 },
    { key: "sector-size", keeps: (promised) => offer.logicalSectorBytes === promised },
    { key: "max-ring-page-order", keeps: (promised) => offer.maxRingPageOrder >= promised },
    { key: "feature-max-indirect-segments", keeps: (promised) => offer.maxIndirectSegments >= promised },
  ];
}

/** Fails with `usage` when `offer` of `target` is less than the guest of a device in use was promised. */
export async function expectPromisesKept(
  xenstore: Xenstore,
  address: DeviceAddress,
  offer: Offer,
  target: TargetInfo,
): Promise<void> {
  for (const { key, keeps } of promises(offer, target)) {
    const text = await xenstore.tryRead(`${backendDir(address)}/${key}`);
    const promised = parseDecimal(text, Number.MAX_SAFE_INTEGER);
    if (promised !== undefined && !keeps(promised))
      throw new XentoolError(
        "usage",
        `${describeDevice(address)} is in use with ${key} ${promised}: serve it with the options that it was served with`,
      );
  }
}
