// What a killed server of a device leaves on this host for a successor: its statistics, journals, log of writes and
// lock, and the sockets behind which its image was. A device that is taken away has no successor, and nor has that of a
// guest that is gone. Their files have to be removed, because a log of writes is 32 MiB of memory.
import { existsSync, rmSync } from "node:fs";
import { removeFreeClaims } from "../../block/image/claim-export.ts";
import { describeError } from "../../core/errors.ts";
import { moduleLogger } from "../../core/log.ts";
import { Looking } from "../../core/looking.ts";
import type { Domid } from "../../core/types.ts";
import { takeLock } from "../../native/lock-file.ts";
import type { Platform } from "../../platform/platform.ts";
import type { Unwatch, Xenstore } from "../../xenstore/client.ts";
import { backendDir, type DeviceAddress } from "../address.ts";
import { lockPath } from "./device-lock.ts";
import { programSocket } from "../image/disk-image.ts";
import { secureLineDir } from "../image/secure-line.ts";
import {
  disksIn,
  disksOfGuest,
  guestsIn,
  hasFiles,
  removeFiles,
  removeGuest,
  tidyGuestDir,
  type Disk,
} from "./state-directory.ts";
import { statsDir } from "../stats/stats.ts";
import { destroyDevice, findKinds, SERVE_KEY } from "../toolstack.ts";

/**
 * Removes these files of a device that no guest uses any more. They stay while a server lives, which removes them
 * itself, and while another kind of backend has the same disk of the guest, because files are the same for all kinds.
 */
export async function removeRemains(
  platform: Platform,
  xenstore: Xenstore,
  address: DeviceAddress,
): Promise<void> {
  const dir = statsDir(platform.descriptor);
  const others = [lockPath(dir, address), ...waysToImage(dir, address)];
  if (!hasFiles(dir, address) && !others.some((path) => existsSync(path))) return;
  const kinds = await findKinds(xenstore, address);
  if (kinds.some((kind) => kind !== address.kind)) return;
  removeUnlocked(dir, address);
}

/** Removes the files of all guests that are gone, now and whenever a guest goes, until the result is called. */
export async function sweepRemains(platform: Platform, xenstore: Xenstore): Promise<Unwatch> {
  const looking = new Looking(() => removeOfGoneGuests(platform, xenstore));
  await looking.look();
  return xenstore.watch("@releaseDomain", () => looking.look());
}

/** Never fails, nor warns: nothing depends on it, and users of the directory report what is wrong with it. */
export async function removeOfGoneGuests(platform: Platform, xenstore: Xenstore): Promise<void> {
  const dir = statsDir(platform.descriptor);
  try {
    removeFreeClaims(dir);
    const disks = disksIn(dir);
    for (const guest of new Set([...disks.map(({ frontend }) => frontend), ...guestsIn(dir)])) {
      if (!(await isGuestGone(xenstore, guest))) continue;
      for (const disk of disks.filter(({ frontend }) => frontend === guest)) {
        await removeServed(xenstore, { ...disk, backend: platform.domid });
        removeUnlocked(dir, disk);
      }
      await removeGuest(dir, guest);
    }
  } catch (error) {
    moduleLogger("blkback").debug(`what guests left: ${describeError(error)}`);
  }
}

/**
 * Removes from the directory of a guest's process, which has ended, all but the files of disks that the guest has: the
 * guest may have taken the process over. Never fails.
 */
export async function tidyAfterProcess(
  dir: string,
  xenstore: Xenstore,
  guest: Pick<DeviceAddress, "backend" | "frontend">,
): Promise<void> {
  try {
    await tidyGuestDir(dir, guest.frontend);
    for (let known = new Set<number>(), isSome = true; isSome;) {
      const unknown = disksOfGuest(dir, guest.frontend).filter(({ devid }) => !known.has(devid));
      isSome = unknown.length > 0;
      for (const { devid } of unknown) {
        known.add(devid);
        if ((await findKinds(xenstore, { ...guest, devid })).length === 0)
          removeUnlocked(dir, { ...guest, devid });
      }
    }
  } catch (error) {
    moduleLogger("blkback").debug(`what a process left: ${describeError(error)}`);
  }
}

/** A domain's number is used again only after 32,000 others. A driver domain may not look, and so removes nothing. */
async function isGuestGone(xenstore: Xenstore, frontend: Domid): Promise<boolean> {
  return !(await xenstore.exists(`/local/domain/${frontend}`).catch(() => true));
}

/** Of devices that a `serve` has made nobody else removes the directory. */
async function removeServed(xenstore: Xenstore, disk: Omit<DeviceAddress, "kind">): Promise<void> {
  for (const kind of await findKinds(xenstore, disk)) {
    const address = { ...disk, kind };
    if (await xenstore.exists(`${backendDir(address)}/${SERVE_KEY}`)) await destroyDevice(xenstore, address);
  }
}

/** Where the sockets are behind which its image was. */
function waysToImage(dir: string, disk: Disk): string[] {
  return [programSocket(dir, disk), secureLineDir(dir, disk)];
}

/** Does nothing while a server lives. */
function removeUnlocked(dir: string, disk: Disk): void {
  const lock = takeLock(lockPath(dir, disk));
  if (lock === undefined) return;
  try {
    removeFiles(dir, disk);
    for (const path of waysToImage(dir, disk)) rmSync(path, { recursive: true, force: true });
  } finally {
    lock.release();
  }
}
