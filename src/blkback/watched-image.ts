// Opens the image that a toolstack's keys name for a device.
import { openImage, type FileImage } from "../block/image.ts";
import { openedImage, type OpenedImage } from "../block/image/opened.ts";
import { isNbdUri } from "../block/image/nbd.ts";
import { openProgramImage } from "../block/image/program.ts";
import { XentoolError } from "../core/errors.ts";
import type { SpawnWorker } from "../plane/plane.ts";
import type { Xenstore } from "../xenstore/client.ts";
import { backendDir, describeDevice, type DeviceAddress } from "./address.ts";
import { isRingInUse } from "./end-states.ts";
import { releaseFromKernel } from "./kernel-blkback.ts";
import { programSocket } from "./program-socket.ts";
import { openNbdSource } from "./secure-line.ts";
import { hasServedRaw, keepsImage, refuseOthersDevice } from "./sharing.ts";
import { DISK_LINE_WAYS, parseImageWords } from "./image-words.ts";

/** Opens the image of a device. `stop` ends the wait for a server or program that does not answer. */
export type OpenDeviceImage = (address: DeviceAddress, stop: AbortSignal) => Promise<OpenedImage>;

/** How an image is touched for the first time, and closed, where nobody may wait for its storage meanwhile. */
export interface ImageStorage {
  reach(path: string, stop: AbortSignal): Promise<void>;
  close(image: FileImage): Promise<void>;
}

export interface WatchedImageOptions {
  readonly direct: boolean;
  readonly offer: { readonly logicalSectorBytes: number };
  /** "raw": treat the image as raw, whatever it looks like. */
  readonly format?: "raw" | undefined;
  /** To an NBD server, at most. */
  readonly connections?: number | undefined;
  readonly statsDir: string;
  /** Where the kernel lists its devices; tests substitute their own directory. */
  readonly sysfs?: string | undefined;
}

/**
 * Takes the device from the kernel's own backend first, should that have been quicker. `storage`: for somebody who
 * opens images for several guests. An error says whether another disk of ours has the image, and keeps it (`kept`).
 */
export async function openWatchedImage(
  xenstore: Xenstore,
  options: WatchedImageOptions,
  spawnWorker: SpawnWorker,
  address: DeviceAddress,
  stop: AbortSignal,
  storage?: ImageStorage,
): Promise<OpenedImage> {
  try {
    return await open(xenstore, options, spawnWorker, address, stop, storage);
  } catch (error) {
    if (!(error instanceof XentoolError) || typeof error.context["user"] !== "string") throw error;
    const kept = await keepsImage(xenstore, address, error.context["user"]);
    throw new XentoolError(error.kind, error.message, { ...error.context, kept }, error.cause);
  }
}

async function open(
  xenstore: Xenstore,
  options: WatchedImageOptions,
  spawnWorker: SpawnWorker,
  address: DeviceAddress,
  stop: AbortSignal,
  storage: ImageStorage | undefined,
): Promise<OpenedImage> {
  const { direct, connections, statsDir } = options;
  const sectorSizeBytes = options.offer.logicalSectorBytes;
  releaseFromKernel(address, await isRingInUse(xenstore, address), options.sysfs);
  const read = (key: string): Promise<string | null> => xenstore.tryRead(`${backendDir(address)}/${key}`);
  const { path, shared, format } = parseImageWords(await read("params"), await read("mode"));
  const isCdrom = (await read("device-type")) === "cdrom";
  const readOnly = isCdrom || !/^w!?$/.test((await read("mode")) ?? "");
  const common = { readOnly, shared: shared && !readOnly, sectorSizeBytes, ways: DISK_LINE_WAYS };
  if (isNbdUri(path))
    return openNbdSource(path, { ...common, address, statsDir, spawnWorker, connections, stop });
  await storage?.reach(path, stop);
  const how = { ...common, direct, user: describeDevice(address) };
  const discard = (await read("discard-enable")) !== "0";
  if (format !== undefined && format !== "raw") {
    await refuseOthersDevice(xenstore, address, path, readOnly);
    const socket = programSocket(statsDir, address);
    return openProgramImage(
      path,
      { format },
      {
        ...how,
        discard,
        connections,
        socket,
        claimsDir: statsDir,
        stop,
      },
    );
  }
  const isKnown = await hasServedRaw(xenstore, address, path);
  if (!shared && !isKnown) await refuseOthersDevice(xenstore, address, path, readOnly);
  const image = openImage(path, { ...how, discard, format: isKnown ? "raw" : (format ?? options.format) });
  return storage === undefined ? openedImage(image) : openedImage(image, () => storage.close(image));
}
