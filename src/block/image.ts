// An image file or block device, opened and measured: what can be advertised to a guest. The descriptor
// can be handed to a worker of the same process, which serves it through FileTarget.
import {
  closeSync,
  constants,
  fstatSync,
  openSync,
  readFileSync,
  statSync,
  statfsSync,
  type Stats,
} from "node:fs";
import { XentoolError } from "../core/errors.ts";
import { IO_DISCARD, IO_READ, performIo } from "../native/reactor.ts";
import { allocateMemory } from "../native/memory.ts";
import { check, errnoName, shim } from "../native/shim.ts";
import type { TargetInfo } from "./target.ts";

/** Structured-cloneable: a worker of this process serves it through `new FileTarget`. */
export interface Image {
  readonly fd: number;
  readonly path: string;
  readonly isBlockDevice: boolean;
  readonly info: TargetInfo;
}

export interface ImageOptions {
  readonly readOnly: boolean;
  /** Bypass the page cache (O_DIRECT). */
  readonly direct: boolean;
  /** The logical sector size that will be advertised: the size must be a multiple of it. */
  readonly sectorSizeBytes: number;
  /** Without a lock: others may write it at the same time and are up to the matter. */
  readonly shared?: boolean;
  /** False: the guest is not to discard. */
  readonly discard?: boolean;
}

/**
 * Opens `path` for serving. Throws `usage` for what can never be a disk, `environment` for what this file
 * system cannot do, `io` when it cannot be opened. The caller closes it with `closeImage`.
 */
export function openImage(path: string, options: ImageOptions): Image {
  const flags =
    (options.readOnly ? constants.O_RDONLY : constants.O_RDWR) | (options.direct ? constants.O_DIRECT : 0);
  const fd = openOrExplain(path, flags);
  try {
    if (options.shared !== true) lock(fd, path, !options.readOnly);
    const stat = fstatSync(fd);
    const isBlockDevice = stat.isBlockDevice();
    const sizeBytes = isBlockDevice ? readQueueNumber(stat, "size", 0) * 512 : stat.size;
    checkSize(path, sizeBytes, options.sectorSizeBytes);
    if (options.direct) checkDirectAlignment(fd, path, options.sectorSizeBytes);
    const info = isBlockDevice
      ? { sizeBytes, readOnly: options.readOnly, ...blockDeviceLimits(stat) }
      : { sizeBytes, readOnly: options.readOnly, ...fileLimits(fd, path, sizeBytes, options.readOnly) };
    const discard = options.discard ?? true;
    return { fd, path, isBlockDevice, info: { ...info, canDiscard: info.canDiscard && discard } };
  } catch (error) {
    closeSync(fd);
    throw error;
  }
}

export function closeImage(image: Image): void {
  closeSync(image.fd);
}

/** The image's size now, in whole sectors' bytes: an image can be grown while it is served. */
export function currentSizeBytes(image: Image, sectorSizeBytes: number): number {
  const stat = fstatSync(image.fd);
  const sizeBytes = image.isBlockDevice ? readQueueNumber(stat, "size", 0) * 512 : stat.size;
  return sizeBytes - (sizeBytes % sectorSizeBytes);
}

function openOrExplain(path: string, flags: number): number {
  try {
    // Looked at first: opening a pipe would wait for its other end.
    const stat = statSync(path);
    if (!stat.isFile() && !stat.isBlockDevice())
      throw new XentoolError("usage", `${path} is neither a file nor a block device`);
    return openSync(path, flags);
  } catch (error) {
    if (error instanceof XentoolError) throw error;
    const direct = (flags & constants.O_DIRECT) !== 0 && (error as NodeJS.ErrnoException).code === "EINVAL";
    if (direct)
      throw new XentoolError("environment", `${path}: its file system has no direct I/O; drop --direct`);
    throw new XentoolError("io", `cannot open ${path}`, { path }, error);
  }
}

/** Two writers, or a reader beside a writer, ruin a file system. The lock ends with the process. */
function lock(fd: number, path: string, exclusive: boolean): void {
  const error = shim.xt_file_lock(fd, exclusive ? 1 : 0);
  if (error === 0) return;
  if (errnoName(error) !== "EAGAIN") check(error, `lock ${path}`);
  const who = exclusive ? "in use" : "being written";
  throw new XentoolError(
    "environment",
    `${path} is ${who} by another process; --mode w! shares it all the same`,
  );
}

function checkSize(path: string, sizeBytes: number, sectorSizeBytes: number): void {
  if (sizeBytes === 0) throw new XentoolError("usage", `${path} is empty: a disk needs at least one sector`);
  if (sizeBytes % sectorSizeBytes !== 0)
    throw new XentoolError(
      "usage",
      `${path}: its size, ${sizeBytes}, is no multiple of ${sectorSizeBytes} bytes`,
    );
  if (sizeBytes > Number.MAX_SAFE_INTEGER)
    throw new XentoolError("usage", `${path}: ${sizeBytes} bytes are more than a disk can have here`);
}

/** Direct I/O wants aligned requests; a guest told of smaller sectors would get errors. */
function checkDirectAlignment(fd: number, path: string, sectorSizeBytes: number): void {
  using page = allocateMemory(4096);
  if (performIo(fd, false, IO_READ, 0, sectorSizeBytes, page.address) < 0)
    throw new XentoolError(
      "environment",
      `${path}: direct I/O needs larger sectors here; use --sector-size 4096 or drop --direct`,
    );
}

type Limits = Omit<TargetInfo, "sizeBytes" | "readOnly">;

/** A hole punched past the end changes nothing and tells whether the file system can punch holes. */
function fileLimits(fd: number, path: string, sizeBytes: number, readOnly: boolean): Limits {
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

function blockDeviceLimits(stat: Stats): Limits {
  const granularity = readQueueNumber(stat, "queue/discard_granularity", 0);
  return {
    canDiscard: granularity > 0 && readQueueNumber(stat, "queue/discard_max_bytes", 0) > 0,
    // Not in sysfs; the first secure discard that a device refuses is answered EOPNOTSUPP, as any other's.
    canSecureDiscard: false,
    discardGranularityBytes: Math.max(512, granularity),
    physicalSectorBytes: readQueueNumber(stat, "queue/physical_block_size", 512),
  };
}

/** A number of the device's directory in sysfs; a partition has its `queue` one level up. */
function readQueueNumber(stat: Stats, name: string, fallback: number): number {
  const device = `/sys/dev/block/${(stat.rdev >> 8) & 0xfff}:${(stat.rdev & 0xff) | ((stat.rdev >> 12) & 0xfff00)}`;
  for (const path of [`${device}/${name}`, `${device}/../${name}`]) {
    try {
      return Number(readFileSync(path, "utf8"));
    } catch {
      continue;
    }
  }
  return fallback;
}
