// What this process has open, for tests that assert that nothing is left.
import { readdirSync, readlinkSync } from "node:fs";

/** What each open descriptor of this process, or of `pid`, is: a path, or what Linux calls it. */
export function openDescriptors(pid: number | "self" = "self"): string[] {
  const open: string[] = [];
  for (const fd of readdirSync(`/proc/${pid}/fd`)) {
    try {
      open.push(readlinkSync(`/proc/${pid}/fd/${fd}`));
    } catch {
      // The one that listed the directory is closed again.
    }
  }
  return open;
}
