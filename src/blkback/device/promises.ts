// What the server of a ring promised to the guest, which the next server must keep.
import type { TargetInfo } from "../../block/target.ts";
import { XentoolError } from "../../core/errors.ts";
import { parseDecimal } from "../../core/types.ts";
import { SECTOR_SIZE, VDISK_READONLY } from "../../protocol/blkif.ts";
import type { Xenstore } from "../../xenstore/client.ts";
import { backendDir, describeDevice, type DeviceAddress } from "../address.ts";
import type { Offer } from "./features.ts";

interface PromisedKey {
  readonly key: string;
  /** Whether the current offer keeps what the key promised. */
  readonly keeps: (promised: number) => boolean;
}

/**
 * The keys that a guest has read and relies on while servers change, and what must replace them: a disk as large as it
 * was, writable if it was, the same sector size, and no fewer segments. How many queues and pages of rings it was
 * offered does not bind the next server, which serves what the guest has.
 */
function promises(offer: Offer, { readOnly, sizeBytes }: TargetInfo): PromisedKey[] {
  return [
    { key: "sectors", keeps: (promised) => sizeBytes / SECTOR_SIZE >= promised },
    { key: "info", keeps: (promised) => !readOnly || (promised & VDISK_READONLY) !== 0 },
    { key: "sector-size", keeps: (promised) => offer.logicalSectorBytes === promised },
    { key: "feature-max-indirect-segments", keeps: (promised) => offer.maxIndirectSegments >= promised },
  ];
}

/** Throws `usage` when `offer` of `target` is less than the guest of a device in use was promised. */
export async function expectPromisesKept(
  xenstore: Xenstore,
  address: DeviceAddress,
  offer: Offer,
  target: TargetInfo,
): Promise<void> {
  const promised = promises(offer, target);
  const texts = await Promise.all(
    promised.map(({ key }) => xenstore.tryRead(`${backendDir(address)}/${key}`)),
  );
  for (const [index, { key, keeps }] of promised.entries()) {
    const value = parseDecimal(texts[index] ?? null, Number.MAX_SAFE_INTEGER);
    if (value !== undefined && !keeps(value))
      throw new XentoolError(
        "usage",
        `${describeDevice(address)} is in use with ${key} ${value}: serve the same disk, with the options that it was served with`,
      );
  }
}
