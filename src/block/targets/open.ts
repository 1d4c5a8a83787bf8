// Opens the target that serves an image, in the plane that serves it.
import type { OnEnd, Reactor } from "../../native/reactor.ts";
import type { Image } from "../image.ts";
import type { BlockTarget } from "../target.ts";
import { SECTOR_SIZE } from "../../protocol/blkif.ts";
import { FileTarget } from "./file.ts";
import { NbdTarget } from "./nbd/target.ts";
import { WholeBlocks } from "./nbd/whole-blocks.ts";

/** How long an NBD server may be silent while something is under way. */
const SILENCE_MS = 60_000;

/**
 * `depth`: operations under way at most. `onLost`: what it stored may be gone. The caller closes it, before what
 * operations use.
 */
export function openTarget(
  image: Image,
  reactor: Reactor,
  depth: number,
  onEnd: OnEnd,
  onLost: (why: string) => void,
): BlockTarget & { close?(): void } {
  if (image.kind === "file") return new FileTarget(image, reactor, onEnd);
  const { address, seen, connections, info } = image;
  const how = { address, seen, connections, readOnly: info.readOnly, depth, silenceMs: SILENCE_MS, onLost };
  const open = (end: OnEnd): NbdTarget => new NbdTarget(how, reactor, end);
  const { minBlockBytes } = seen;
  return minBlockBytes > SECTOR_SIZE ? new WholeBlocks(open, minBlockBytes, reactor, onEnd) : open(onEnd);
}
