// An image file or block device, opened and measured to learn what can be advertised to a guest. The descriptor can
// be passed to a worker of the same process, which serves it through FileTarget.
import { closeSync, fstatSync } from "node:fs";
import { attempt } from "./image/attempt.ts";
import { claimFor, takeDisksLock } from "./image/claim.ts";
import { identify, noteClosing, noteOpened } from "./image/known.ts";
import {
  blockDeviceAbilities,
  checkDirectAlignment,
  checkSize,
  fileAbilities,
  sizeOf,
} from "./image/abilities.ts";
import { COMMAND_WAYS, notOverError, openClaimed, refuseContainer, type Ways } from "./image/open.ts";
import type { TargetInfo } from "./target.ts";
import type { SeenExport } from "./targets/nbd/handshake.ts";
import type { NbdAddress } from "./targets/nbd/uri.ts";

/** Structured-cloneable: a worker of this process serves it (`openTarget`). */
export type Image = FileImage | NbdImage;

/** An export of an NBD server. The worker has its own connections to it, begun by the control side. */
export interface NbdImage {
  readonly kind: "nbd";
  /** Its URI. */
  readonly path: string;
  readonly address: NbdAddress;
  readonly seen: SeenExport;
  readonly connections: number;
  /** Its server is a program that we run. */
  readonly isOurs: boolean;
  readonly info: TargetInfo;
  /** The block device that a program opens for us, as `physicalDevice` writes it. */
  readonly device?: string | undefined;
  /** What a program opens for us, if that is a file or device here, as `FileImage` has it. */
  readonly identity?: string | undefined;
  /** The file behind it, if we may use what the program has put in place there. */
  readonly inPlace?: InPlace | undefined;
}

/** The open file of a container, with the program's way of caching. */
export interface InPlace {
  readonly fd: number;
  readonly isBlockDevice: boolean;
}

export interface FileImage {
  readonly kind: "file";
  readonly fd: number;
  readonly path: string;
  /** Distinguishes it from all others that have its path, earlier or later. */
  readonly identity: string;
  readonly isBlockDevice: boolean;
  readonly info: TargetInfo;
  /** Descriptors of what the image lies on, open for the locks that they hold. */
  readonly alsoHeld: readonly number[];
}

export interface ImageOptions {
  readonly readOnly: boolean;
  /** Bypass the page cache (O_DIRECT). */
  readonly direct: boolean;
  /** The logical sector size to advertise. The image's size must be a multiple of it. */
  readonly sectorSizeBytes: number;
  /** Others may write to it at the same time, and can cope with that. */
  readonly shared?: boolean;
  /** "raw": serve the image as a disk even if it looks like a container with a disk in it. */
  readonly format?: "raw" | undefined;
  /** The disk it is opened for, named to whoever else wants the image. */
  readonly user?: string;
  /** How the user can insist; by default, in terms of the command line. */
  readonly ways?: Ways;
  /** False: discard is not offered to the guest. */
  readonly discard?: boolean;
}

/**
 * Opens `path` for serving. Throws `usage` for what can never be a disk, `environment` for what this file system
 * cannot do or an image that others use, and `io` when it cannot be opened. The caller closes it with `closeImage`.
 */
export function openImage(path: string, options: ImageOptions): FileImage {
  const { readOnly, direct, sectorSizeBytes, shared = false, ways = COMMAND_WAYS } = options;
  const { fd, alsoHeld } = openClaimed(path, claimFor(readOnly, shared), direct, ways);
  try {
    if (options.user !== undefined && !readOnly && !takeDisksLock(fd, options.user))
      throw notOverError(path, options.user);
    const stat = fstatSync(fd);
    const isBlockDevice = stat.isBlockDevice();
    const sizeBytes = sizeOf(fd);
    // Checked first: a container may have any size, and must not be padded to satisfy the size check.
    if (options.format !== "raw") refuseContainer(fd, path, sizeBytes, ways);
    checkSize(path, sizeBytes, sectorSizeBytes);
    if (direct) checkDirectAlignment(fd, path, sectorSizeBytes);
    const abilities = isBlockDevice
      ? blockDeviceAbilities(stat)
      : fileAbilities(fd, path, sizeBytes, readOnly);
    const canDiscard = abilities.canDiscard && (options.discard ?? true);
    if (options.user !== undefined) for (const it of [fd, ...alsoHeld]) noteOpened(it, options.user);
    return {
      kind: "file",
      fd,
      alsoHeld,
      path,
      identity: identify(stat).text,
      isBlockDevice,
      info: { sizeBytes, readOnly, ...abilities, canDiscard },
    };
  } catch (error) {
    for (const it of [fd, ...alsoHeld]) closeSync(it);
    throw error;
  }
}

export function closeImage(image: Image): void {
  if (image.kind === "nbd") return;
  for (const it of [image.fd, ...image.alsoHeld]) {
    // A file server that is gone may know nothing of it (ESTALE).
    attempt(() => noteClosing(it));
    closeSync(it);
  }
}

/**
 * The image's current size in bytes, rounded down to whole sectors: an image can grow while it is served. Null if that
 * is not known until it is served anew: an NBD server tells it to new connections only, when it likes.
 */
export function currentSizeBytes(image: Image, sectorSizeBytes: number): number | null {
  if (image.kind === "nbd") return null;
  const sizeBytes = sizeOf(image.fd);
  return sizeBytes - (sizeBytes % sectorSizeBytes);
}
