// Opens the image of a disk, whatever it is: an NBD export, an image that a program opens for us, or the bytes of a
// file or device. The command line and a toolstack's keys name one in ways of their own (serve.ts, watched-image.ts).
import { isAbsolute, join, resolve } from "node:path";
import { openImage } from "../../block/image.ts";
import { isNbdUri } from "../../block/image/nbd.ts";
import { openedImage, type OpenedImage } from "../../block/image/opened.ts";
import type { Ways } from "../../block/image/open.ts";
import { notesBeside } from "../../block/image/reference-notes.ts";
import { openProgramImage, type Opener, type ProgramImageOptions } from "../../block/image/program.ts";
import type { SpawnWorker } from "../../plane/plane.ts";
import type { Xenstore } from "../../xenstore/client.ts";
import { describeDevice, type DeviceAddress } from "../address.ts";
import { refuseElsewhere } from "./image-places.ts";
import type { ImageThreads } from "./image-threads.ts";
import { openNbdSource } from "./secure-line.ts";
import { hasServedRaw, refuseOthersDevice } from "../device/sharing.ts";

export interface DiskImageOptions extends Omit<
  ProgramImageOptions,
  "claimsDir" | "notesDir" | "socket" | "user"
> {
  /** A file, a device, an NBD URI, or what `opener` understands. */
  readonly source: string;
  /** How to open an image that is not raw. */
  readonly opener?: Opener | undefined;
  /** "raw": treat the image as raw, whatever it looks like. */
  readonly format?: "raw" | undefined;
  readonly ways: Ways;
  readonly statsDir: string;
  readonly spawnWorker: SpawnWorker;
  readonly stop: AbortSignal;
  /** Touches the image first, and closes it, for somebody who opens images for several guests. */
  readonly threads?: ImageThreads | undefined;
}

/** Where the program that serves a device's image to us listens, beside the device's lock. */
export function programSocket(
  statsDir: string,
  { frontend, devid }: Pick<DeviceAddress, "frontend" | "devid">,
): string {
  return join(statsDir, `${frontend}-${devid}.nbd`);
}

/** Opens the image for the device, whose lock the caller has. */
export async function openDiskImage(
  xenstore: Xenstore,
  address: DeviceAddress,
  { source, opener, threads, ...options }: DiskImageOptions,
): Promise<OpenedImage> {
  const { readOnly, statsDir, stop } = options;
  const how = { ...options, shared: options.shared && !readOnly, user: describeDevice(address) };
  if (opener === undefined && isNbdUri(source)) {
    refuseElsewhere(source);
    return openNbdSource(source, { ...how, address });
  }
  await threads?.reach(source, stop);
  refuseElsewhere(source, opener);
  if (opener !== undefined) {
    if (!how.shared) await refuseOthersDevice(xenstore, address, source, readOnly);
    const socket = programSocket(statsDir, address);
    const ground = { socket, claimsDir: statsDir, notesDir: notesBeside(statsDir) };
    return openProgramImage(source, opener, { ...how, ...ground });
  }
  // What ".." means behind a link, only the kernel knows.
  const path = isAbsolute(source) ? source : resolve(source);
  const isKnown = await hasServedRaw(xenstore, address, path);
  if (!options.shared && !isKnown) await refuseOthersDevice(xenstore, address, path, readOnly);
  const image = openImage(path, { ...how, format: isKnown ? "raw" : how.format });
  return threads === undefined ? openedImage(image) : openedImage(image, () => threads.close(image));
}
