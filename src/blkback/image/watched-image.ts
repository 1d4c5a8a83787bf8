// Opens the image that a toolstack's keys name for a device.
import type { OpenedImage } from "../../block/image/opened.ts";
import { XentoolError } from "../../core/errors.ts";
import type { SpawnWorker } from "../../plane/plane.ts";
import type { Xenstore } from "../../xenstore/client.ts";
import { backendDir, type DeviceAddress } from "../address.ts";
import { openDiskImage } from "./disk-image.ts";
import { isRingInUse } from "../device/end-states.ts";
import { releaseFromKernel } from "../host/kernel-blkback.ts";
import type { ImageThreads } from "./image-threads.ts";
import { DISK_LINE_WAYS, parseImageWords } from "./image-words.ts";
import { keepsImage } from "../device/sharing.ts";

/** Opens the image of a device. `stop` ends the wait for a server or program that does not answer. */
export type OpenDeviceImage = (address: DeviceAddress, stop: AbortSignal) => Promise<OpenedImage>;

export interface WatchedImageOptions {
  readonly direct: boolean;
  readonly offer: { readonly logicalSectorBytes: number };
  /** "raw": treat the image as raw, whatever it looks like. */
  readonly format?: "raw" | undefined;
  /** To an NBD server, at most. */
  readonly connections?: number | undefined;
  /** False: a qcow2 is read and written by its daemon alone. */
  readonly inPlace?: boolean;
  readonly statsDir: string;
  /** Where the kernel lists its devices; tests substitute their own directory. */
  readonly sysfs?: string | undefined;
}

/**
 * Takes the device from the kernel's own backend first, should that have been quicker. An error says whether another
 * disk of ours has the image, and keeps it (`kept`).
 */
export async function openWatchedImage(
  xenstore: Xenstore,
  { direct, offer, format: usual, connections, inPlace, statsDir, sysfs }: WatchedImageOptions,
  spawnWorker: SpawnWorker,
  address: DeviceAddress,
  stop: AbortSignal,
  threads?: ImageThreads,
): Promise<OpenedImage> {
  releaseFromKernel(address, await isRingInUse(xenstore, address), sysfs);
  const read = (key: string): Promise<string | null> => xenstore.tryRead(`${backendDir(address)}/${key}`);
  const mode = await read("mode");
  const { path: source, shared, format = usual } = parseImageWords(await read("params"), mode);
  const readOnly = (await read("device-type")) === "cdrom" || !/^w!?$/.test(mode ?? "");
  const discard = (await read("discard-enable")) !== "0";
  const sectorSizeBytes = offer.logicalSectorBytes;
  const how = format === "raw" || format === undefined ? { format } : { opener: { format } };
  const asked = { ...how, source, readOnly, shared, direct, discard, connections, inPlace, sectorSizeBytes };
  const ground = { ways: DISK_LINE_WAYS, statsDir, spawnWorker, stop, threads };
  try {
    return await openDiskImage(xenstore, address, { ...asked, ...ground });
  } catch (error) {
    if (!(error instanceof XentoolError) || typeof error.context["user"] !== "string") throw error;
    const kept = await keepsImage(xenstore, address, error.context["user"]);
    throw new XentoolError(error.kind, error.message, { ...error.context, kept }, error.cause);
  }
}
