// Measures what a file or block device can do: its size, its sectors, whether it can discard.
import { readFileSync, statfsSync, type Stats } from "node:fs";
import { XentoolError } from "../../core/errors.ts";
import { allocateMemory } from "../../native/memory.ts";
import { IO_DISCARD, IO_READ, performIo } from "../../native/reactor.ts";
import { check, shim } from "../../native/shim.ts";
import type { TargetInfo } from "../target.ts";
import { deviceNumber, THIS_HOST, type HostFiles } from "./host-uses.ts";

type Abilities = Omit<TargetInfo, "sizeBytes" | "readOnly">;

/** The size in bytes of the file or block device that is open as `fd`. */
export function sizeOf(fd: number): number {
  return check(shim.xt_file_size(fd), "find out how large the image is", "io");
}

/**
 * A device made read-only by `blockdev --setro`, a read-only loop device or a write-protected disk opens for writing,
 * but every write fails.
 */
export function isReadOnlyDevice(stat: Stats): boolean {
  return stat.isBlockDevice() && readDeviceNumber(stat, "ro", 0) !== 0;
}

export function checkSize(path: string, sizeBytes: number, sectorSizeBytes: number): void {
  if (sizeBytes === 0) throw new XentoolError("usage", `${path} is empty: a disk needs at least one sector`);
  if (sizeBytes % sectorSizeBytes !== 0)
    throw new XentoolError(
      "usage",
      `${path}: its size, ${sizeBytes}, is not a multiple of ${sectorSizeBytes} bytes`,
    );
  if (sizeBytes > Number.MAX_SAFE_INTEGER)
    throw new XentoolError("usage", `${path}: ${sizeBytes} bytes are more than a disk can have here`);
}

/** Direct I/O requires aligned requests; a guest that was offered smaller sectors would get errors. */
export function checkDirectAlignment(fd: number, path: string, sectorSizeBytes: number): void {
  using page = allocateMemory(4096);
  if (performIo(fd, false, IO_READ, 0, sectorSizeBytes, page.address) < 0)
    throw new XentoolError(
      "environment",
      `${path}: direct I/O needs larger sectors here; use --sector-size 4096 or drop --direct`,
    );
}

/** Punching a hole past the end changes nothing, and shows whether the file system can punch holes. */
export function fileAbilities(fd: number, path: string, sizeBytes: number, readOnly: boolean): Abilities {
  const blockBytes = Math.min(4096, statfsSync(path).bsize);
  if (readOnly)
    return {
      canDiscard: false,
      canSecureDiscard: false,
      discardGranularityBytes: 512,
      physicalSectorBytes: 512,
    };
  const canDiscard = performIo(fd, false, IO_DISCARD, Math.ceil(sizeBytes / 4096) * 4096, 4096, 0) === 0;
  return {
    canDiscard,
    canSecureDiscard: false,
    discardGranularityBytes: Math.max(512, blockBytes),
    physicalSectorBytes: Math.max(512, blockBytes),
  };
}

export function blockDeviceAbilities(stat: Stats): Abilities {
  const granularity = readDeviceNumber(stat, "queue/discard_granularity", 0);
  return {
    canDiscard: granularity > 0 && readDeviceNumber(stat, "queue/discard_max_bytes", 0) > 0,
    // sysfs does not show it, so it is never offered, and a secure discard is answered EOPNOTSUPP.
    canSecureDiscard: false,
    discardGranularityBytes: Math.max(512, granularity),
    physicalSectorBytes: readDeviceNumber(stat, "queue/physical_block_size", 512),
  };
}

/** Reads a number from the device's directory in sysfs. A partition's `queue` and the like are one level up. */
export function readDeviceNumber(
  stat: Stats,
  name: string,
  fallback: number,
  host: HostFiles = THIS_HOST,
): number {
  const device = `${host.sys}/dev/block/${deviceNumber(stat.rdev)}`;
  for (const path of [`${device}/${name}`, `${device}/../${name}`]) {
    try {
      return Number(readFileSync(path, "utf8"));
    } catch {
      continue;
    }
  }
  return fallback;
}
