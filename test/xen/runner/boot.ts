// One boot: a virtual machine in which real Xen and a Linux dom0 run a list of scenarios. The payload goes in
// and comes back as an ext4 image, so that nothing needs a network or root. What dom0 says on the serial
// console is the only thing that is followed live: `XENLAB: begin NAME`, `XENLAB: end NAME VERDICT SECONDS`.

import { spawn, spawnSync } from "node:child_process";
import {
  copyFileSync,
  cpSync,
  createWriteStream,
  existsSync,
  mkdirSync,
  readFileSync,
  writeFileSync,
} from "node:fs";
import { basename, dirname, join } from "node:path";
import { createInterface } from "node:readline";
import { machineOf, type MachineSettings } from "./machine.ts";
import type { Daemon, Result, Run } from "./scenario.ts";
import { type BootTiming, processorSeconds, Stopwatch } from "./timing.ts";

/** Where things are, and how long to wait. */
export interface BootSettings extends MachineSettings {
  /** The repository: `files:` of the scenarios are relative to it. */
  readonly root: string;
  /** test/xen. */
  readonly sources: string;
  /** Programs built for dom0, all taken along. */
  readonly programs: string;
  /** A directory for this boot alone. */
  readonly work: string;
  /** Where a scenario's logs go: logs/NAME/. */
  readonly logs: string;
  /** The file that keeps what Xen and dom0 say on the serial console. */
  readonly console: string;
  /** Multiplies every time limit. */
  readonly patience: number;
  readonly verbose: boolean;
  /** Where a file of `files:` is found: what is built differs between architectures. */
  readonly built: (file: string) => string;
}

/** Until the host is up, in the first attempt; each later one has as much again. */
const BOOT_SECONDS = 180;
/**
 * What Xen is asked on its console before a host is ended in which nothing happens: to listen to it, for the registers
 * of dom0's processors, for its own, and for who waits to run. A host that only was slow answers it, too.
 */
const DEBUG_KEYS = "\x01\x01\x010dr";
/** What the answers may take. */
const DEBUG_SECONDS = 5;
/** What the runner in dom0 may need, after a scenario's limit, to end and diagnose it. */
const GRACE_SECONDS = 240;
const FREE_MIB = 256;

/** What a boot came to. The results are those of the runs that began. */
interface Booted {
  readonly results: readonly Result[];
  readonly timing: BootTiming;
}

/** What the console told while the machine ran. */
interface Followed {
  /** The runs that began, and the emulator's processor time then and at the run's end, if it came. */
  readonly begun: ReadonlyMap<string, { readonly from: number; to?: number }>;
  readonly upSeconds: number | undefined;
  /** The emulator's processor time when it was ended, because nothing happened in time. */
  readonly endedAfter: number | undefined;
}

/**
 * Boots once with `daemon` and runs `runs`. When the host went down in one of them, the later ones are not among the
 * results. `attempt` counts from 1, and gives a host that did not come up before more time.
 */
export async function boot(
  settings: BootSettings,
  daemon: Daemon,
  runs: readonly Run[],
  attempt: number,
): Promise<Booted> {
  const watch = new Stopwatch();
  const image = makePayload(settings, daemon, runs);
  const { begun, upSeconds, endedAfter } = await follow(settings, image, runs, BOOT_SECONDS * attempt);
  const out = join(settings.work, "out");
  spawnSync("debugfs", ["-R", `rdump /out ${settings.work}`, image], { stdio: "ignore" });
  const results = runs.flatMap((run) => {
    const used = begun.get(run.name);
    if (used === undefined) return [];
    const { from, to } = used;
    return [{ ...readResult(out, run), processorSeconds: to === undefined ? undefined : to - from }];
  });
  for (const { run } of results) {
    if (existsSync(join(out, run.name)))
      cpSync(join(out, run.name), join(settings.logs, run.name), { recursive: true });
  }
  return {
    results,
    timing: { daemon, runs: results.length, upSeconds, seconds: watch.seconds, endedAfter },
  };
}

/** The payload's disk image: dom0's scripts, the plan, the scenarios and their files. */
function makePayload(settings: BootSettings, daemon: Daemon, runs: readonly Run[]): string {
  const tree = mkdir(join(settings.work, "payload"));
  for (const part of ["dom0", "guest"])
    cpSync(join(settings.sources, part), join(tree, part), { recursive: true });
  if (existsSync(settings.programs)) cpSync(settings.programs, join(tree, "programs"), { recursive: true });
  mkdir(join(tree, "scenarios"));
  for (const run of runs) {
    copyFileSync(run.path, join(tree, "scenarios", basename(run.path)));
    for (const file of run.files) {
      mkdir(join(tree, "files", dirname(file)));
      cpSync(join(settings.root, settings.built(file)), join(tree, "files", file), { recursive: true });
    }
  }
  const verbose = settings.verbose ? 1 : 0;
  writeFileSync(
    join(tree, "settings"),
    `XENSTORED=${daemon}\nPATIENCE=${settings.patience}\nVERBOSE=${verbose}\n`,
  );
  writeFileSync(join(tree, "plan"), runs.map((run) => `${run.name} ${run.limitSeconds}\n`).join(""));

  const image = join(settings.work, "payload.img");
  const usedMib = Number(/^\d+/.exec(must("du", ["-sm", tree]))?.[0]);
  const sizeMib = Math.ceil(usedMib * 1.2) + FREE_MIB;
  must("mke2fs", ["-q", "-F", "-t", "ext4", "-O", "^has_journal", "-d", tree, image, `${sizeMib}M`]);
  return image;
}

/** Runs the machine to its end, or ends it when nothing happens in time. */
async function follow(
  settings: BootSettings,
  image: string,
  runs: readonly Run[],
  bootSeconds: number,
): Promise<Followed> {
  const begun = new Map<string, { from: number; to?: number }>();
  const watch = new Stopwatch();
  let upSeconds: number | undefined;
  let endedAfter: number | undefined;
  const log = createWriteStream(settings.console);
  const { program, args } = machineOf(settings, image);
  const machine = spawn(program, args, {
    stdio: ["pipe", "pipe", "pipe"],
  });
  // A machine that is gone already is not asked.
  machine.stdin.on("error", () => {});
  const end = () => {
    endedAfter = processorSeconds(machine.pid);
    machine.stdin.write(DEBUG_KEYS);
    watchdog = setTimeout(() => machine.kill("SIGKILL"), DEBUG_SECONDS * 1000);
  };
  const interrupted = () => {
    machine.kill("SIGKILL");
    process.exit(130);
  };
  process.once("SIGINT", interrupted);
  process.once("SIGTERM", interrupted);
  let watchdog = setTimeout(end, bootSeconds * settings.patience * 1000);
  const allow = (seconds: number) => {
    clearTimeout(watchdog);
    watchdog = setTimeout(end, seconds * settings.patience * 1000);
  };
  const exited = new Promise<void>((resolve, reject) => {
    machine.once("error", reject);
    machine.once("close", () => resolve());
  });
  machine.stderr.pipe(log, { end: false });
  createInterface({ input: machine.stdout }).on("line", (line) => {
    log.write(`${line}\n`);
    const [, what, name, verdict, ...rest] = /XENLAB: (\w+) ?(\S*) ?(\S*) ?(.*)/.exec(line.trimEnd()) ?? [];
    const run = runs.find((candidate) => candidate.name === name);
    if (what === "begin" && run !== undefined) {
      begun.set(run.name, { from: processorSeconds(machine.pid) });
      allow(run.limitSeconds + GRACE_SECONDS);
    } else if (what === "end" || what === "done") {
      allow(GRACE_SECONDS);
    }
    const ended = what === "end" ? begun.get(name ?? "") : undefined;
    if (ended !== undefined) ended.to = processorSeconds(machine.pid);
    if (what === "up") upSeconds = watch.seconds;
    if (what === "end") console.error(`${verdict?.padEnd(7)} ${name} ${rest.join(" ")}`);
    else if (settings.verbose) console.error(line.trimEnd());
  });
  try {
    await exited;
  } finally {
    clearTimeout(watchdog);
    process.removeListener("SIGINT", interrupted);
    process.removeListener("SIGTERM", interrupted);
    await new Promise((resolve) => log.end(resolve));
  }
  return { begun, upSeconds, endedAfter };
}

/** What the runner in dom0 wrote down; when it wrote nothing, the host went down in this run. */
function readResult(out: string, run: Run): Result {
  const path = join(out, run.name, "verdict");
  const [first = "", message = ""] = existsSync(path) ? readFileSync(path, "utf8").split("\n") : [];
  const [verdict, seconds] = first.split(" ");
  if (verdict === "passed" || verdict === "failed" || verdict === "hung") {
    return { run, verdict, seconds: Number(seconds), message };
  }
  const wentDown = "the host went down, or hung as a whole";
  console.error(`failed  ${run.name} ${wentDown}`);
  return { run, verdict: "failed", seconds: 0, message: wentDown };
}

function mkdir(path: string): string {
  mkdirSync(path, { recursive: true });
  return path;
}

function must(command: string, args: readonly string[]): string {
  const done = spawnSync(command, args, { encoding: "utf8" });
  if (done.status !== 0) throw new Error(`${command} failed: ${done.error?.message ?? done.stderr.trim()}`);
  return done.stdout;
}
