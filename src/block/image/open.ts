// Opens an image so that nobody else can use it in the meantime, or reports who does.
import { closeSync, constants, fstatSync, openSync, readSync, statSync, type Stats } from "node:fs";
import { codeOf, XentoolError } from "../../core/errors.ts";
import { takeLocks, type Claim, type QemuLocks } from "./claim.ts";
import { shim } from "../../native/shim.ts";
import type { ContainerFormat } from "../program/commands.ts";
import { HEAD_BYTES, recogniseFormat, TAIL_BYTES, type ImageFormat } from "./formats.ts";
import { backingFile, hostUses, listUses, type HostUse, type Identity } from "./host-uses.ts";
import { identify, isAsServed, userOf } from "./known.ts";
import { isReadOnlyDevice } from "./abilities.ts";
import { processesWith, type ImageProcess } from "./processes.ts";

/**
 * The `reason` in the context of the error thrown when a process, which may release it, holds the image. `own`: that
 * process is this one, or one that it has started. `user`: the disk of this process that it was opened for.
 */
export const HELD = "held";

/** How the user can insist, in terms of the interface in use. */
export interface Ways {
  /** To share the image with others that write to it; undefined: that would ruin it. */
  readonly shared: string | undefined;
  /** To serve a container's bytes as they are. */
  readonly raw: string;
  /** To serve what is in a container of this format. */
  readonly format: (name: ContainerFormat) => string;
  readonly readOnly: string;
}

export const COMMAND_WAYS: Ways = {
  shared: "--mode w!",
  raw: "--format raw",
  format: (name) => `--format ${name}${name === "luks" ? " --key-file FILE" : ""}`,
  readOnly: "--mode r",
};

/** The descriptors of the image and of what it lies on; the latter are held for their locks. */
export interface Opened {
  readonly fd: number;
  readonly alsoHeld: readonly number[];
}

export function openClaimed(
  path: string,
  claim: Claim,
  direct: boolean,
  ways: Ways,
  qemuLocks: QemuLocks = "ours",
): Opened {
  using undo = new DisposableStack();
  const opened = (fd: number): number => undo.adopt(fd, closeSync);
  const first = openSeen(path, claim, direct, ways);
  const fd = opened(first.fd);
  const { stat } = first;
  if (claim !== "shared") refuseUses(path, stat, claim, ways);
  if (!takeLocks(fd, path, claim, ways.shared, shim, qemuLocks)) throw heldError(path, stat, ways, fd);
  const alsoHeld: number[] = [];
  const file = claim === "shared" ? undefined : openBackingFile(stat);
  if (file !== undefined) {
    alsoHeld.push(opened(file.fd));
    if (!takeLocks(file.fd, file.path, claim, ways.shared))
      throw heldError(file.path, fstatSync(file.fd), ways, file.fd);
  }
  undo.move();
  return { fd, alsoHeld };
}

/** Opens the file behind a loop device, if possible: it may have been removed, or we may not be allowed to read it. */
function openBackingFile(device: Stats): { fd: number; path: string } | undefined {
  const path = backingFile(device);
  if (path === undefined) return undefined;
  try {
    return { fd: openSync(path, constants.O_RDONLY), path };
  } catch {
    return undefined;
  }
}

/** What is opened is what was looked at, also if something else comes to the path meanwhile. */
function openSeen(path: string, claim: Claim, direct: boolean, ways: Ways): { fd: number; stat: Stats } {
  for (;;) {
    const seen = lookAt(path);
    if (claim !== "read" && isReadOnlyDevice(seen))
      throw new XentoolError("environment", `${path} is a read-only device; ${ways.readOnly} serves it`);
    const fd = openDevice(path, seen, claim, direct, ways);
    const stat = fstatSync(fd);
    if (identify(stat).text === identify(seen).text) return { fd, stat };
    closeSync(fd);
  }
}

/** Checked before opening, because opening a pipe would wait for its other end. */
function lookAt(path: string): Stats {
  let stat: Stats;
  try {
    stat = statSync(path);
  } catch (error) {
    throw new XentoolError("io", `cannot open ${path}`, { path }, error);
  }
  if (!stat.isFile() && !stat.isBlockDevice())
    throw new XentoolError("usage", `${path} is neither a file nor a block device`);
  return stat;
}

/**
 * With O_EXCL a block device is ours alone: it keeps mounts, swap, device-mapper and md out, or fails if one of them
 * is already there. Readers only test it, so that there can be several.
 */
function openDevice(path: string, seen: Stats, claim: Claim, direct: boolean, ways: Ways): number {
  const access =
    (claim === "read" ? constants.O_RDONLY : constants.O_RDWR) | (direct ? constants.O_DIRECT : 0);
  const exclusive = seen.isBlockDevice() && claim !== "shared" ? constants.O_EXCL : 0;
  try {
    if (claim !== "read" || exclusive === 0) return openSync(path, access | exclusive);
    try {
      closeSync(openSync(path, access | exclusive));
    } catch (error) {
      if (codeOf(error) !== "EBUSY" || hostUses(seen).length === 0) throw error;
    }
    return openSync(path, access);
  } catch (error) {
    throw explain(error, path, seen, claim, direct, ways);
  }
}

function explain(
  error: unknown,
  path: string,
  seen: Stats,
  claim: Claim,
  direct: boolean,
  ways: Ways,
): XentoolError {
  const code = codeOf(error);
  if (code === "EBUSY") {
    const uses = hostUses(seen);
    return uses.length > 0 ? used(path, uses, ways) : heldError(path, seen, ways);
  }
  if (code === "EROFS" && claim !== "read")
    return new XentoolError(
      "environment",
      `${path} is on a read-only file system; ${ways.readOnly} serves it`,
    );
  if (code === "EINVAL" && direct)
    return new XentoolError("environment", `${path}: its file system has no direct I/O; drop --direct`);
  return new XentoolError("io", `cannot open ${path}`, { path }, error);
}

/** Readers tolerate other users that only read. */
function refuseUses(path: string, stat: Stats, claim: Claim, ways: Ways): void {
  const uses = hostUses(stat).filter(({ writes }) => writes || claim === "write");
  if (uses.length > 0) throw used(path, uses, ways);
}

function used(path: string, uses: readonly HostUse[], ways: Ways): XentoolError {
  return new XentoolError("environment", `${path} is in use: ${listUses(uses)}${insistOn(ways)}`);
}

/** Somebody's locks on the file or device are in the way, though not those of `ours`. `name`: what is locked by it. */
export function heldError(
  path: string,
  image: Identity,
  ways: Ways,
  ours?: number,
  name = path,
): XentoolError {
  const all = processesWith(image, path, ours);
  const holders = all.some(({ locks }) => locks) ? all.filter(({ locks }) => locks) : all;
  // What we have opened, a process of ours may have, too.
  const isOurs = holders.some(({ pid }) => pid === process.pid);
  const who = holders.flatMap(({ pid, parent, name, fds }) => {
    if (pid !== process.pid) return isOurs && parent === process.pid ? [] : [`process ${pid}, ${name}`];
    const disks = fds.map(userOf).filter((user) => user !== undefined);
    return disks.map((disk) => `${disk}, served by this process`);
  });
  const isOwn = ({ pid, parent }: ImageProcess): boolean => pid === process.pid || parent === process.pid;
  const own = who.length > 0 && holders.every(isOwn);
  const by =
    who.length > 0
      ? `: ${listUses(who.map((what) => ({ what })))}`
      : " by somebody who cannot be seen from here";
  const text = `${name} is in use${by}${insistOn(ways)}`;
  const user = holders
    .flatMap(({ pid, fds }) => (pid === process.pid ? fds : []))
    .map(userOf)
    .find(Boolean);
  return new XentoolError("environment", text, { reason: HELD, own, user });
}

/** See `takeDisksLock`. */
export function notOverError(path: string, user: string): XentoolError {
  const text = `${path}: what a former server of ${user} has begun is not over yet`;
  return new XentoolError("environment", text, { reason: HELD, own: false });
}

function insistOn(ways: Ways): string {
  return ways.shared === undefined ? "" : `; ${ways.shared} shares it anyway`;
}

/** Throws `usage` when the image is a container with a disk in it. */
export function refuseContainer(fd: number, path: string, sizeBytes: number, ways: Ways): void {
  // Not through `fd`, which may require aligned reads.
  const reader = openSync(`/proc/self/fd/${fd}`, constants.O_RDONLY);
  try {
    const [head, tail] = [Buffer.alloc(HEAD_BYTES), Buffer.alloc(TAIL_BYTES)];
    readSync(reader, head, 0, HEAD_BYTES, 0);
    readSync(reader, tail, 0, TAIL_BYTES, Math.max(0, sizeBytes - TAIL_BYTES));
    const format = recogniseFormat(head, tail);
    if (format === undefined || isAsServed(fd)) return;
    throw new XentoolError(
      "usage",
      `${path} looks like ${format.name}, of which a guest would see, and destroy, the container instead of what is ` +
        `in it: ${adviceFor(format, ways)}; ${ways.raw} serves its bytes as they are`,
    );
  } finally {
    closeSync(reader);
  }
}

function adviceFor({ format, advice }: ImageFormat, ways: Ways): string {
  const serves =
    format === undefined ? [] : [`${ways.format(format)} serves that, if no guest has made it look so`];
  return [...serves, ...(advice === undefined ? [] : [advice])].join(", ");
}
