// Notes of what each qcow2 named that a guest's process got open for writing. A guest that has taken that process over
// can write all of the image, and make its header name any file of the host, which the next one to open the image would
// read, or write, for the guest. So from then on an image may name only what it named before. The directory of the
// notes is out of reach of such a process.
import { constants, mkdirSync, readFileSync, renameSync, writeFileSync, type Stats } from "node:fs";
import { open, type FileHandle } from "node:fs/promises";
import { dirname, isAbsolute, join } from "node:path";
import { codeOf, XentoolError } from "../../core/errors.ts";
import { QCOW2_HEADER_BYTES, readQcow2Header } from "../../protocol/qcow2.ts";
import { attempt } from "./attempt.ts";
import { deviceNumber } from "./host-uses.ts";
import { identify } from "./known.ts";
import { removeOldest } from "./notes.ts";
import { describeReferences, isWithin, readReferences, type Qcow2References } from "./qcow2-references.ts";

/** How many backing files are looked at below one another. QEMU follows them without end. */
const CHAIN_MAX = 200;

/** What is kept of an image. */
interface Note extends Qcow2References {
  /** Where it was, for people. */
  readonly path: string;
  /** When the file was made, or 0. The numbers of files are used again. */
  readonly birthMs: number;
}

interface Seen {
  readonly stat: Stats;
  readonly references: Qcow2References | undefined;
}

/** Where those have the notes who have `stateDir` in common: beside it, because processes in jails may write there. */
export function notesBeside(stateDir: string): string {
  return `${stateDir}.references`;
}

/**
 * What the image at `path`, which is open as `fd`, names now; undefined if that cannot be told. Throws `environment`
 * when it, or an image that it is based on, names what it did not name when it was noted.
 */
export async function expectKnownReferences(
  dir: string,
  path: string,
  fd: number,
): Promise<Qcow2References | undefined> {
  const references = await expectKnown(dir, path, `/proc/self/fd/${fd}`);
  let [above, named] = [path, references];
  for (let depth = 0; depth < CHAIN_MAX; depth++) {
    const below = named === undefined ? undefined : qcow2Below(above, named);
    if (below === undefined) break;
    [above, named] = [below, await expectKnown(dir, below, below)];
  }
  return references;
}

/** Notes what the image names that is open as `fd`. Throws when that cannot be written. */
export function noteReferences(dir: string, path: string, stat: Stats, references: Qcow2References): void {
  mkdirSync(dir, { recursive: true, mode: 0o700 });
  const note: Note = { path, birthMs: birthOf(stat), ...references };
  const at = noteOf(dir, stat);
  writeFileSync(`${at}.new`, JSON.stringify(note), { mode: 0o600 });
  renameSync(`${at}.new`, at);
  removeOldest(dir);
}

/** `name` is what leads to the file, which `path` is to people. */
async function expectKnown(dir: string, path: string, name: string): Promise<Qcow2References | undefined> {
  const seen = await look(name).catch((error: unknown) => {
    // A backing file that is missing is reported by who needs it.
    if (codeOf(error) === "ENOENT") return undefined;
    throw new XentoolError("io", `cannot read ${path}`, { path }, error);
  });
  const note = seen && readNote(noteOf(dir, seen.stat));
  if (seen === undefined || note === undefined || !isOf(note, seen.stat)) return seen?.references;
  if (seen.references !== undefined && isWithin(seen.references, note)) return seen.references;
  const now =
    seen.references === undefined
      ? "has no header of a qcow2 any more"
      : `names ${describeReferences(seen.references)}`;
  throw new XentoolError(
    "environment",
    `${path} ${now}, but named ${describeReferences(note)} when it was last opened for a guest: the guest may have ` +
      `written that itself, if it has taken its server over. If you have changed it, remove ${noteOf(dir, seen.stat)}`,
    { path },
  );
}

/** Does not wait, as for the other end of a pipe, except in another thread, for storage. */
async function look(name: string): Promise<Seen | undefined> {
  const file = await open(name, constants.O_RDONLY | constants.O_NONBLOCK);
  try {
    const stat = await file.stat();
    if (!stat.isFile() && !stat.isBlockDevice()) return undefined;
    return { stat, references: readReferences(await firstCluster(file)) };
  } finally {
    await file.close();
  }
}

/** What is behind the end of a file are zeroes to QEMU. */
async function firstCluster(file: FileHandle): Promise<Uint8Array> {
  const header = Buffer.alloc(QCOW2_HEADER_BYTES);
  await file.read(header, 0, header.length, 0);
  const { clusterBits } = readQcow2Header(header) ?? {};
  if (clusterBits === undefined) return header;
  const cluster = Buffer.alloc(2 ** clusterBits);
  await file.read(cluster, 0, cluster.length, 0);
  return cluster;
}

/** The backing file, if it is one here that may be a qcow2 itself. QEMU looks for it from where the image is. */
function qcow2Below(
  above: string,
  { backing, backingFormat = "qcow2" }: Qcow2References,
): string | undefined {
  if (backing === undefined || backingFormat !== "qcow2") return undefined;
  const name = Buffer.from(backing.replace(/^file:/, ""), "latin1").toString("utf8");
  if (/^[^/]*:/.test(name)) return undefined;
  // Not simplified: what ".." means behind a link, only the kernel knows.
  return isAbsolute(name) ? name : `${dirname(above)}/${name}`;
}

function readNote(path: string): Note | undefined {
  try {
    return JSON.parse(readFileSync(path, "utf8")) as Note;
  } catch (error) {
    if (codeOf(error) === "ENOENT") return undefined;
    throw new XentoolError(
      "environment",
      `cannot read ${path}, where it is noted what an image named`,
      { path },
      error,
    );
  }
}

/** Whether the note is of this file. Where a file system does not tell when it was made, it has to count. */
function isOf({ birthMs }: Note, stat: Stats): boolean {
  const birth = birthOf(stat);
  return birthMs === birth || birthMs === 0 || birth === 0;
}

function birthOf(stat: Stats): number {
  return stat.isBlockDevice() ? 0 : stat.birthtimeMs;
}

function noteOf(dir: string, stat: Stats): string {
  return join(dir, (volumeOf(stat) ?? identify(stat).text).replaceAll(/[^A-Za-z0-9]+/g, "-"));
}

/** A logical volume has an identifier that it keeps, and a number that is another one whenever it is activated. */
function volumeOf(stat: Stats): string | undefined {
  if (!stat.isBlockDevice()) return undefined;
  const file = `/sys/dev/block/${deviceNumber(stat.rdev)}/dm/uuid`;
  const uuid = attempt(() => readFileSync(file, "utf8").trim());
  return uuid === undefined || uuid === "" ? undefined : `volume ${uuid}`;
}
