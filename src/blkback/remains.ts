// What a killed server of a device leaves on this host: its statistics, its journals, its log of writes, its lock and
// the socket of its image's program, all for a successor. A device that is taken away has none, and nor has a guest
// that is gone: of both, somebody has to remove them, because a log of writes is 32 MiB of memory.
import { existsSync, readdirSync, rmSync } from "node:fs";
import { removeFreeClaims } from "../block/image/claim-export.ts";
import { writeLogPath } from "../block/targets/nbd/write-log.ts";
import { describeError } from "../core/errors.ts";
import { moduleLogger } from "../core/log.ts";
import { Looking } from "../core/looking.ts";
import { DOMID_FIRST_RESERVED, parseDecimal, toDomid } from "../core/types.ts";
import { takeLock } from "../native/lock-file.ts";
import type { Platform } from "../platform/platform.ts";
import type { Unwatch, Xenstore } from "../xenstore/client.ts";
import { backendDir, type DeviceAddress } from "./address.ts";
import { lockPath } from "./device-lock.ts";
import { journalsOf, removeJournals } from "./journal.ts";
import { programSocket } from "./program-socket.ts";
import { removeWriteLog } from "./server-line.ts";
import { statsDir, statsPath } from "./stats.ts";
import { destroyDevice, findKinds, SERVE_KEY } from "./toolstack.ts";

type Disk = Omit<DeviceAddress, "kind">;

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
  const stats = statsPath(dir, address.frontend, address.devid);
  const socket = programSocket(dir, address);
  const files = [stats, ...journalsOf(stats), writeLogPath(stats), lockPath(dir, address), socket];
  if (!files.some((path) => existsSync(path))) return;
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
    for (const disk of disksIn(dir, platform)) {
      if (!(await isGuestGone(xenstore, disk))) continue;
      await removeServed(xenstore, disk);
      removeUnlocked(dir, disk);
    }
  } catch (error) {
    moduleLogger("blkback").debug(`what guests left: ${describeError(error)}`);
  }
}

function disksIn(dir: string, { domid: backend }: Platform): Disk[] {
  const disks = new Map<string, Disk>();
  for (const name of existsSync(dir) ? readdirSync(dir) : []) {
    const [disk, frontend = null, device = null] = /^(\d+)-(\d+)(?=\.)/.exec(name) ?? [];
    const domid = parseDecimal(frontend, DOMID_FIRST_RESERVED - 1);
    const devid = parseDecimal(device, 2 ** 29);
    if (disk !== undefined && domid !== undefined && devid !== undefined)
      disks.set(disk, { backend, frontend: toDomid(domid), devid });
  }
  return [...disks.values()];
}

/** A domain's number is used again only after 32,000 others. A driver domain may not look, and so removes nothing. */
async function isGuestGone(xenstore: Xenstore, { frontend }: Disk): Promise<boolean> {
  return !(await xenstore.exists(`/local/domain/${frontend}`).catch(() => true));
}

/** Of devices that a `serve` has made nobody else removes the directory. */
async function removeServed(xenstore: Xenstore, disk: Disk): Promise<void> {
  for (const kind of await findKinds(xenstore, disk)) {
    const address = { ...disk, kind };
    if (await xenstore.exists(`${backendDir(address)}/${SERVE_KEY}`)) await destroyDevice(xenstore, address);
  }
}

/** Does nothing while a server lives. */
function removeUnlocked(dir: string, disk: Pick<DeviceAddress, "frontend" | "devid">): void {
  const stats = statsPath(dir, disk.frontend, disk.devid);
  const lock = takeLock(lockPath(dir, disk));
  if (lock === undefined) return;
  try {
    rmSync(stats, { force: true });
    removeJournals(stats);
    removeWriteLog(stats);
    rmSync(programSocket(dir, disk), { force: true });
  } finally {
    lock.release();
  }
}
