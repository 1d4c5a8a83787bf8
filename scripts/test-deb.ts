// npm run test:deb [-- RELEASE…]: the Debian package in fresh roots of Debian 12 and 13: lintian, install, serve,
// upgrade under load, metrics that promtool accepts, remove, purge, and again with their systemd booted, for the units.
// Takes root and minutes, so CI does not run it. The roots are kept in build/deb-roots.
import { copyFileSync, existsSync, mkdirSync, readFileSync, renameSync, rmSync } from "node:fs";
import { join } from "node:path";
import packageJson from "../package.json" with { type: "json" };
import { buildAll } from "./build-all.ts";
import type { TargetName } from "./build-target.ts";
import { debFile, makeDeb } from "./deb-package.ts";
import { CommandFailed, main, root, run, tryRun } from "./lib.ts";

const RELEASES = ["bookworm", "trixie"];
const WORK = "build/deb-test";
/** Judges the metrics. Its package has a daemon, too, so only this one program of it is used. */
const PROMTOOL = "build/deb-roots/promtool";
const APART = ["--mount", "--pid", "--fork", "--kill-child"];

/** Runs the test in a root of its own, with mounts and processes that end with it. */
const ENTER = `
set -e
mount -t proc proc "$1/proc"
mount -t tmpfs tmpfs "$1/dev/shm"
exec chroot "$1" sh /deb/in-root.sh
`;

/** A Debian without anything, or one that can be booted. Returns where it is. */
function freshRoot(release: string, include?: string): string {
  const name = include === undefined ? release : `${release}-${include}`;
  const archive = join(root, "build/deb-roots", `${name}.tar`);
  if (!existsSync(archive)) {
    mkdirSync(join(root, "build/deb-roots"), { recursive: true });
    const packages = include === undefined ? [] : [`--include=${include}`];
    const options = ["--variant=minbase", "--format=tar", ...packages];
    run("mmdebstrap", [...options, release, `${archive}.new`], { quiet: true });
    renameSync(`${archive}.new`, archive);
  }
  const tree = join(root, WORK, name);
  mkdirSync(tree, { recursive: true });
  run("tar", ["-xf", archive, "-C", tree]);
  mkdirSync(join(tree, "dev/shm"), { recursive: true });
  mkdirSync(join(tree, "deb"));
  return tree;
}

function fetchPromtool(): void {
  if (existsSync(join(root, PROMTOOL))) return;
  const directory = join(WORK, "prometheus");
  mkdirSync(join(root, directory), { recursive: true });
  mkdirSync(join(root, "build/deb-roots"), { recursive: true });
  run("sh", ["-c", "apt-get download prometheus && dpkg-deb -x prometheus_*.deb ."], {
    directory,
    quiet: true,
  });
  renameSync(join(root, directory, "usr/bin/promtool"), join(root, PROMTOOL));
}

function prepare(tree: string, packages: readonly string[], script: string): void {
  packages.forEach((file, index) => copyFileSync(join(root, file), join(tree, `deb/${index + 1}.deb`)));
  copyFileSync(join(root, PROMTOOL), join(tree, "deb/promtool"));
  copyFileSync(join(root, "test/deb", script), join(tree, "deb", script));
}

/** Without systemd: what dpkg does, and a server that its upgrade leaves alone. */
function testIn(release: string, packages: readonly string[]): boolean {
  console.log(`==== ${release}`);
  const tree = freshRoot(release);
  prepare(tree, packages, "in-root.sh");
  return tryRun("unshare", [...APART, "sh", "-c", ENTER, "enter", tree], { timeoutMs: 10 * 60_000 }) === 0;
}

/** With its systemd as PID 1: what the units do. */
function testBooted(release: string, packages: readonly string[]): boolean {
  console.log(`==== ${release}, booted`);
  const tree = freshRoot(release, "systemd");
  prepare(tree, packages, "booted.sh");
  const status = tryRun("sh", [join(root, "test/deb/boot.sh"), tree], { timeoutMs: 10 * 60_000 });
  const log = join(tree, "deb/booted.log");
  process.stdout.write(existsSync(log) ? readFileSync(log) : "systemd has not run the test\n");
  return status === 0;
}

await main(() => {
  const releases = process.argv.length > 2 ? process.argv.slice(2) : RELEASES;
  const target = process.arch as TargetName;
  const executable = buildAll();
  rmSync(join(root, WORK), { recursive: true, force: true });
  const packages = [packageJson.version, `${packageJson.version}+1`].map((version) => {
    const file = debFile(WORK, target, version);
    makeDeb(file, executable, target, version);
    return file;
  });
  fetchPromtool();
  const judged = tryRun("lintian", ["--allow-root", "--fail-on", "error,warning", String(packages[0])]) === 0;
  const failed = releases.flatMap((release) => [
    ...(testIn(release, packages) ? [] : [release]),
    ...(testBooted(release, packages) ? [] : [`${release}, booted`]),
  ]);
  rmSync(join(root, WORK), { recursive: true, force: true });
  const failures = [...(judged ? [] : ["lintian"]), ...failed];
  if (failures.length > 0) throw new CommandFailed(`failed: ${failures.join(", ")}`);
  console.log(`the package is right on ${releases.join(" and ")}`);
});
