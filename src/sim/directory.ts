// The directory of a simulated host: claims an empty one, recognises which files in it are a host's, and removes only
// those.
import {
  chmodSync,
  chownSync,
  existsSync,
  fstatSync,
  lstatSync,
  mkdirSync,
  mkdtempSync,
  readdirSync,
  readFileSync,
  readlinkSync,
  realpathSync,
  rmdirSync,
  rmSync,
  statSync,
} from "node:fs";
import { tmpdir } from "node:os";
import { basename, join, resolve } from "node:path";
import { codeOf, XentoolError } from "../core/errors.ts";
import { isProcessAlive } from "../core/process-alive.ts";

export const FORMAT_VERSION = 1;

/**
 * The group of processes that use a host of root's and are not root: those of `blkback watch` in their jails. Its
 * number is between the ones that they have elsewhere and those of containers.
 */
const SHARING_GROUP = 98_304;

/** Shared by processes of all domains. It can be created only once; its creator owns the directory. */
const HOST_MEMORY = "host";
/** The log of a host that runs in the background. */
export const HOST_LOG = "host.log";
export const HOST_DESCRIPTION = "host.json";
/** Xen's libraries for programs (programs.ts), perhaps a link to a temporary directory with the prefix below. */
export const HOST_LIBRARIES = "lib";
export const LIBRARIES_ELSEWHERE = "xentool-sim-lib-";
const DIRECTORY_PREFIX = "xentool-sim-";
const HOST_FILES: ReadonlySet<string> = new Set([
  HOST_MEMORY,
  "host.sock",
  HOST_DESCRIPTION,
  HOST_LOG,
  HOST_LIBRARIES,
  "blkback", // of processes that serve disks
  "blkback.references", // of what they serve
  "blkfront", // of processes that use disks
]);

export interface HostDirectory {
  readonly path: string;
  /** Whether it did not exist before. */
  readonly isNew: boolean;
}

/**
 * An empty directory for a host, by default a new one in /dev/shm. A directory that contains anything may belong to
 * someone and is left alone: that fails with `environment`, as does one that cannot be created.
 */
export function makeDirectory(dir: string | undefined): HostDirectory {
  try {
    if (dir === undefined) {
      const path = mkdtempSync(join(defaultParent(), DIRECTORY_PREFIX));
      letIn(path);
      return { path, isNew: true };
    }
    const isNew = mkdirSync(resolve(dir), { recursive: true, mode: 0o700 }) !== undefined;
    if (readdirSync(dir).some((name) => name !== HOST_LOG || !isOwnLog(join(dir, name)))) throw notEmpty(dir);
    letIn(dir);
    return { path: realpathSync(dir), isNew };
  } catch (error) {
    if (error instanceof XentoolError) throw error;
    throw new XentoolError("environment", `there can be no simulated host in ${dir}`, {}, error);
  }
}

/** The directory is for us alone, and for that group if we may give it to one. */
function letIn(dir: string): void {
  chmodSync(dir, 0o700);
  try {
    chownSync(dir, process.geteuid?.() ?? 0, SHARING_GROUP);
  } catch {
    return; // We are not root, or have no such group here.
  }
  chmodSync(dir, 0o750);
}

function notEmpty(dir: string): XentoolError {
  const what = existsSync(join(dir, HOST_MEMORY)) ? ": it holds a simulated host" : "";
  return new XentoolError("environment", `${dir} is not empty${what}; choose another directory`, { dir });
}

/** A background host finds the log that it was started with; any other log is another host's. */
function isOwnLog(path: string): boolean {
  const [log, stderr] = [statSync(path), fstatSync(2)];
  return log.dev === stderr.dev && log.ino === stderr.ino;
}

/** Names of the files that a host created in its directory and has not removed yet. */
export function hostFilesIn(dir: string): string[] {
  try {
    return readdirSync(dir).filter((name) => HOST_FILES.has(name) || /^dom\d+$/.test(name));
  } catch (error) {
    if (codeOf(error) === "ENOENT") return []; // gone, perhaps just now
    throw error;
  }
}

/** Removes what a host created in its directory. Call it only for a directory that was a host's. */
export function removeHostFiles(dir: string): void {
  removeLibrariesElsewhere(join(dir, HOST_LIBRARIES));
  for (const name of hostFilesIn(dir)) rmSync(join(dir, name), { recursive: true, force: true });
}

function removeLibrariesElsewhere(link: string): void {
  if (lstatSync(link, { throwIfNoEntry: false })?.isSymbolicLink() !== true) return;
  const place = readlinkSync(link);
  if (basename(place).startsWith(LIBRARIES_ELSEWHERE)) rmSync(place, { recursive: true, force: true });
}

/** Removes a directory unless it contains something. */
export function removeIfEmpty(dir: string): void {
  try {
    rmdirSync(dir);
  } catch (error) {
    if (!["ENOENT", "ENOTEMPTY"].includes(codeOf(error))) throw error;
  }
}

/** Whether `dir` holds the remains of a host whose process is gone. Anything else is not ours to remove. */
export function holdsDeadHost(dir: string): boolean {
  return existsSync(join(dir, HOST_MEMORY)) && isGone(hostPid(dir));
}

/** The process of the host in `dir`, dead or alive. Undefined if there is no host of this version that we may see. */
export function hostPid(dir: string): number | undefined {
  try {
    const text = readFileSync(join(dir, HOST_DESCRIPTION), "utf8");
    const { version, pid } = JSON.parse(text) as { version?: unknown; pid?: unknown };
    return version === FORMAT_VERSION && typeof pid === "number" ? pid : undefined;
  } catch {
    return undefined;
  }
}

/** Directories that may hold a host: those with a socket in use, all in the default place, and `named`. */
export function candidateDirectories(named: string | undefined): string[] {
  const sockets = readFileSync("/proc/net/unix", "utf8").matchAll(/ (\/.*)\/host\.sock$/gm);
  const usual = readdirSync(defaultParent()).filter((name) => name.startsWith(DIRECTORY_PREFIX));
  const all = [...sockets]
    .map(([, dir = ""]) => dir)
    .concat(usual.map((name) => join(defaultParent(), name)));
  return [...new Set(named === undefined || named === "" ? all : [...all, named])].toSorted();
}

/** The default place of hosts' directories. */
function defaultParent(): string {
  return existsSync("/dev/shm") ? "/dev/shm" : tmpdir();
}

function isGone(pid: number | undefined): boolean {
  if (pid === undefined || !Number.isInteger(pid) || pid <= 0 || pid >= 2 ** 31) return false;
  return !isProcessAlive(pid);
}
