// A lock file: held while its owner lives, so that kill -9 leaves it to the next one. The owner may store a few words
// in the file, which remain if it is killed.
import {
  closeSync,
  fstatSync,
  ftruncateSync,
  mkdirSync,
  openSync,
  readFileSync,
  rmSync,
  statSync,
  writeSync,
} from "node:fs";
import { dirname } from "node:path";
import { XentoolError } from "../core/errors.ts";
import { check, errnoName, shim } from "./shim.ts";

export interface LockFile {
  /** Holds the lock until its last copy is closed. */
  readonly fd: number;
  /** What the last owner wrote, if it ended without releasing the lock; otherwise empty. */
  readonly found: string;
  /** Replaces the file's contents with `text`. */
  write(text: string): void;
  /** Releases the lock and removes the file. */
  release(): void;
}

/**
 * Takes the lock at `path`, creating its directory. Returns undefined while another process holds it. Throws
 * `environment` when it cannot be created.
 */
export function takeLock(path: string): LockFile | undefined {
  try {
    mkdirSync(dirname(path), { recursive: true, mode: 0o755 });
    return tryLock(path);
  } catch (error) {
    if (error instanceof XentoolError) throw error;
    throw new XentoolError("environment", `cannot lock ${path}`, { path }, error);
  }
}

function tryLock(path: string): LockFile | undefined {
  for (;;) {
    const fd = openSync(path, "a+", 0o644);
    const error = shim.xt_file_lock(fd, 1);
    if (error === 0 && isStill(fd, path)) return lockFile(fd, path);
    closeSync(fd);
    if (error === 0) continue; // its owner removed it meanwhile
    if (errnoName(error) === "EAGAIN") return undefined;
    check(error, `lock ${path}`, "environment");
  }
}

function lockFile(fd: number, path: string): LockFile {
  return {
    fd,
    found: readFileSync(fd, "utf8"),
    write(text) {
      ftruncateSync(fd);
      writeSync(fd, text);
    },
    release() {
      rmSync(path, { force: true });
      closeSync(fd);
    },
  };
}

/** Whether the file at `path` is the one that `fd` is: its last owner may have removed that meanwhile. */
export function isStill(fd: number, path: string): boolean {
  return statSync(path, { throwIfNoEntry: false })?.ino === fstatSync(fd).ino;
}
