// An image file or block device, opened and measured: what can be advertised to a guest. The descriptor
// can be handed to a worker of the same process, which serves it through FileTarget.
import { closeSync, fstatSync } from "node:fs";
import { noteClosing, noteOpened } from "./image/known.ts";
import { blockDeviceLimits, checkDirectAlignment, checkSize, fileLimits, sizeOf } from "./image/limits.ts";
import { COMMAND_WAYS, openClaimed, refuseContainer, type Ways } from "./image/open.ts";
import type { TargetInfo } from "./target.ts";

/** Structured-cloneable: a worker of this process serves it through `new FileTarget`. */
export interface Image {
  readonly fd: number;
  readonly path: string;
  readonly isBlockDevice: boolean;
  readonly info: TargetInfo;
  /** Descriptors of what the image lies on, open for the locks that they hold. */
  readonly alsoHeld: readonly number[];
}

export interface ImageOptions {
  readonly readOnly: boolean;
  /** Bypass the page cache (O_DIRECT). */
  readonly direct: boolean;
  /** The logical sector size that will be advertised: the size must be a multiple of it. */
  readonly sectorSizeBytes: number;
  /** Others may write it at the same time and are up to the matter. */
  readonly shared?: boolean;
  /** "raw": what looks like a container with a disk in it is a disk all the same. */
  readonly format?: "raw" | undefined;
  /** Which disk it is opened for: what another one is told that would like to have it. */
  readonly user?: string;
  /** How to insist; by default in the words of the command line. */
  readonly ways?: Ways;
  /** False: the guest is not to discard. */
  readonly discard?: boolean;
}

/**
 * Opens `path` for serving. Throws `usage` for what can never be a disk, `environment` for what this file system
 * cannot do and for an image that others use, `io` when it cannot be opened. The caller closes it with
 * `closeImage`.
 */
export function openImage(path: string, options: ImageOptions): Image {
  const { readOnly, direct, sectorSizeBytes, shared = false, ways = COMMAND_WAYS } = options;
  const claim = shared ? "shared" : readOnly ? "read" : "write";
  const { fd, alsoHeld } = openClaimed(path, claim, direct, ways);
  try {
    const stat = fstatSync(fd);
    const isBlockDevice = stat.isBlockDevice();
    const sizeBytes = sizeOf(stat);
    // First: a container may have any size, and is not to be padded.
    if (options.format !== "raw") refuseContainer(fd, path, sizeBytes, ways);
    checkSize(path, sizeBytes, sectorSizeBytes);
    if (direct) checkDirectAlignment(fd, path, sectorSizeBytes);
    const limits = isBlockDevice ? blockDeviceLimits(stat) : fileLimits(fd, path, sizeBytes, readOnly);
    const canDiscard = limits.canDiscard && (options.discard ?? true);
    if (options.user !== undefined) for (const it of [fd, ...alsoHeld]) noteOpened(it, options.user);
    return { fd, alsoHeld, path, isBlockDevice, info: { sizeBytes, readOnly, ...limits, canDiscard } };
  } catch (error) {
    for (const it of [fd, ...alsoHeld]) closeSync(it);
    throw error;
  }
}

export function closeImage({ fd, alsoHeld }: Image): void {
  for (const it of [fd, ...alsoHeld]) {
    noteClosing(it);
    closeSync(it);
  }
}

/** The image's size now, in whole sectors' bytes: an image can be grown while it is served. */
export function currentSizeBytes(image: Image, sectorSizeBytes: number): number {
  const sizeBytes = sizeOf(fstatSync(image.fd));
  return sizeBytes - (sizeBytes % sectorSizeBytes);
}
