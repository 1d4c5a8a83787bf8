// A scenario: a bash file that runs in dom0, with a header of comments. The first says what it shows; then
// `# key: value` lines: xenstored (which daemons it runs under), on (which releases of Debian), limit (seconds), files
// (of the repository, taken along), run (`by name`: only when it is named, as what measures, or what others show, too),
// expect (self-tests only: what the report must say of it).

import { readdirSync, readFileSync } from "node:fs";
import { basename, join } from "node:path";

/** The two implementations of xenstore's server that Debian's Xen has. */
export const DAEMONS = ["xenstored", "oxenstored"] as const;
export type Daemon = (typeof DAEMONS)[number];

/**
 * The labs: the releases of Debian with Xen 4.17 and 4.20, and the latter's on Arm. The first is the one that is meant.
 */
export const RELEASES = ["bookworm", "trixie", "arm64"] as const;
export type Release = (typeof RELEASES)[number];

/** What each lab's programs are built for, as scripts/build-target.ts calls it. */
export const ARCHITECTURE: Readonly<Record<Release, "x64" | "arm64">> = {
  bookworm: "x64",
  trixie: "x64",
  arm64: "arm64",
};

/** One scenario under one xenstore daemon. */
export interface Run {
  /** File name without .sh, and @daemon when there is a choice; the name of its directory of logs. */
  readonly name: string;
  readonly path: string;
  readonly summary: string;
  readonly daemon: Daemon;
  /** Where it runs unless it is named. */
  readonly releases: readonly Release[];
  readonly limitSeconds: number;
  readonly files: readonly string[];
  readonly byName: boolean;
  readonly expect: RegExp | undefined;
}

/** `not run` has a reason in its message, as `failed` and `hung` have. */
export interface Result {
  readonly run: Run;
  readonly verdict: "passed" | "failed" | "hung" | "not run";
  readonly seconds: number;
  /** What the emulator used meanwhile, if that is known. */
  readonly processorSeconds?: number | undefined;
  readonly message: string;
}

/** Every run of the scenarios in `directory`, by name. Throws on a header that does not say what it must. */
export function loadRuns(directory: string): Run[] {
  return readdirSync(directory)
    .filter((file) => file.endsWith(".sh"))
    .toSorted()
    .flatMap((file) => parseRuns(join(directory, file)));
}

/** The runs of one file: one for each daemon that its header names. */
export function parseRuns(path: string): Run[] {
  const header = /^(#.*\n)+/.exec(readFileSync(path, "utf8"))?.[0] ?? "";
  const lines = header.split("\n").map((line) => line.replace(/^#\s?/, ""));
  const value = (key: string) =>
    lines
      .find((line) => line.startsWith(`${key}:`))
      ?.slice(key.length + 1)
      .trim();

  const limitSeconds = Number(value("limit"));
  if (!(limitSeconds > 0)) throw new Error(`${path}: the header needs a line '# limit: SECONDS'`);
  const choice = <T extends string>(key: string, known: readonly [T, ...T[]]): T[] =>
    (value(key) ?? known[0]).split(/\s+/).map((name) => {
      const chosen = known.find((one) => one === name);
      if (chosen === undefined) throw new Error(`${path}: ${key}: ${name} is none of ${known.join(", ")}`);
      return chosen;
    });
  const daemons = choice("xenstored", DAEMONS);
  const releases = choice("on", RELEASES);
  const expect = value("expect");
  const stem = basename(path, ".sh");
  return daemons.map((daemon) => ({
    name: daemons.length > 1 ? `${stem}@${daemon}` : stem,
    path,
    summary: lines[0] ?? "",
    daemon,
    releases,
    limitSeconds,
    files: (value("files") ?? "").split(/\s+/).filter((file) => file !== ""),
    byName: value("run") === "by name",
    expect: expect === undefined ? undefined : new RegExp(`^${expect}`),
  }));
}

/**
 * The runs that `names` (with or without @daemon) choose; without names all of this release but those that are run by
 * name only. Throws on a name that chooses none.
 */
export function chooseRuns(runs: readonly Run[], names: readonly string[], release: Release): Run[] {
  const matches = (run: Run, name: string) => run.name === name || run.name.split("@")[0] === name;
  const unknown = names.find((name) => !runs.some((run) => matches(run, name)));
  if (unknown !== undefined) throw new Error(`there is no scenario '${unknown}'; --list shows them`);
  return runs.filter((run) =>
    names.length === 0
      ? !run.byName && run.releases.includes(release)
      : names.some((name) => matches(run, name)),
  );
}
