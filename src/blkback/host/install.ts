// `xentool blkback install` and `uninstall`: put the files of host-files.ts on a host, or into the tree of a
// package, and take them away.
import {
  chmodSync,
  existsSync,
  mkdirSync,
  readdirSync,
  realpathSync,
  renameSync,
  rmdirSync,
  rmSync,
  statSync,
  writeFileSync,
} from "node:fs";
import { dirname, join, resolve } from "node:path";
import { XentoolError } from "../../core/errors.ts";
import {
  administratorsPlaces,
  BLOCK_DEVICES,
  hostFiles,
  narrowingFiles,
  NETWORK,
  placesBelow,
  SCRIPTS,
  UNIT,
  type HostFile,
} from "./host-files.ts";
import { bindByKernel } from "./watching.ts";

export interface InstallOptions {
  /** The root of the host's file system: / except for packagers. */
  readonly root: string;
  /** For packages: everything lies below this, executable included; otherwise below /etc. */
  readonly prefix: string | undefined;
  /** Where xentool is now. It stays there unless there is a prefix. */
  readonly executable: string;
  /** Where images may be: directories, BLOCK_DEVICES, NETWORK. None: anywhere. */
  readonly images?: readonly string[];
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
  const { root, files, isPackaged } = filesFor(options);
  const { prefix, executable } = options;
  if (root !== "/" && prefix === undefined && !isPackaged && !existsSync(join(root, executable)))
    throw new XentoolError(
      "usage",
      `--root: no xentool at ${join(root, executable)}, where the unit would start it: put it there, or name where it will be with --prefix /usr`,
    );
  if (root === "/" && !existsSync(SCRIPTS))
    throw new XentoolError(
      "environment",
      `no ${SCRIPTS}: install Xen's tools first (apt-get install xen-utils)`,
    );
  const narrowing = narrowingFor(options, root);
  // Copies of a package's files would hide those of its next version.
  const written = [...(isPackaged ? [] : files), ...narrowing];
  for (const file of written) write(root, file);
  const before = prefix === undefined && narrowing.length === 0 ? removeNarrowing(root) : [];
  const isNarrowed = narrowing.length > 0 || before.length > 0;
  const notes = [
    ...(isPackaged ? ["the package's units are in place"] : []),
    ...before.map((path) => `removed ${path}: images may be anywhere again`),
    ...(isNarrowed ? [`a unit that runs reaches what it did until systemctl restart ${UNIT}`] : []),
  ];
  return {
    paths: written.map((file) => file.path),
    notes: [...notes, ...(root === "/" ? [...reload(), nextStep()] : nextOfPackage(options))],
  };
}

/** All of the file or, on a full disk, nothing: half a unit, or half of what narrows one, would be worse. */
function write(root: string, file: HostFile): void {
  const path = join(root, file.path);
  const unfinished = `${path}.new`;
  try {
    mkdirSync(dirname(path), { recursive: true });
    writeFileSync(unfinished, file.text);
    chmodSync(unfinished, file.mode);
    renameSync(unfinished, path);
  } catch (error) {
    rmSync(unfinished, { force: true });
    throw new XentoolError("environment", `cannot write ${path}`, { path }, error);
  }
}

/** Removes the files that exist, and on the running host lets the kernel's drivers bind new devices again. */
export function uninstall(options: InstallOptions): Installed {
  const { root, files, isPackaged } = filesFor(options);
  const existing = files.filter(({ path }) => existsSync(join(root, path)));
  const narrowing = options.prefix === undefined ? removeNarrowing(root) : [];
  const notes: string[] = [];
  if (root === "/" && !isPackaged && hasSystemd() && existing.some(({ path }) => path.endsWith(`/${UNIT}`))) {
    Bun.spawnSync(["systemctl", "disable", "--now", UNIT]);
    notes.push(`stopped and disabled ${UNIT}; guests that have disks from it wait until it serves again`);
  }
  for (const { path } of existing) rmSync(join(root, path), { force: true });
  if (root === "/") {
    if (!isPackaged && bindByKernel(true)) notes.push("the kernel binds new backend devices by itself again");
    notes.push(...reload());
  }
  return { paths: [...existing.map((file) => file.path), ...narrowing], notes };
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
  const package_ = placesBelow("/usr");
  const isPackaged = prefix === undefined && existsSync(join(where, package_.units, UNIT));
  const ofPackage = new Set(isPackaged ? hostFiles(package_).map(({ path }) => path) : []);
  return { root: where, files: hostFiles(places).filter(({ path }) => !ofPackage.has(path)), isPackaged };
}

/** None where images may be anywhere. */
function narrowingFor({ prefix, images = [] }: InstallOptions, root: string): HostFile[] {
  if (images.length === 0) return [];
  if (prefix !== undefined)
    throw new XentoolError(
      "usage",
      "--images and --prefix exclude each other: a package knows no host's images",
    );
  return narrowingFiles([...new Set(images.map((place) => checkPlace(place, root)))]);
}

/** Returns the place as an image's real path begins. Throws `usage`. */
function checkPlace(place: string, root: string): string {
  const refuse = (why: string): XentoolError => new XentoolError("usage", `--images: "${place}" ${why}`);
  if (place === NETWORK) return place;
  const path = root === "/" && existsSync(place) ? realpathSync(place) : resolve("/", place);
  if (!place.startsWith("/") || /[\0\n\s%$"'\\:]/.test(path))
    throw refuse(`is neither ${NETWORK} nor an absolute path without special characters`);
  if (path === "/") throw refuse("is everything: leave --images out");
  if (path.startsWith(`${BLOCK_DEVICES}/`))
    throw refuse(`cannot be had alone: ${BLOCK_DEVICES} is all block devices, or there are none`);
  if (root !== "/" || path === BLOCK_DEVICES) return path;
  if (!statSync(path, { throwIfNoEntry: false })?.isDirectory()) throw refuse("is not a directory");
  return path;
}

/** Returns what was removed. */
function removeNarrowing(root: string): string[] {
  const paths = narrowingFiles([]).map(({ path }) => path);
  return paths.filter((path) => {
    const file = join(root, path);
    if (!existsSync(file)) return false;
    rmSync(file);
    if (readdirSync(dirname(file)).length === 0) rmdirSync(dirname(file));
    return true;
  });
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
