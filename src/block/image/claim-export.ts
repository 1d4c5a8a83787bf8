// Our claim to a disk that is in no file here: an NBD export, an image of Ceph's, whatever a program opens for us. It
// has no locks that others respect, so it has a file in a directory that every xentool on this host uses, locked as an
// image would be. The locks end with their descriptors, so kill -9 leaves none, and the files that it leaves are
// removed by whoever gives up a claim next, or by a sweep.
import { lookup } from "node:dns/promises";
import {
  closeSync,
  constants,
  fstatSync,
  mkdirSync,
  openSync,
  readdirSync,
  realpathSync,
  rmSync,
} from "node:fs";
import { join } from "node:path";
import { XentoolError } from "../../core/errors.ts";
import { isStill } from "../../native/lock-file.ts";
import type { NbdAddress } from "../targets/nbd/uri.ts";
import { attempt, tryStat } from "./attempt.ts";
import { takeLocks, type Claim } from "./claim.ts";
import { noteOpened, noteUnused } from "./known.ts";
import { heldError, type Ways } from "./open.ts";

const SUFFIX = ".export";

export interface ExportClaim extends Disposable {
  /** Whoever has these open holds the claim, too. */
  readonly fds: readonly number[];
}

export interface ClaimOptions {
  /** As the user named it. */
  readonly name: string;
  readonly claim: Claim;
  /** The disk it is for, named to whoever else wants it. */
  readonly user: string;
  readonly ways: Ways;
  /** A program of ours has its descriptors, too, which is killed before the claim is given up. */
  readonly isPrograms?: boolean;
}

/**
 * Claims the disk that is known by each of `keys`. Throws `environment`, with HELD as the reason, when somebody else's
 * claim to one of them is in the way.
 */
export function claimExport(dir: string, keys: readonly string[], options: ClaimOptions): ExportClaim {
  using undo = new DisposableStack();
  const fds = keys.map((key) => {
    const path = join(
      dir,
      `${new Bun.CryptoHasher("sha256").update(key).digest("hex").slice(0, 32)}${SUFFIX}`,
    );
    const fd = lock(dir, path, options);
    noteOpened(fd, options.user);
    undo.defer(() => {
      // What is left of a killed program may have it open for a moment more, and a process of a guest, which is not to
      // be trusted, for as long as it may use the export.
      if (options.isPrograms === true) removeIfFree(fd, path);
      noteUnused(fd);
      closeSync(fd);
      if (options.isPrograms !== true) removeUnheld(path);
    });
    return fd;
  });
  const held = undo.move();
  const release = (): void => {
    held.dispose();
    removeFreeClaims(dir);
  };
  return { fds, [Symbol.dispose]: release };
}

/**
 * By what an export is known, as far as this host can tell: a server by its name and by all of its addresses, a socket
 * by its path and by what it is, because another one may soon be at the same path.
 */
export async function keysOfExport({ address, port, exportName }: NbdAddress): Promise<readonly string[]> {
  const places = port === undefined ? socketPlaces(address) : await hostPlaces(address, port);
  return [...new Set(places)].map((place) => `nbd ${place} ${exportName}`);
}

function socketPlaces(path: string): readonly string[] {
  const stat = tryStat(path);
  const real = attempt(() => realpathSync(path)) ?? path;
  // Numbers of files are used again.
  return stat === undefined ? [real] : [real, `socket ${stat.dev} ${stat.ino} ${stat.birthtimeMs}`];
}

async function hostPlaces(host: string, port: number): Promise<readonly string[]> {
  // That it has none is said where it is connected to.
  const found = await lookup(host, { all: true }).catch(() => []);
  const numbers = found.map(({ address, family }) => (family === 6 ? shortest(address) : address));
  return [host.toLowerCase(), ...numbers].map((at) => `${at} port ${port}`);
}

/** There is more than one way to write an address of IPv6. */
function shortest(address: string): string {
  return attempt(() => new URL(`http://[${address}]`).hostname) ?? address;
}

function lock(dir: string, path: string, { name, claim, ways }: ClaimOptions): number {
  try {
    mkdirSync(dir, { recursive: true, mode: 0o755 });
    for (;;) {
      const fd = openSync(path, constants.O_RDWR | constants.O_CREAT, 0o600);
      const isTaken = !takeLocks(fd, path, claim, ways.shared);
      if (!isTaken && isStill(fd, path)) return fd;
      const error = isTaken ? heldError(path, fstatSync(fd), ways, fd, name) : undefined;
      closeSync(fd);
      // Without an error, its last owner removed it meanwhile.
      if (error !== undefined) throw error;
    }
  } catch (error) {
    if (error instanceof XentoolError) throw error;
    throw new XentoolError("environment", `cannot lock ${path}`, { path }, error);
  }
}

/** Removes the files that killed owners left. */
export function removeFreeClaims(dir: string): void {
  for (const name of attempt(() => readdirSync(dir)) ?? []) {
    if (name.endsWith(SUFFIX)) removeUnheld(join(dir, name));
  }
}

function removeUnheld(path: string): void {
  const fd = attempt(() => openSync(path, constants.O_RDWR));
  if (fd === undefined) return;
  removeIfFree(fd, path);
  closeSync(fd);
}

/** Removes the file that `fd` is unless somebody has locked it who has opened it apart from us. */
function removeIfFree(fd: number, path: string): void {
  if (takeLocks(fd, path, "write", undefined) && isStill(fd, path)) rmSync(path, { force: true });
}
