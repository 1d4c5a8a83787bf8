// What is run to open an image that we cannot read ourselves: QEMU's storage daemon for container formats, or a command
// of the user's.
import { closeSync, constants, openSync, readSync, statSync } from "node:fs";
import { XentoolError } from "../../core/errors.ts";
import { QCOW2_ENTRY_BYTES, readQcow2Header } from "../../protocol/qcow2.ts";
import { attempt, tryStat } from "../image/attempt.ts";

/** Formats by our names, each with QEMU's name of its driver. */
const DRIVERS = {
  qcow2: "qcow2",
  qed: "qed",
  vhd: "vpc",
  vhdx: "vhdx",
  vmdk: "vmdk",
  vdi: "vdi",
  parallels: "parallels",
  luks: "luks",
} as const;

export type ContainerFormat = keyof typeof DRIVERS;
/** Those, and what is in no file here: an image of Ceph's block devices. */
export type ProgramFormat = ContainerFormat | "rbd";
export const PROGRAM_FORMATS = [...Object.keys(DRIVERS), "rbd"] as readonly ProgramFormat[];

export const STORAGE_DAEMON = "qemu-storage-daemon";
/** As Debian names it. */
export const STORAGE_DAEMON_PACKAGE = "qemu-utils (Debian 12: qemu-system-common)";

/** In Debian, the daemon's part for Ceph is a package of its own. */
export const RBD_PACKAGE = "qemu-block-extra";
const WITHOUT_RBD = { text: `apt install ${RBD_PACKAGE}`, when: /Unknown driver/ };

/**
 * With io_uring the daemon needs less processor time than with threads, a quarter for single small reads. QEMU 7.1
 * hangs with it (qemu-project/qemu#1193), and older ones misplace what follows a short read.
 */
const RING_SINCE = { major: 7, minor: 2 };

/**
 * Memory for a request's data is taken from the heap and stays there. By itself glibc maps it anew for each large
 * request and gives it back afterwards, and then every page faults: of a read of 64 KiB, that took four fifths of the
 * daemon's processor time.
 */
const KEEPS_MEMORY = {
  MALLOC_MMAP_THRESHOLD_: String(32 * 1024 * 1024),
  MALLOC_TRIM_THRESHOLD_: String(64 * 1024 * 1024),
};

/** What is run, and what in its place if that fails with such last words. */
export interface ProgramCommand {
  readonly argv: readonly string[];
  /** Besides our own environment. */
  readonly environment?: Readonly<Record<string, string>>;
  readonly otherwise?: { readonly argv: readonly string[]; readonly when: RegExp };
  /** What to do about an end with such last words. */
  readonly advice?: { readonly text: string; readonly when: RegExp };
}

export interface FormatOptions {
  readonly readOnly: boolean;
  readonly direct: boolean;
  /** Of a file with the passphrase; for luks only. */
  readonly keyFile: string | undefined;
}

/**
 * The storage daemon for the image at `path`. Its format is what we were told, never guessed; trims reach the file; and
 * zeroes are written as the guest wrote them. Throws `environment` when the daemon is not installed, `usage` when the
 * passphrase is missing.
 */
export async function formatCommand(
  format: ProgramFormat,
  image: string,
  options: FormatOptions,
): Promise<ProgramCommand> {
  const { keyFile } = options;
  if (format === "luks" && keyFile === undefined)
    throw new XentoolError(
      "usage",
      `${image}: a LUKS volume needs its passphrase: serve --format luks --key-file FILE`,
    );
  const program = Bun.which(STORAGE_DAEMON);
  if (program === null)
    throw new XentoolError(
      "environment",
      `--format ${format} needs ${STORAGE_DAEMON}, which is not installed: apt install ${STORAGE_DAEMON_PACKAGE}`,
    );
  const withThreads = daemonArguments(format, image, "threads", options);
  if (format === "rbd")
    return { argv: [program, ...withThreads], environment: KEEPS_MEMORY, advice: WITHOUT_RBD };
  if (endsWithinSector(format, image) || !(await hasUsableRing(program)))
    return { argv: [program, ...withThreads], environment: KEEPS_MEMORY };
  const withRing = daemonArguments(format, image, "io_uring", options);
  // The daemon may have been built without it, and the kernel may not let it.
  const otherwise = { argv: [program, ...withThreads], when: /io_uring/ };
  return { argv: [program, ...withRing], environment: KEEPS_MEMORY, otherwise };
}

/**
 * Whether the end of the file is read short, because QEMU reads whole sectors there: with io_uring QEMU 7.2 then waits
 * for ever. A new qcow2 ends with its table of the first level, of which it reads no more than there is.
 */
function endsWithinSector(format: ContainerFormat, path: string): boolean {
  const stat = tryStat(path);
  if (stat?.isFile() !== true || stat.size % 512 === 0) return false;
  return format !== "qcow2" || firstLevelEnd(path) !== stat.size;
}

function firstLevelEnd(path: string): number | undefined {
  const head = Buffer.alloc(512);
  const fd = attempt(() => openSync(path, constants.O_RDONLY | constants.O_NONBLOCK));
  if (fd === undefined) return undefined;
  attempt(() => readSync(fd, head, 0, head.length, 0));
  closeSync(fd);
  const header = readQcow2Header(head);
  return header === undefined ? undefined : header.l1Offset + header.l1Entries * QCOW2_ENTRY_BYTES;
}

async function hasUsableRing(program: string): Promise<boolean> {
  // One that cannot be started is named where it is to serve.
  const child = attempt(() => Bun.spawn([program, "--version"], { stdio: ["ignore", "pipe", "ignore"] }));
  const [, major, minor] = /version ([0-9]+)\.([0-9]+)/.exec((await child?.stdout.text()) ?? "") ?? [];
  const since = RING_SINCE;
  return Number(major) > since.major || (Number(major) === since.major && Number(minor) >= since.minor);
}

function daemonArguments(
  format: ProgramFormat,
  image: string,
  aio: "threads" | "io_uring",
  { readOnly, direct, keyFile }: FormatOptions,
): string[] {
  const common = {
    "read-only": readOnly,
    "auto-read-only": false,
    discard: "unmap",
    "detect-zeroes": "off",
    cache: { direct, "no-flush": false },
  };
  const disk = {
    ...common,
    "node-name": "disk",
    ...(format === "rbd" ? rbdNode(image) : containerNode(format, image, { ...common, aio })),
    ...(keyFile !== undefined && { "key-secret": "key" }),
  };
  const key = { "qom-type": "secret", id: "key", file: keyFile };
  const served = { type: "nbd", id: "disk", "node-name": "disk", name: "", writable: !readOnly };
  const secret = keyFile === undefined ? [] : ["--object", JSON.stringify(key)];
  const blockdev = ["--blockdev", JSON.stringify(disk)];
  const server = ["--nbd-server", "addr.type=fd,addr.str=3"];
  return [...secret, ...blockdev, ...server, "--export", JSON.stringify(served)];
}

function containerNode(format: ContainerFormat, path: string, ofFile: object): object {
  const driver = tryStat(path)?.isBlockDevice() === true ? "host_device" : "file";
  return { driver: DRIVERS[format], file: { ...ofFile, driver, filename: path, locking: "on" } };
}

const RBD_IMAGE = /^([^/@]+)\/(?:([^/@]+)\/)?([^/@]+)$/;

/** Whether `text` is POOL/IMAGE or POOL/NAMESPACE/IMAGE. */
export function isRbdImage(text: string): boolean {
  return RBD_IMAGE.test(text);
}

/** The cluster is the one of /etc/ceph/ceph.conf, or of $CEPH_CONF. */
function rbdNode(name: string): object {
  const [, pool, namespace, image] = RBD_IMAGE.exec(name) ?? [];
  if (pool === undefined)
    throw new XentoolError("usage", `"${name}" is not an image of Ceph: POOL/IMAGE, or POOL/NAMESPACE/IMAGE`);
  return { driver: "rbd", pool, ...(namespace !== undefined && { namespace }), image };
}

/** A program with arguments, quoted as for a shell; `$1` in it is `source`. It takes the place of its shell. */
export function viaCommand(command: string, source: string): ProgramCommand {
  return { argv: ["/bin/sh", "-c", `exec ${command}`, "sh", source] };
}

/** Whether `source` of a command names a file or block device here, which is then locked as any image. */
export function isLocalImage(source: string): boolean {
  try {
    const stat = statSync(source);
    return stat.isFile() || stat.isBlockDevice();
  } catch {
    return false;
  }
}
