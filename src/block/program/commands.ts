// What is run to open an image that we cannot read ourselves: QEMU's storage daemon for container formats, or a command
// of the user's.
import { statSync } from "node:fs";
import { XentoolError } from "../../core/errors.ts";
import { tryStat } from "../image/attempt.ts";

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
export const CONTAINER_FORMATS = Object.keys(DRIVERS) as readonly ContainerFormat[];

export const STORAGE_DAEMON = "qemu-storage-daemon";
/** As Debian names it. */
export const STORAGE_DAEMON_PACKAGE = "qemu-utils (Debian 12: qemu-system-common)";

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
export function formatCommand(format: ContainerFormat, path: string, options: FormatOptions): string[] {
  const { readOnly, direct, keyFile } = options;
  if (format === "luks" && keyFile === undefined)
    throw new XentoolError(
      "usage",
      `${path}: a LUKS volume needs its passphrase: serve --format luks --key-file FILE`,
    );
  const program = Bun.which(STORAGE_DAEMON);
  if (program === null)
    throw new XentoolError(
      "environment",
      `--format ${format} needs ${STORAGE_DAEMON}, which is not installed: apt install ${STORAGE_DAEMON_PACKAGE}`,
    );
  const common = {
    "read-only": readOnly,
    "auto-read-only": false,
    discard: "unmap",
    "detect-zeroes": "off",
    cache: { direct, "no-flush": false },
  };
  const driver = tryStat(path)?.isBlockDevice() === true ? "host_device" : "file";
  const disk = {
    ...common,
    driver: DRIVERS[format],
    "node-name": "disk",
    ...(keyFile !== undefined && { "key-secret": "key" }),
    file: { ...common, driver, filename: path, locking: "on" },
  };
  const key = { "qom-type": "secret", id: "key", file: keyFile };
  const served = { type: "nbd", id: "disk", "node-name": "disk", name: "", writable: !readOnly };
  const secret = keyFile === undefined ? [] : ["--object", JSON.stringify(key)];
  const blockdev = ["--blockdev", JSON.stringify(disk)];
  const server = ["--nbd-server", "addr.type=fd,addr.str=3"];
  return [program, ...secret, ...blockdev, ...server, "--export", JSON.stringify(served)];
}

/** A program with arguments, quoted as for a shell; `$1` in it is `source`. It takes the place of its shell. */
export function viaCommand(command: string, source: string): string[] {
  return ["/bin/sh", "-c", `exec ${command}`, "sh", source];
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
