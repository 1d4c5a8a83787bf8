// A disk as an NBD export: what a client learns, derived from what the backend announced.
import { SECTOR_SIZE } from "../protocol/blkif.ts";
import {
  NBD_FLAG_CAN_MULTI_CONN,
  NBD_FLAG_HAS_FLAGS,
  NBD_FLAG_READ_ONLY,
  NBD_FLAG_SEND_DF,
  NBD_FLAG_SEND_FLUSH,
  NBD_FLAG_SEND_FUA,
  NBD_FLAG_SEND_TRIM,
  NBD_FLAG_SEND_WRITE_ZEROES,
  type NbdExport,
} from "../protocol/nbd.ts";
import { MAX_BLOCK_BYTES, MIN_WHOLE_READ_BYTES, PREFERRED_BLOCK_BYTES } from "./bounds.ts";
import type { Disk } from "./handshake.ts";

/** Whether the backend can make all its writes durable. */
export function canMakeDurable(disk: Disk): boolean {
  return disk.canFlush || disk.canBarrier;
}

/** Whether a server that sends up to `pieceBytes` in one piece may offer not to fragment reads. */
export function canReadWhole(pieceBytes: number): boolean {
  return pieceBytes >= MIN_WHOLE_READ_BYTES;
}

export function exportOf(disk: Disk, name: string, pieceBytes: number): NbdExport {
  // One disk serves all connections, and a flush on any of its rings covers what is completed on the others.
  let flags = NBD_FLAG_HAS_FLAGS | NBD_FLAG_CAN_MULTI_CONN;
  if (canMakeDurable(disk)) flags |= NBD_FLAG_SEND_FLUSH | NBD_FLAG_SEND_FUA;
  if (canReadWhole(pieceBytes)) flags |= NBD_FLAG_SEND_DF;
  if (disk.readOnly) flags |= NBD_FLAG_READ_ONLY;
  else flags |= NBD_FLAG_SEND_WRITE_ZEROES | (disk.canDiscard ? NBD_FLAG_SEND_TRIM : 0);
  return {
    name,
    description: `PV disk ${name}`,
    sizeBytes: disk.sectors512 * SECTOR_SIZE,
    flags,
    minBlockBytes: disk.logicalSectorBytes,
    preferredBlockBytes: Math.max(PREFERRED_BLOCK_BYTES, disk.physicalSectorBytes),
    maxBlockBytes: MAX_BLOCK_BYTES,
  };
}
