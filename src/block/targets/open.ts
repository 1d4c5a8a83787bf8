// Opens the target that serves an image, in the plane that serves it.
import type { OnEnd, Reactor } from "../../native/reactor.ts";
import { shim } from "../../native/shim.ts";
import type { Image, InPlace } from "../image.ts";
import type { BlockTarget } from "../target.ts";
import { SECTOR_SIZE } from "../../protocol/blkif.ts";
import { FileTarget } from "./file.ts";
import { asPromised } from "./nbd/export-check.ts";
import type { LinkOptions } from "./nbd/link.ts";
import { NbdTarget } from "./nbd/target.ts";
import { Qcow2Target, type ServerTarget } from "./qcow2/target.ts";
import { WholeBlocks } from "./nbd/whole-blocks.ts";
import type { WriteLog } from "./nbd/write-log.ts";

/** How long an NBD server may be silent while something is under way. */
const SILENCE_MS = 60_000;
/**
 * How long one that is given up may take to reply: for ever, if it is a program of ours. A host that is away is known
 * to be after 30 s (csrc/stream.c).
 */
const ENDING_MS = 30_000;

/** What an image that a server has needs besides the reactor. */
export interface RemoteNeeds extends Pick<LinkOptions, "holdMs" | "dial" | "onHeld"> {
  /** Opens the log of writes for the export named so. */
  readonly openLog: (name: string) => WriteLog;
  /** A guest goes on with the ring that a former server served. */
  readonly isTakenOver: boolean;
}

export interface OpenedTarget {
  readonly target: BlockTarget;
  /** What knows whether the server of the image is there, if it has one. */
  readonly remote:
    | Pick<NbdTarget, "isServing" | "isStuck" | "isEnding" | "limitEnding" | "limitHold" | "limitSilence">
    | undefined;
  /** Before what operations use is closed. `isOver`: no other server of the same disk is to go on. */
  close(isOver: boolean): void;
}

/** `depth`: operations under way at most. */
export function openTarget(
  image: Image,
  reactor: Reactor,
  depth: number,
  onEnd: OnEnd,
  { openLog, isTakenOver, ...link }: RemoteNeeds,
): OpenedTarget {
  if (image.kind === "file") {
    const target = new FileTarget(image, reactor, onEnd);
    return { target, remote: undefined, close: () => {} };
  }
  const { address, connections, info, isOurs } = image;
  const { exportName } = address;
  const { readOnly } = info;
  // Another file that comes to the path of one that a program had gets nothing of what was written to that.
  const log = readOnly ? undefined : openLog([image.path, image.identity ?? ""].join(" "));
  const seen = log === undefined ? image.seen : asPromised(image.seen, log, isTakenOver);
  const how = {
    ...link,
    exportName,
    seen,
    connections,
    readOnly,
    depth,
    silenceMs: SILENCE_MS,
    isOurs,
    endingMs: isOurs ? Infinity : ENDING_MS,
    log,
  };
  const { minBlockBytes } = seen;
  const openServer = (end: OnEnd): ServerTarget => {
    const openNbd = (ended: OnEnd): NbdTarget => new NbdTarget(how, reactor, ended);
    if (minBlockBytes <= SECTOR_SIZE) {
      const target = openNbd(end);
      return { target, remote: target };
    }
    const target = new WholeBlocks(openNbd, minBlockBytes, reactor, end);
    return { target, remote: target.inner };
  };
  const { inPlace } = image;
  const { target, remote } =
    inPlace === undefined ? openServer(onEnd) : openQcow2(inPlace, openServer, reactor, depth, onEnd);
  return { target, remote, close: (isOver) => target.close(isOver) };
}

function openQcow2(
  { fd, isBlockDevice }: InPlace,
  openServer: (onEnd: OnEnd) => ServerTarget,
  reactor: Reactor,
  depth: number,
  onEnd: OnEnd,
): ServerTarget {
  const file = { file: reactor.addFile(fd, isBlockDevice), sizeBytes: () => shim.xt_file_size(fd) };
  const target = new Qcow2Target({ file, openDaemon: openServer, depth }, reactor, onEnd);
  return { target, remote: target.daemon };
}
