// What a killed server of a device leaves on this host: its statistics, its journals, its log of writes, its lock and
// the socket of its image's program, all for a successor. A device that is taken away has none.
import { existsSync, rmSync } from "node:fs";
import { writeLogPath } from "../block/targets/nbd/write-log.ts";
import { takeLock } from "../native/lock-file.ts";
import type { Platform } from "../platform/platform.ts";
import type { Xenstore } from "../xenstore/client.ts";
import type { DeviceAddress } from "./address.ts";
import { lockPath } from "./device-lock.ts";
import { journalsOf, removeJournals } from "./journal.ts";
import { programSocket } from "./program-socket.ts";
import { removeWriteLog } from "./server-line.ts";
import { statsDir, statsPath } from "./stats.ts";
import { findKinds } from "./toolstack.ts";

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
  const lock = takeLock(lockPath(dir, address));
  if (lock === undefined) return;
  try {
    rmSync(stats, { force: true });
    removeJournals(stats);
    removeWriteLog(stats);
    rmSync(socket, { force: true });
  } finally {
    lock.release();
  }
}
