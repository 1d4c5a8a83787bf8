// The lab's parts on disk: built once by build.sh, kept under a hash of everything they are made of, so that a
// change of the script or of its packages builds a new one and an unchanged checkout builds nothing.

import { createHash } from "node:crypto";
import { spawn } from "node:child_process";
import { once } from "node:events";
import { existsSync, mkdirSync, readdirSync, readFileSync, renameSync, rmSync } from "node:fs";
import { homedir } from "node:os";
import { join } from "node:path";
import type { Release } from "./scenario.ts";
import { Stopwatch } from "./timing.ts";

const PARTS = ["build.sh", "packages.txt"];

/** Where labs are kept: $XENLAB, else ~/.cache/xentool-xenlab. */
function cacheDirectory(): string {
  return (
    process.env.XENLAB ?? join(process.env.XDG_CACHE_HOME ?? join(homedir(), ".cache"), "xentool-xenlab")
  );
}

export interface Lab {
  readonly directory: string;
  /** What building it took; undefined when it was there. */
  readonly buildSeconds: number | undefined;
}

/**
 * The lab of a Debian release, made of what `sources` (test/xen) holds; builds it when there is none,
 * which takes three minutes, root and Debian. Throws an Error of one line when it cannot.
 */
export async function ensureLab(sources: string, release: Release): Promise<Lab> {
  const watch = new Stopwatch();
  const hash = createHash("sha256");
  for (const part of PARTS) hash.update(readFileSync(join(sources, part)));
  const cache = cacheDirectory();
  const key = `${release}-${hash.digest("hex").slice(0, 16)}`;
  const lab = join(cache, key);
  if (existsSync(lab)) return { directory: lab, buildSeconds: undefined };

  if (process.getuid?.() !== 0) {
    throw new Error(`the real-Xen lab is not in ${cache}, and building it needs root: sudo npm run test:xen`);
  }
  if (!existsSync("/etc/debian_version")) throw new Error("building the real-Xen lab needs Debian 12 or 13");
  console.error(`building the real-Xen lab in ${lab}: about three minutes, once`);
  mkdirSync(cache, { recursive: true });
  const unfinished = join(cache, `${key}.${process.pid}`);
  const build = spawn(join(sources, "build.sh"), [unfinished, release], {
    stdio: ["ignore", "inherit", "inherit"],
  });
  const [status] = await once(build, "close");
  if (status !== 0) {
    throw new Error(`building the real-Xen lab failed; see ${unfinished}/*.log, and remove that directory`);
  }
  for (const old of readdirSync(cache)) {
    if (new RegExp(`^(${release}-)?[0-9a-f]{16}$`).test(old)) rmSync(join(cache, old), { recursive: true });
  }
  renameSync(unfinished, lab);
  return { directory: lab, buildSeconds: watch.seconds };
}
