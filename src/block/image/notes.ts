// Notes about images, a file for each in a directory. Nobody tells when an image is gone for good, so there is a limit.
import { readdirSync, rmSync, statSync } from "node:fs";
import { join } from "node:path";
import { attempt } from "./attempt.ts";

/** Notes that are kept in a directory. */
export const NOTES_MAX = 4096;

/** Removes the notes that have not been written for longest, if there are too many. */
export function removeOldest(dir: string): void {
  const paths = readdirSync(dir).map((name) => join(dir, name));
  if (paths.length <= NOTES_MAX) return;
  const age = (path: string): number => attempt(() => statSync(path).mtimeMs) ?? 0;
  const byAge = paths.map((path) => ({ path, age: age(path) })).toSorted((a, b) => a.age - b.age);
  for (const { path } of byAge.slice(0, paths.length - NOTES_MAX)) rmSync(path, { force: true });
}
