// An NBD export as an image: asked for its size and flags when a disk is offered.
import { XentoolError } from "../../core/errors.ts";
import type { NbdImage } from "../image.ts";
import { probeExport, resolveHost } from "../targets/nbd/probe.ts";
import { infoOf } from "../targets/nbd/target.ts";
import { parseNbdUri } from "../targets/nbd/uri.ts";
import { checkSize } from "./limits.ts";

/** Where the server says that several are as good as one. */
const CONNECTIONS = 4;

export function isNbdUri(path: string): boolean {
  return /^nbds?(\+unix)?:/.test(path);
}

/** Throws `usage` when the export can be no disk with such sectors, otherwise as `probeExport`. */
export async function openNbdImage(
  uri: string,
  readOnly: boolean,
  sectorSizeBytes: number,
): Promise<NbdImage> {
  const address = await resolveHost(parseNbdUri(uri));
  const seen = await probeExport(address);
  checkSize(uri, seen.sizeBytes, sectorSizeBytes);
  if (seen.minBlockBytes > sectorSizeBytes)
    throw new XentoolError(
      "environment",
      `${uri}: its server wants blocks of ${seen.minBlockBytes} bytes, and the disk has sectors of ${sectorSizeBytes}`,
    );
  const info = infoOf(seen, readOnly);
  if (info.readOnly && !readOnly)
    throw new XentoolError("environment", `${uri} is read-only; --mode r serves it`);
  return { kind: "nbd", path: uri, address, seen, connections: CONNECTIONS, info };
}
