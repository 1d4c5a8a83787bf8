// Where images may be, if whoever installed us has said so (`blkback install --images`): the units reach nothing else,
// and have the list in their environment. What the kernel says of an image that a unit does not reach would mislead,
// because to us it is not there, or on a read-only file system; so such an image is refused before.
import { lstatSync, realpathSync } from "node:fs";
import { resolve } from "node:path";
import { XentoolError } from "../../core/errors.ts";
import { attempt, tryStat } from "../../block/image/attempt.ts";
import { isNbdUri } from "../../block/image/nbd.ts";
import type { Opener } from "../../block/image/program.ts";
import { parseNbdUri } from "../../block/targets/nbd/uri.ts";
import { BLOCK_DEVICES, IMAGE_PLACES, NETWORK } from "../host/host-files.ts";

/**
 * Throws `environment` when `source`, which `opener` opens if there is one, is in none of `places`. The storage of a
 * file is asked about it, so it must have answered before.
 */
export function refuseElsewhere(
  source: string,
  opener?: Opener,
  places: readonly string[] | undefined = process.env[IMAGE_PLACES]?.split(":"),
): void {
  if (places === undefined || !isPlaced(source, opener)) return;
  const place = placeOf(source, opener);
  if (place !== undefined && places.some((it) => place === it || place.startsWith(`${it}/`))) return;
  throw new XentoolError(
    "environment",
    `${source} is out of reach of this service, which was installed for images in ${places.join(", ")} alone: see xentool blkback install --images`,
  );
}

/** A server behind a unix socket and what a command opens are not in the list's places, nor in others. */
function isPlaced(source: string, opener: Opener | undefined): boolean {
  if (opener !== undefined) return "format" in opener;
  return !isNbdUri(source) || parseNbdUri(source).port !== undefined;
}

/** What of a list has to cover it; undefined: it is behind a link to what is not there for us. */
function placeOf(source: string, opener: Opener | undefined): string | undefined {
  const isRemote = opener === undefined ? isNbdUri(source) : "format" in opener && opener.format === "rbd";
  if (isRemote) return NETWORK;
  const path = attempt(() => realpathSync(source));
  if (path !== undefined) return tryStat(path)?.isBlockDevice() === true ? BLOCK_DEVICES : path;
  return attempt(() => lstatSync(source).isSymbolicLink()) === true ? undefined : resolve(source);
}
