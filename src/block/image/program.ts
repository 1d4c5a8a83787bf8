// An image that a program opens for us and serves by NBD. We lock its file as any image, except for QEMU's locks, which
// the program takes itself. It inherits our lock, so that nobody gets the image while anything of the program lives.
import { closeSync, fdatasync, fstatSync } from "node:fs";
import { stat } from "node:fs/promises";
import { resolve } from "node:path";
import { promisify } from "node:util";
import { unlessAborted } from "../../core/deadline.ts";
import { describeError, XentoolError } from "../../core/errors.ts";
import { moduleLogger } from "../../core/log.ts";
import {
  formatCommand,
  isLocalImage,
  STORAGE_DAEMON,
  viaCommand,
  type ProgramCommand,
  type ProgramFormat,
} from "../program/commands.ts";
import { PAGE_SIZE } from "../../core/types.ts";
import { allocateMemory } from "../../native/memory.ts";
import { IO_READ, performIo } from "../../native/reactor.ts";
import { NbdProgram } from "../program/program.ts";
import { NO_SUCH_EXPORT } from "../targets/nbd/handshake.ts";
import type { InPlace } from "../image.ts";
import { claimFor } from "./claim.ts";
import { claimExport } from "./claim-export.ts";
import { physicalDevice } from "./host-uses.ts";
import { identify, type ImageIdentity, noteOpened, noteUnused } from "./known.ts";
import { openNbdImage } from "./nbd.ts";
import type { OpenedImage } from "./opened.ts";
import { COMMAND_WAYS, openClaimed, type Ways } from "./open.ts";
import type { Qcow2References } from "./qcow2-references.ts";
import { expectKnownReferences, noteReferences } from "./reference-notes.ts";

const logger = moduleLogger("block");

/** How an image that we cannot read ourselves is opened. */
export type Opener =
  | { readonly format: ProgramFormat; readonly keyFile?: string | undefined }
  /** A command that gets a listening socket. */
  | { readonly via: string };

export interface ProgramImageOptions {
  readonly readOnly: boolean;
  readonly direct: boolean;
  readonly shared: boolean;
  readonly sectorSizeBytes: number;
  /** To the program, at most. */
  readonly connections?: number | undefined;
  /** Where claims to images that are not files here are kept. */
  readonly claimsDir: string;
  /** Where it is noted what qcow2 images name. */
  readonly notesDir: string;
  /** False: a qcow2 is read and written by its daemon alone. */
  readonly inPlace?: boolean | undefined;
  /** Where the program is to listen. */
  readonly socket: string;
  /** The disk it is opened for. */
  readonly user: string;
  readonly ways?: Ways;
  /** False: discard is not offered to the guest. */
  readonly discard?: boolean;
  /** Ends the wait for the program. */
  readonly stop?: AbortSignal;
}

/** How a device's keys name such an image: "qcow2:/images/a.qcow2". */
function programImageName(source: string, opener: Opener): string {
  return `${"format" in opener ? opener.format : "via"}:${isLocal(source, opener) ? resolve(source) : source}`;
}

/**
 * Starts the program and waits until it has opened the image. Throws as `openImage` does, and `io` with the program's
 * last words when it fails. Disposing of the result ends the program.
 */
export async function openProgramImage(
  source: string,
  opener: Opener,
  options: ProgramImageOptions,
): Promise<OpenedImage> {
  const { readOnly, sectorSizeBytes, connections, socket, user, discard = true } = options;
  const isFile = isLocal(source, opener);
  const path = isFile ? resolve(source) : source;
  const command = await commandOf(path, opener, options);
  await using undo = new AsyncDisposableStack();
  const held = isFile ? claimFile(path, opener, options, undo) : claimOther(path, opener, options, undo);
  const name = "format" in opener ? STORAGE_DAEMON : "the command of --via";
  const notesDir = isQcow2(opener) ? options.notesDir : undefined;
  const references = await unlessAborted(referencesOf(path, held[0], notesDir), options.stop);
  const claimed = isFile && held[0] !== undefined ? identify(fstatSync(held[0])) : undefined;
  const whyNot = claimed === undefined ? undefined : whyAnother(path, claimed, held[0], notesDir);
  const program = new NbdProgram({ name, user, command, socket, held, whyNot });
  undo.defer(() => program.close());
  const how = { readOnly, sectorSizeBytes, connections, ways: options.ways };
  const opening = openNbdImage(program.uri, { ...how, name: nameOf(path, opener) }).catch(
    (error: unknown) => {
      throw inUsersWords(error, path, name);
    },
  );
  const image = await unlessAborted(program.opened(opening), options.stop);
  if (image === undefined) throw new XentoolError("cancelled", `stopped before ${name} had opened ${path}`);
  // Until now another image may have come to the path after we had claimed the first one there.
  const another = claimed === undefined ? undefined : await whyMoved(path, claimed);
  if (another !== undefined) throw new XentoolError("io", another);
  const inPlace = placeOf(held[0], path, references, options, image.seen.minBlockBytes);
  if (inPlace === undefined && isQcow2(opener) && !readOnly)
    await unlessAborted(flushFormer(path, held[0]), options.stop);
  const info = { ...image.info, canDiscard: image.info.canDiscard && discard };
  const kept = undo.move();
  return {
    image: {
      ...image,
      info,
      path: programImageName(source, opener),
      device: deviceOf(held[0]),
      identity: claimed?.text,
      isOurs: true,
      inPlace,
    },
    handedOver: inPlace === undefined ? [] : [inPlace.fd],
    dial: (anew) => program.dial(anew),
    reportTo: (onTrouble) => program.reportTo(onTrouble),
    [Symbol.asyncDispose]: () => kept.disposeAsync(),
  };
}

/** Our locks on the file or device, which `undo` gives up. */
function claimFile(
  path: string,
  opener: Opener,
  { readOnly, shared, direct, inPlace = true, user, ways = COMMAND_WAYS }: ProgramImageOptions,
  undo: AsyncDisposableStack,
): readonly number[] {
  if (shared) return [];
  const claim = claimFor(readOnly, shared);
  const isDirect = direct && inPlace && isQcow2(opener);
  const { fd, alsoHeld } = openClaimed(path, claim, isDirect, waysOf(opener, ways), "lent");
  const held = [fd, ...alsoHeld];
  undo.defer(() => held.forEach(closeHeld));
  noteOpened(fd, user);
  return held;
}

/** What a command makes of its source is known to nobody: the same command for the same source is the same disk. */
function claimOther(
  source: string,
  opener: Opener,
  { readOnly, shared, user, ways = COMMAND_WAYS, claimsDir }: ProgramImageOptions,
  undo: AsyncDisposableStack,
): readonly number[] {
  const key = "format" in opener ? `${opener.format} ${source}` : `via ${opener.via}\0${source}`;
  const name = "format" in opener ? programImageName(source, opener) : nameOf(source, opener);
  const claim = claimFor(readOnly, shared);
  return undo.use(
    claimExport(claimsDir, [key], { name, claim, user, ways: waysOf(opener, ways), isPrograms: true }),
  ).fds;
}

async function commandOf(
  path: string,
  opener: Opener,
  { shared, readOnly, direct }: ProgramImageOptions,
): Promise<ProgramCommand> {
  if ("via" in opener) return viaCommand(opener.via, path);
  const { format, keyFile } = opener;
  if (shared) throw new XentoolError("usage", `${path}: two writers would ruin a ${format} image; drop w!`);
  return formatCommand(format, path, { readOnly, direct, keyFile });
}

/** Why the program must not be started, or started again. */
function whyAnother(
  path: string,
  claimed: ImageIdentity,
  fd: number | undefined,
  notesDir: string | undefined,
): () => Promise<string | undefined> {
  return async () =>
    (await whyMoved(path, claimed)) ?? referencesOf(path, fd, notesDir).then(() => undefined, describeError);
}

/**
 * The program opens the image by its path, whenever it is started. Another file there must not get what a guest wrote
 * to the one that is claimed. It is looked at without waiting, because storage may hang.
 */
async function whyMoved(path: string, claimed: ImageIdentity): Promise<string | undefined> {
  const now = await stat(path).catch(() => undefined);
  if (now === undefined) return `${path} is gone`;
  return identify(now).text === claimed.text
    ? undefined
    : `${path} is another image than the one that is served`;
}

/** What a qcow2 names, if that can be told. Throws when a guest may have named it. */
async function referencesOf(
  path: string,
  fd: number | undefined,
  notesDir: string | undefined,
): Promise<Qcow2References | undefined> {
  if (fd === undefined || notesDir === undefined) return undefined;
  return expectKnownReferences(notesDir, path, fd);
}

/**
 * Makes durable what a former server wrote to a qcow2 in place. The daemon would not when the guest asks for it: it
 * flushes nothing before it has written something itself.
 */
async function flushFormer(path: string, fd: number | undefined): Promise<void> {
  if (fd === undefined) return;
  await promisify(fdatasync)(fd).catch((error: unknown) => {
    throw new XentoolError("io", `cannot flush ${path}`, { path }, error);
  });
}

/**
 * Our way to the bytes that the storage daemon has put in place in a qcow2. None if the daemon has to make whole blocks
 * of the guest's sectors: then it alone may transfer them. Whoever gets it can make the image name other files, so
 * those that it names now are noted.
 */
function placeOf(
  fd: number | undefined,
  path: string,
  references: Qcow2References | undefined,
  { sectorSizeBytes, inPlace = true, readOnly, notesDir }: ProgramImageOptions,
  minBlockBytes: number,
): InPlace | undefined {
  if (fd === undefined || references === undefined || !inPlace || minBlockBytes > sectorSizeBytes)
    return undefined;
  using page = allocateMemory(PAGE_SIZE);
  if (performIo(fd, false, IO_READ, 0, sectorSizeBytes, page.address) < 0) return undefined;
  const its = fstatSync(fd);
  try {
    if (!readOnly) noteReferences(notesDir, path, its, references);
  } catch (error) {
    logger.warn(
      `${path} is left to its daemon, because it cannot be noted what it names: ${describeError(error)}`,
    );
    return undefined;
  }
  return { fd, isBlockDevice: its.isBlockDevice() };
}

function isQcow2(opener: Opener): boolean {
  return "format" in opener && opener.format === "qcow2";
}

function isLocal(source: string, opener: Opener): boolean {
  return "format" in opener ? opener.format !== "rbd" : isLocalImage(source);
}

function waysOf(opener: Opener, ways: Ways): Ways {
  return "format" in opener ? { ...ways, shared: undefined } : ways;
}

/** For messages. */
function nameOf(path: string, opener: Opener): string {
  return "format" in opener ? path : `${path} with this --via`;
}

/** Where the program serves, and that it serves by NBD, is known to nobody but us. */
function inUsersWords(error: unknown, path: string, program: string): unknown {
  if (!(error instanceof XentoolError)) return error;
  if (error.context["reason"] === NO_SUCH_EXPORT)
    return new XentoolError("environment", `${program} must serve ${path} under the empty name`, {}, error);
  return error.kind === "io"
    ? new XentoolError("io", `${program} does not serve ${path}`, {}, error.cause)
    : error;
}

function deviceOf(fd: number | undefined): string | undefined {
  return fd === undefined ? undefined : physicalDevice(fstatSync(fd));
}

function closeHeld(fd: number): void {
  noteUnused(fd);
  closeSync(fd);
}
