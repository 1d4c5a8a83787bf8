// By how many threads a disk is served, each of which is a plane with some of its queues.
import type { Image } from "../../block/image.ts";
import { XentoolError } from "../../core/errors.ts";
import type { LentDevices, Platform, PlatformDescriptor } from "../../platform/platform.ts";
import type { RingAddress } from "./ring-parameters.ts";

/** Xen's devices for a plane of device `devid`; what is for that one only is closed with `until`. */
export type LendDevices = (devid: number, until: DisposableStack) => Promise<LentDevices>;

/** Throws `usage` for filters that several threads cannot have. */
export function checkThreads(threads: number, filters: readonly string[]): void {
  if (threads > 1 && filters.length > 0)
    throw new XentoolError("usage", "--filter sees all requests of a disk, so it needs --threads 1");
}

export interface ThreadOptions {
  /** How many may serve the queues of a disk; one, if nothing is said. */
  readonly threads?: number;
  /** See `WatchHelp`. */
  readonly lend?: LendDevices | undefined;
}

/**
 * How each plane of device `devid` opens the platform, a plane for each thread. There are no more than rings. There is
 * one if a server has the image, because its log of writes has one order; and if the guest may mean one of several
 * `sets`, because only the rings themselves show which, and all planes must agree. What is lent is closed with `until`.
 */
export async function planePlatforms(
  { threads = 1, lend }: ThreadOptions,
  devid: number,
  { descriptor }: Platform,
  image: Image,
  sets: readonly (readonly RingAddress[])[],
  until: DisposableStack,
): Promise<PlatformDescriptor[]> {
  const count = image.kind === "nbd" || sets.length > 1 ? 1 : Math.min(threads, sets[0].length);
  const platforms: PlatformDescriptor[] = [];
  // One after the other: when one fails, `until` is over, and no other may come later.
  while (platforms.length < count) {
    const lent = await lend?.(devid, until);
    platforms.push({ ...descriptor, ...(lent && { lent }) });
  }
  return platforms;
}
