// Whether an export that a server offers can still be the disk that the guest has: after a reconnect, and when another
// server takes the disk over.
import { NBD_FLAG_READ_ONLY, NBD_FLAG_SEND_FLUSH, NBD_FLAG_SEND_TRIM } from "../../../protocol/nbd.ts";
import type { SeenExport } from "./handshake.ts";
import { MAX_RECORD_BYTES, type WriteLog } from "./write-log.ts";

/**
 * `seen` as it must be for a guest whose former server left `log`: what is less is refused as after a reconnect. Notes
 * it for the next server of the guest. `isTakenOver`: the guest goes on with its ring.
 */
export function asPromised(seen: SeenExport, log: WriteLog, isTakenOver: boolean): SeenExport {
  // A flush that had done something must not come to do nothing. Anything else that it lacks, the guest is told.
  const flags = seen.flags | (isTakenOver ? log.flags & NBD_FLAG_SEND_FLUSH : 0);
  log.flags = flags;
  return { ...seen, flags, minBlockBytes: log.wholeIn(seen.minBlockBytes) };
}

/** Of those that are used. That a server takes several connections may change: the link has one then. */
const ABILITIES: readonly (readonly [number, string])[] = [
  [NBD_FLAG_SEND_FLUSH, "flush"],
  [NBD_FLAG_SEND_TRIM, "trim"],
];

/** The largest payload that is sent to a server. */
export function mostAtOnce({ maxBlockBytes }: SeenExport): number {
  return Math.min(maxBlockBytes, MAX_RECORD_BYTES);
}

/** Why `now` cannot stand for the export that was there `before`; undefined if it can. It may have grown. */
export function whyNotTheSame(before: SeenExport, now: SeenExport): string | undefined {
  if (now.sizeBytes < before.sizeBytes)
    return `the export has only ${now.sizeBytes} bytes now, not ${before.sizeBytes}`;
  if ((now.flags & ~before.flags & NBD_FLAG_READ_ONLY) !== 0) return "the export is read-only now";
  for (const [flag, what] of ABILITIES)
    if ((before.flags & ~now.flags & flag) !== 0) return `the server can no longer ${what}`;
  if (now.minBlockBytes > before.minBlockBytes)
    return `the server wants blocks of ${now.minBlockBytes} bytes now, not ${before.minBlockBytes}`;
  const mostBytes = mostAtOnce(before);
  if (now.maxBlockBytes < mostBytes)
    return `the server takes only ${now.maxBlockBytes} bytes at once now, not ${mostBytes}`;
  return undefined;
}
