// Temporary directories of tests. One that a test forgets fails the run at its end.
import { mkdtempSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";

const made = new Set<string>();

/** A new, empty directory; `removeDirectory` takes it away. Short enough for the path of a socket. */
export function temporaryDirectory(): string {
  const directory = mkdtempSync(join(tmpdir(), "xentool-test-"));
  made.add(directory);
  return directory;
}

/** Removes a directory of `temporaryDirectory` with everything in it. */
export function removeDirectory(directory: string): void {
  made.delete(directory);
  rmSync(directory, { recursive: true });
}

/** The directories that nobody has removed; they are gone afterwards. */
export function forgottenDirectories(): string[] {
  const forgotten = [...made];
  for (const directory of forgotten) removeDirectory(directory);
  return forgotten;
}
