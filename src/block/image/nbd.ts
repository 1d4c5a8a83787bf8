// An NBD export as an image: asked for its size and flags when a disk is offered.
import { XentoolError } from "../../core/errors.ts";
import type { NbdImage } from "../image.ts";
import { probeExport, resolveHost } from "../targets/nbd/probe.ts";
import { infoOf } from "../targets/nbd/target.ts";
import { parseNbdUri } from "../targets/nbd/uri.ts";
import { checkSize } from "./limits.ts";

/** Connections to one export, used where its server says that it serves all of them alike. */
export const DEFAULT_CONNECTIONS = 4;
export const MAX_CONNECTIONS = 16;

export interface NbdImageOptions {
  readonly readOnly: boolean;
  readonly sectorSizeBytes: number;
  /** At most. */
  readonly connections?: number | undefined;
}

export function isNbdUri(path: string): boolean {
  return /^nbds?(\+unix)?:/.test(path);
}

/** Throws `usage`. */
export function checkConnections(count: number): void {
  if (!(Number.isInteger(count) && count >= 1 && count <= MAX_CONNECTIONS))
    throw new XentoolError("usage", `--connections is a whole number from 1 to ${MAX_CONNECTIONS}`);
}

/** Throws `usage` when the export can be no disk with such sectors, otherwise as `probeExport`. */
export async function openNbdImage(
  uri: string,
  { readOnly, sectorSizeBytes, connections = DEFAULT_CONNECTIONS }: NbdImageOptions,
): Promise<NbdImage> {
  const address = await resolveHost(parseNbdUri(uri));
  const seen = await probeExport(address);
  checkSize(uri, seen.sizeBytes, sectorSizeBytes);
  const info = infoOf(seen, readOnly);
  if (info.sizeBytes === 0)
    throw new XentoolError(
      "usage",
      `${uri} has less than one block of its server, ${seen.minBlockBytes} bytes`,
    );
  if (info.readOnly && !readOnly)
    throw new XentoolError("environment", `${uri} is read-only; --mode r serves it`);
  return { kind: "nbd", path: uri, address, seen, connections, info };
}
