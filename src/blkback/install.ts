// `xentool blkback install` and `uninstall`: put the files of host-files.ts on a host, or into the tree of a
// package, and take them away.
import { chmodSync, existsSync, mkdirSync, rmSync, statSync, writeFileSync } from "node:fs";
import { dirname, join, resolve } from "node:path";
import { XentoolError } from "../core/errors.ts";
import { administratorsPlaces, hostFiles, placesBelow, SCRIPTS, UNIT } from "./host-files.ts";
import { bindByKernel } from "./watching.ts";

export interface InstallOptions {
  /** The root of the host's file system: / except for packagers. */
  readonly root: string;
  /** For packages: everything lies below this, executable included; otherwise below /etc. */
  readonly prefix: string | undefined;
  /** Where xentool is now. It stays there unless there is a prefix. */
  readonly executable: string;
}

/** What was done. */
export interface Installed {
  /** Files that were written or removed, without the root. */
  readonly paths: readonly string[];
  /** What else was done, or is left to do. */
  readonly notes: readonly string[];
}

/** Writes the files; on the running host, also has udev and systemd reload. */
export function install(options: InstallOptions): Installed {
  const { root, files } = filesFor(options);
  const { prefix, executable } = options;
  if (root !== "/" && prefix === undefined && !existsSync(join(root, executable)))
    throw new XentoolError(
      "usage",
      `--root: no xentool at ${join(root, executable)}, where the unit would start it: put it there, or name where it will be with --prefix /usr`,
    );
  if (root === "/" && !existsSync(SCRIPTS))
    throw new XentoolError(
      "environment",
      `no ${SCRIPTS}: install Xen's tools first (apt-get install xen-utils)`,
    );
  for (const file of files) {
    const path = join(root, file.path);
    try {
      mkdirSync(dirname(path), { recursive: true });
      writeFileSync(path, file.text);
      chmodSync(path, file.mode);
    } catch (error) {
      throw new XentoolError("environment", `cannot write ${path}`, { path }, error);
    }
  }
  return {
    paths: files.map((file) => file.path),
    notes: root === "/" ? [...reload(), nextStep()] : nextOfPackage(options),
  };
}

/** Removes the files that exist, and on the running host lets the kernel's drivers bind new devices again. */
export function uninstall(options: InstallOptions): Installed {
  const { root, files } = filesFor(options);
  const existing = files.filter(({ path }) => existsSync(join(root, path)));
  const notes: string[] = [];
  if (root === "/" && hasSystemd() && existing.some(({ path }) => path.endsWith(`/${UNIT}`))) {
    Bun.spawnSync(["systemctl", "disable", "--now", UNIT]);
    notes.push(`stopped and disabled ${UNIT}; guests that have disks from it wait until it serves again`);
  }
  for (const { path } of existing) rmSync(join(root, path), { force: true });
  if (root === "/") {
    if (bindByKernel(true)) notes.push("the kernel binds new backend devices by itself again");
    notes.push(...reload());
  }
  return { paths: existing.map((file) => file.path), notes };
}

function filesFor({ root, prefix, executable }: InstallOptions) {
  if (!statSync(root, { throwIfNoEntry: false })?.isDirectory())
    throw new XentoolError("usage", `--root: "${root}" is not a directory`);
  if (prefix !== undefined && !/^\/[^\0\n\s%$"'\\]*$/.test(prefix))
    throw new XentoolError(
      "usage",
      `--prefix: "${prefix}" is not an absolute path without special characters`,
    );
  const where = resolve(root);
  const places = prefix === undefined ? administratorsPlaces(executable) : placesBelow(resolve(prefix));
  return { root: where, files: hostFiles(places) };
}

function hasSystemd(): boolean {
  return existsSync("/run/systemd/system");
}

function reload(): string[] {
  const done: string[] = [];
  const run = (command: readonly string[]): void => {
    if (Bun.spawnSync([...command]).success) done.push(`ran ${command.join(" ")}`);
  };
  if (existsSync("/run/udev")) run(["udevadm", "control", "--reload"]);
  if (hasSystemd()) run(["systemctl", "daemon-reload"]);
  return done;
}

function nextStep(): string {
  return hasSystemd()
    ? `next: systemctl enable --now ${UNIT}`
    : "next: have `xentool blkback watch` started at boot, before any guest";
}

function nextOfPackage({ root, prefix }: InstallOptions): string[] {
  const next = `next: on the host, systemctl enable --now ${UNIT}`;
  if (prefix === undefined) return [next];
  return [
    `next: put the executable at ${join(resolve(root), placesBelow(resolve(prefix)).executable)}`,
    next,
  ];
}
