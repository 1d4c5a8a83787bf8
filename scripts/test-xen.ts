// npm run test:xen [-- NAME…]: runs the scenarios of test/xen on real Xen, in as few boots as possible, and
// reports in build/xen. Needs root once, to build the lab; see test/xen/README.md.

import { spawnSync } from "node:child_process";
import { existsSync, mkdirSync, readFileSync, rmSync } from "node:fs";
import { basename, join, resolve } from "node:path";
import { parseArgs } from "node:util";
import { buildAll } from "./build-all.ts";
import { NATIVE, prepareTarget, type Target } from "./build-target.ts";
import { boot, type BootSettings } from "../test/xen/runner/boot.ts";
import { ensureLab } from "../test/xen/runner/lab.ts";
import { reportsOf, writeReport } from "../test/xen/runner/report.ts";
import {
  ARCHITECTURE,
  chooseRuns,
  DAEMONS,
  loadRuns,
  parseRuns,
  RELEASES,
  type Release,
  type Result,
  type Run,
} from "../test/xen/runner/scenario.ts";
import type { BootTiming } from "../test/xen/runner/timing.ts";

const USAGE = `npm run test:xen [-- [OPTIONS] [NAME…]]
  NAME        a scenario, with @xenstored or @oxenstored or without, or a file; none: all but those that are run by name
  --on NAME   the lab: bookworm (Xen 4.17, the default), trixie (4.20) or arm64 (4.20 on Arm)
  --list      what there is
  --build     makes the labs of bookworm and trixie, both at once, and runs nothing
  --verbose   shows the host's console and the scenarios' logs as they come
  --keep      keeps each boot's disk images and console, in build/xen/boots
  --share DIR lets dom0 mount this directory (mount -t 9p share), for test/xen/live.sh
  --selftest  runs the lab's own tests instead: scenarios that fail, hang, leak and crash the host
XENLAB=DIR keeps the lab elsewhere than in ~/.cache/xentool-xenlab; XENLAB_PATIENCE=N multiplies time limits.`;

/** Built at once, because debootstrap keeps one processor busy. Arm's takes another emulator besides. */
const BUILT_AT_ONCE: readonly Release[] = ["bookworm", "trixie"];

/**
 * A host that does not come up is booted again: it was seen once to stop on the way, or to need more time than it had,
 * and nothing of xentool's runs before it is up.
 */
const BOOT_ATTEMPTS = 3;

/** Of the console of a host in which nothing happened: the last words, and what Xen answered to the debug keys. */
const CONSOLE_LINES = 150;

const root = resolve(import.meta.dirname, "..");
const sources = join(root, "test/xen");

async function main(): Promise<number> {
  const { values, positionals } = parseArgs({
    allowPositionals: true,
    options: {
      on: { type: "string", default: RELEASES[0] },
      list: { type: "boolean", default: false },
      build: { type: "boolean", default: false },
      keep: { type: "boolean", default: false },
      verbose: { type: "boolean", default: false },
      share: { type: "string" },
      selftest: { type: "boolean", default: false },
      help: { type: "boolean", default: false },
    },
  });
  if (values.help) {
    console.log(USAGE);
    return 0;
  }
  if (values.build) {
    await Promise.all(BUILT_AT_ONCE.map((release) => ensureLab(sources, release)));
    return 0;
  }
  const release = RELEASES.find((name) => name === values.on);
  if (release === undefined) throw new Error(`--on ${values.on} is none of ${RELEASES.join(", ")}`);
  const files = positionals.filter((name) => name.endsWith(".sh"));
  const names = positionals.filter((name) => !files.includes(name));
  const known = loadRuns(join(sources, values.selftest ? "selftest" : "scenarios"));
  const named = files.length > 0 && names.length === 0 ? [] : chooseRuns(known, names, release);
  const runs = [...named, ...files.flatMap((file) => parseRuns(resolve(file)))];
  if (values.list) {
    for (const run of positionals.length > 0 ? runs : known)
      console.log(`${run.name.padEnd(40)} ${run.summary}`);
    return 0;
  }
  const lab = await ensureLab(sources, release);
  const target = prepareTarget(ARCHITECTURE[release]);
  buildAll(target);
  const programs = buildPrograms(target, lab.directory);
  const reports = reportsOf(root, release);
  rmSync(reports, { recursive: true, force: true });
  const { results, boots } = await runAll(runs, (number) => ({
    release,
    lab: lab.directory,
    root,
    built: (file) => builtFor(target, file),
    sources,
    programs,
    work: join(reports, "boots", String(number)),
    logs: join(reports, "logs"),
    console: join(reports, "logs", `boot-${number}.log`),
    patience: Number(process.env.XENLAB_PATIENCE ?? 1),
    verbose: values.verbose,
    share: values.share,
  }));
  if (!values.keep) rmSync(join(reports, "boots"), { recursive: true, force: true });
  const versions = readFileSync(join(lab.directory, "versions"), "utf8");
  console.log(writeReport(reports, { release, versions, buildSeconds: lab.buildSeconds, boots }, results));
  return values.selftest
    ? judgeSelftest(results)
    : Number(results.some(({ verdict }) => verdict !== "passed"));
}

/**
 * Boots until every run has a result: once for each daemon, again after a run that took the host down, and again, with
 * more time, when it did not come up.
 */
async function runAll(
  runs: readonly Run[],
  settingsOf: (boot: number) => BootSettings,
): Promise<{ results: Result[]; boots: BootTiming[] }> {
  const results: Result[] = [];
  const boots: BootTiming[] = [];
  for (const run of runs) {
    const missing = run.files.find((file) => !existsSync(join(root, file)));
    if (missing !== undefined) results.push(notRun(run, `${missing} is missing`));
  }
  for (const daemon of DAEMONS) {
    let waiting = runs.filter(
      (run) => run.daemon === daemon && !results.some((result) => result.run === run),
    );
    for (let attempt = 1; waiting.length > 0;) {
      const settings = settingsOf(boots.length);
      for (const directory of [settings.work, settings.logs]) mkdirSync(directory, { recursive: true });
      console.error(`booting Xen with ${daemon}: ${waiting.map((run) => run.name).join(" ")}`);
      const { results: done, timing } = await boot(settings, daemon, waiting, attempt);
      boots.push(timing);
      results.push(...done);
      waiting = waiting.filter((run) => !done.some((result) => result.run === run));
      if (timing.upSeconds === undefined || timing.endedAfter !== undefined)
        console.error(whereItStood(settings.console, timing));
      if (done.length > 0) {
        attempt = 1;
      } else if (++attempt > BOOT_ATTEMPTS) {
        const why = `the host did not come up in ${BOOT_ATTEMPTS} boots: see ${settings.console}`;
        results.push(...waiting.map((run) => notRun(run, why)));
        break;
      }
    }
  }
  return { results, boots };
}

/** Where a host stood that did not come up, or in which nothing happened any more. */
function whereItStood(console: string, { seconds, upSeconds, endedAfter }: BootTiming): string {
  const what = upSeconds === undefined ? "did not come up" : "went silent";
  const end = endedAfter === undefined ? "it ended" : `ended, processor ${endedAfter.toFixed(0)} s`;
  const said = readFileSync(console, "utf8").trimEnd().split("\n").slice(-CONSOLE_LINES).join("\n");
  return `the host ${what}: ${end} after ${seconds.toFixed(0)} s; its console says last\n${said.replace(/^/gm, "    | ")}`;
}

function notRun(run: Run, message: string): Result {
  return { run, verdict: "not run", seconds: 0, message };
}

/** Where a file that scenarios name lies when it is built for `target`. */
function builtFor({ executable, tree }: Target, file: string): string {
  if (file === NATIVE.executable) return executable;
  return file.startsWith("build/") ? join(tree, file) : file;
}

/** The C programs that scenarios use in dom0 and in guests; where they are. Those of Arm use the lab's libraries. */
function buildPrograms({ tree, cmakeOptions }: Target, lab: string): string {
  const build = join(root, tree, "build/xen-programs", basename(lab));
  const libraries = join(lab, "libraries");
  const prefix = existsSync(libraries) ? [`-DCMAKE_PREFIX_PATH=${libraries}`] : [];
  for (const args of [
    ["-S", join(sources, "programs"), "-B", build, ...cmakeOptions, ...prefix],
    ["--build", build],
  ]) {
    const done = spawnSync("cmake", args, { encoding: "utf8" });
    if (done.status !== 0) {
      throw new Error(`building test/xen/programs: ${done.error?.message ?? done.stdout + done.stderr}`);
    }
  }
  return join(build, "bin");
}

/** The lab's own tests are right when each ended as its `expect:` says. */
function judgeSelftest(results: readonly Result[]): number {
  let wrong = 0;
  for (const { run, verdict, message } of results) {
    const said = message === "" ? verdict : `${verdict}: ${message}`;
    if (run.expect?.test(said)) continue;
    wrong++;
    console.log(`selftest ${run.name}: '${said}' is not as expected: ${run.expect?.source}`);
  }
  console.log(`selftest: ${results.length - wrong} as expected, ${wrong} not`);
  return Number(wrong > 0);
}

try {
  process.exitCode = await main();
} catch (error) {
  console.error(`test:xen: ${error instanceof Error ? error.message : String(error)}`);
  process.exitCode = 1;
}
