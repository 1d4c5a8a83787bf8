// How this host itself uses an image: mounts, swap, loop devices, device-mapper, md, partitions. Read from /proc and
// /sys, where the kernel names the users that its EBUSY only hints at.
import { existsSync, readFileSync, readdirSync, realpathSync, type Stats } from "node:fs";
import { basename, dirname, join } from "node:path";
import { attempt, tryStat } from "./attempt.ts";

/** One use of an image, which lasts until somebody ends it. */
export interface HostUse {
  /** As in "it is in use: mounted at /mnt". */
  readonly what: string;
  readonly writes: boolean;
}

/** Where /proc and /sys are; tests substitute their own. */
export interface HostFiles {
  readonly proc: string;
  readonly sys: string;
}

export const THIS_HOST: HostFiles = { proc: "/proc", sys: "/sys" };

/** What distinguishes one file or block device from all others. */
export type Identity = Pick<Stats, "dev" | "ino" | "rdev"> & { isBlockDevice(): boolean };

/** All uses of the file or device on this host, except by processes. */
export function hostUses(image: Identity, host: HostFiles = THIS_HOST): HostUse[] {
  const isIt = sameAs(image, host);
  const device = image.isBlockDevice() ? deviceDir(deviceNumber(image.rdev), host) : undefined;
  return [
    ...(device === undefined ? [] : [...usesOfDevice(device, host), ...usesOfBackingFile(device, host)]),
    ...swaps(host, isIt),
    ...loopDevices(host, isIt),
  ];
}

/** The file behind a loop device; undefined for any other device. */
export function backingFile(device: Identity, host: HostFiles = THIS_HOST): string | undefined {
  const dir = device.isBlockDevice() ? deviceDir(deviceNumber(device.rdev), host) : undefined;
  return dir === undefined ? undefined : readLine(`${dir}/loop/backing_file`);
}

/** "8:1", as the kernel writes it in sysfs. */
export function deviceNumber(rdev: number): string {
  const [major, minor] = majorMinor(rdev);
  return `${major}:${minor}`;
}

function majorMinor(rdev: number): readonly [major: number, minor: number] {
  return [(rdev >> 8) & 0xfff, (rdev & 0xff) | ((rdev >> 12) & 0xfff00)];
}

/** A block device in the format of `stat -L -c %t:%T`, which Xen's hotplug script compares; undefined for a file. */
export function physicalDevice(stat: Stats): string | undefined {
  if (!stat.isBlockDevice()) return undefined;
  return majorMinor(stat.rdev)
    .map((part) => part.toString(16))
    .join(":");
}

export function isSame(image: Identity, path: string): boolean {
  const other = tryStat(path);
  if (other === undefined || image.isBlockDevice() !== other.isBlockDevice()) return false;
  return image.isBlockDevice()
    ? image.rdev === other.rdev
    : image.dev === other.dev && image.ino === other.ino;
}

/** File systems of file servers, and of programs, which may be gone: whoever asks then waits, without end. */
const REMOTE = /^(?:9p|afs|beegfs|ceph|cifs|coda|fuse(?!blk)|gpfs|lustre|nfs|orangefs|smb)/;

/**
 * Says of a path whether the image is there. What is on a file server that the image is not on is not asked: that of
 * the image has answered just now.
 */
function sameAs(image: Identity, host: HostFiles): (path: string) => boolean {
  const mounted = mountedFileSystems(host);
  const own = deviceNumber(image.dev);
  return (path) => {
    const its = mounted.find(({ point }) => point === "/" || path === point || path.startsWith(`${point}/`));
    const isElsewhere = its !== undefined && its.number !== own && REMOTE.test(its.type);
    return !isElsewhere && isSame(image, path);
  };
}

interface MountedFileSystem {
  readonly point: string;
  readonly number: string;
  readonly type: string;
}

/** The first one that a path is below is the one that it is on. */
function mountedFileSystems(host: HostFiles): MountedFileSystem[] {
  const all = mountLines(host, "self").map(({ point, number, type }) => ({ point, number, type }));
  // Of those at the same place, the last one hides the others.
  return all.reverse().sort((a, b) => b.point.length - a.point.length);
}

/** A device's own directory in sysfs. Its partitions are inside it; the whole device is its parent. */
function deviceDir(number: string, host: HostFiles): string | undefined {
  const link = `${host.sys}/dev/block/${number}`;
  return attempt(() => realpathSync(link));
}

/** The uses of a device, of its partitions, and of the device that it is a partition of. */
function usesOfDevice(dir: string, host: HostFiles): HostUse[] {
  const partitions = names(dir).filter((name) => existsSync(`${dir}/${name}/partition`));
  return [
    ...directUses(dir, host),
    ...partitions.flatMap((name) =>
      within(`its partition /dev/${name} is`, directUses(join(dir, name), host)),
    ),
    ...(existsSync(`${dir}/partition`)
      ? within(`/dev/${basename(dirname(dir))}, which it is part of, is`, directUses(dirname(dir), host))
      : []),
  ];
}

function directUses(dir: string, host: HostFiles): HostUse[] {
  return [
    ...mounts(readLine(`${dir}/dev`) ?? "", host),
    ...names(`${dir}/holders`).map((name) =>
      layer(holderName(`${dir}/holders/${name}`, name), `${dir}/holders/${name}`, host),
    ),
  ];
}

/** Uses of the file behind this loop device, e.g. by another loop device. */
function usesOfBackingFile(dir: string, host: HostFiles): HostUse[] {
  const path = readLine(`${dir}/loop/backing_file`);
  const file = path === undefined ? undefined : tryStat(path);
  if (file === undefined) return [];
  const isIt = sameAs(file, host);
  const uses = [...swaps(host, isIt), ...loopDevices(host, isIt, basename(dir))];
  return within(`${path}, which it shows, is used:`, uses);
}

/** The device stacked on the image and, in brackets, what is stacked on that. */
function layer(name: string, dir: string, host: HostFiles): HostUse {
  const real = attempt(() => realpathSync(dir));
  const uses = real === undefined ? [] : usesOfDevice(real, host);
  const further = uses.length === 0 ? "" : ` (${listUses(uses)})`;
  return { what: `${name} lies over it${further}`, writes: readLine(`${dir}/ro`) !== "1" };
}

/** device-mapper devices have names of their own. */
function holderName(dir: string, name: string): string {
  const mapped = readLine(`${dir}/dm/name`);
  return mapped === undefined ? `/dev/${name}` : `/dev/mapper/${mapped}`;
}

function loopDevices(host: HostFiles, isIt: (path: string) => boolean, except?: string): HostUse[] {
  return names(`${host.sys}/block`)
    .filter((name) => name.startsWith("loop") && name !== except)
    .filter((name) => {
      const path = readLine(`${host.sys}/block/${name}/loop/backing_file`);
      return path !== undefined && isIt(path);
    })
    .map((name) => layer(`/dev/${name}`, `${host.sys}/block/${name}`, host));
}

function mounts(number: string, host: HostFiles): HostUse[] {
  const found = new Map<string, HostUse>();
  for (const process of ["self", "1"])
    for (const { number: mounted, point, source, options } of mountLines(host, process)) {
      if (mounted !== number && !(mounted.startsWith("0:") && isDeviceFile(source, number))) continue;
      const what = `mounted at ${point}`;
      found.set(what, { what, writes: !options.split(",").includes("ro") });
    }
  return [...found.values()];
}

interface MountLine extends MountedFileSystem {
  readonly source: string;
  readonly options: string;
}

/** proc(5): ID PARENT MAJOR:MINOR ROOT MOUNTPOINT OPTIONS [FIELDS] - TYPE SOURCE SUPEROPTIONS */
function mountLines(host: HostFiles, process: string): MountLine[] {
  return lines(`${host.proc}/${process}/mountinfo`).map((line) => {
    const [mount = "", device = ""] = line.split(" - ");
    const [, , number = "", , point = ""] = mount.split(" ");
    const [type = "", source = "", options = ""] = device.split(" ");
    return { number, point: unescape(point), type, source, options };
  });
}

/** btrfs mounts have device numbers of their own, and name the device as their source. */
function isDeviceFile(source: string, number: string): boolean {
  if (!source.startsWith("/dev/")) return false;
  const stat = tryStat(unescape(source));
  return stat?.isBlockDevice() === true && deviceNumber(stat.rdev) === number;
}

function swaps(host: HostFiles, isIt: (path: string) => boolean): HostUse[] {
  return lines(`${host.proc}/swaps`)
    .slice(1)
    .map((line) => unescape(line.split(/[ \t]/, 1)[0] ?? ""))
    .filter((path) => path.startsWith("/") && isIt(path))
    .map(() => ({ what: "swap space of this host", writes: true }));
}

function within(where: string, uses: readonly HostUse[]): HostUse[] {
  return uses.map(({ what, writes }) => ({ what: `${where} ${what}`, writes }));
}

const NAMED_MAX = 4;

/** Lists all of them, or the first NAMED_MAX and the number of others. */
export function listUses(uses: readonly Pick<HostUse, "what">[]): string {
  const more = uses.length > NAMED_MAX ? ` and ${uses.length - NAMED_MAX} more` : "";
  return (
    uses
      .slice(0, NAMED_MAX)
      .map(({ what }) => what)
      .join(", ") + more
  );
}

/** The kernel's tables write blanks and similar characters as octal escapes. */
function unescape(text: string): string {
  return text.replace(/\\([0-7]{3})/g, (_, digits: string) =>
    String.fromCharCode(Number.parseInt(digits, 8)),
  );
}

function names(dir: string): string[] {
  return attempt(() => readdirSync(dir).sort()) ?? [];
}

function lines(path: string): string[] {
  return attempt(() => readFileSync(path, "utf8").split("\n")) ?? [];
}

function readLine(path: string): string | undefined {
  return lines(path)[0];
}
