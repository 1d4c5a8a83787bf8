// npm run test:deb [-- RELEASE…]: the Debian package in fresh roots of Debian 12 and 13: lintian, install, serve,
// upgrade under load, remove, purge. Takes root and minutes, so CI does not run it. The roots are kept in
// build/deb-roots.
import { copyFileSync, existsSync, mkdirSync, renameSync, rmSync } from "node:fs";
import { join } from "node:path";
import packageJson from "../package.json" with { type: "json" };
import { buildAll } from "./build-all.ts";
import type { TargetName } from "./build-target.ts";
import { debFile, makeDeb } from "./deb-package.ts";
import { CommandFailed, main, root, run, tryRun } from "./lib.ts";

const RELEASES = ["bookworm", "trixie"];
const WORK = "build/deb-test";

/** Runs the test in a root of its own, with mounts and processes that end with it. */
const ENTER = `
set -e
mount -t proc proc "$1/proc"
mount -t tmpfs tmpfs "$1/dev/shm"
exec chroot "$1" sh /deb/in-root.sh
`;

function freshRoot(release: string): string {
  const archive = join(root, "build/deb-roots", `${release}.tar`);
  if (!existsSync(archive)) {
    mkdirSync(join(root, "build/deb-roots"), { recursive: true });
    run("mmdebstrap", ["--variant=minbase", "--format=tar", release, `${archive}.new`], { quiet: true });
    renameSync(`${archive}.new`, archive);
  }
  const tree = join(root, WORK, release);
  mkdirSync(tree, { recursive: true });
  run("tar", ["-xf", archive, "-C", tree]);
  mkdirSync(join(tree, "dev/shm"), { recursive: true });
  return tree;
}

function testIn(release: string, packages: readonly string[]): boolean {
  console.log(`==== ${release}`);
  const tree = freshRoot(release);
  mkdirSync(join(tree, "deb"));
  packages.forEach((file, index) => copyFileSync(join(root, file), join(tree, `deb/${index + 1}.deb`)));
  copyFileSync(join(root, "test/deb/in-root.sh"), join(tree, "deb/in-root.sh"));
  const apart = ["--mount", "--pid", "--fork", "--kill-child"];
  return tryRun("unshare", [...apart, "sh", "-c", ENTER, "enter", tree], { timeoutMs: 10 * 60_000 }) === 0;
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
  const judged = tryRun("lintian", ["--allow-root", "--fail-on", "error,warning", String(packages[0])]) === 0;
  const failed = releases.filter((release) => !testIn(release, packages));
  rmSync(join(root, WORK), { recursive: true, force: true });
  const failures = [...(judged ? [] : ["lintian"]), ...failed];
  if (failures.length > 0) throw new CommandFailed(`failed: ${failures.join(", ")}`);
  console.log(`the package is right on ${releases.join(" and ")}`);
});
