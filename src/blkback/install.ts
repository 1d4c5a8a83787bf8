// `xentool blkback install`: what a host with xl needs for a disk line with `script=block-xentool` to be served by
// `xentool blkback watch`. docs/xen-notes.md gives the reasons for each piece.
import { chmodSync, existsSync, mkdirSync, rmSync, writeFileSync } from "node:fs";
import { dirname, join } from "node:path";
import { XentoolError } from "../core/errors.ts";

export const HOTPLUG_SCRIPT = "block-xentool";
const AUTOPROBE = "/sys/bus/xen-backend/drivers_autoprobe";
const HELPER = "/etc/xen/scripts/xentool-backend-added";

interface InstalledFile {
  readonly path: string;
  readonly mode: number;
  readonly text: string;
}

/** libxl runs it after the daemon has set state 2, and reports its exit status and hotplug-error. */
const hotplugScript = `#!/bin/sh
# Written by "xentool blkback install". libxl runs this for disks with script=${HOTPLUG_SCRIPT}.
[ "$1" = add ] || exit 0
i=0
while [ $i -lt 300 ]; do
  case $(xenstore-read "$XENBUS_PATH/hotplug-status" 2>/dev/null) in
    connected) exit 0 ;;
    error) exit 1 ;;
  esac
  kill -0 "$(cat /run/xentool/watching)" 2>/dev/null || break
  sleep 0.1
  i=$((i + 1))
done
# A write below a device that is gone would make half of one.
xenstore-exists "$XENBUS_PATH/frontend" && xenstore-write "$XENBUS_PATH/hotplug-error" \\
  "xentool blkback watch does not answer; see: systemctl status xentool-blkback" \\
  "$XENBUS_PATH/hotplug-status" error
exit 1
`;

/** Keeps the kernel's blkback away from our disks, and leaves all others to it. */
const helper = `#!/bin/sh
# Written by "xentool blkback install". udev runs this for each new backend device while automatic binding is
# off: disks of xentool are left alone, everything else gets its driver as before.
case $(xenstore-read "$XENBUS_PATH/script" 2>/dev/null) in
  */${HOTPLUG_SCRIPT})
    # Without the daemon nobody would set state 2, and libxl would never ask the script why. A write below a device
    # that is gone would make half of one.
    kill -0 "$(cat /run/xentool/watching)" 2>/dev/null ||
      { xenstore-exists "$XENBUS_PATH/frontend" && xenstore-write "$XENBUS_PATH/state" 2; }
    ;;
  *) echo "\${DEVPATH##*/}" >/sys/bus/xen-backend/drivers_probe ;;
esac
`;

const rule = `# Written by "xentool blkback install".
ACTION=="add", SUBSYSTEM=="xen-backend", RUN+="${HELPER}"
`;

function unit(executable: string): string {
  return `# Written by "xentool blkback install".
[Unit]
Description=xentool: disks for Xen guests, served from user space
Documentation=man:xentool(1)
# xenstored is started by xen.service on Debian and by a unit of its own elsewhere, so none of them is required. Until
# it runs, we are started again and again.
After=xen.service xenstored.service xen-init-dom0.service
Before=xendomains.service
StartLimitIntervalSec=0

[Service]
ExecStart=${executable} -v blkback watch
Restart=always
RestartSec=1
# io_uring's memory is locked on kernels before 5.12.
LimitMEMLOCK=infinity
# Guests keep their disks while the daemon is away; the next one goes on where it stopped.
KillMode=mixed
TimeoutStopSec=30
# Neither ProtectHome nor ProtectSystem: images may lie anywhere, also in /home and /root, and are written there.
NoNewPrivileges=yes

[Install]
WantedBy=multi-user.target
`;
}

/** The files that belong on a host, with their contents; `executable` is the path where xentool will be. */
export function installedFiles(executable: string): InstalledFile[] {
  return [
    { path: `/etc/xen/scripts/${HOTPLUG_SCRIPT}`, mode: 0o755, text: hotplugScript },
    { path: HELPER, mode: 0o755, text: helper },
    { path: "/etc/udev/rules.d/60-xentool-blkback.rules", mode: 0o644, text: rule },
    { path: "/etc/systemd/system/xentool-blkback.service", mode: 0o644, text: unit(executable) },
  ];
}

export interface InstallOptions {
  /** The root of the host's file system: / except for packagers. */
  readonly root: string;
  readonly executable: string;
}

/** Writes the files; on the running host, also has udev and systemd reload. Returns the paths, without `root`. */
export function install(options: InstallOptions): string[] {
  const files = installedFiles(options.executable);
  if (options.root === "/" && !existsSync("/etc/xen/scripts"))
    throw new XentoolError(
      "environment",
      "no /etc/xen/scripts: install Xen's tools first (apt-get install xen-utils)",
    );
  for (const file of files) {
    const path = join(options.root, file.path);
    try {
      mkdirSync(dirname(path), { recursive: true });
      writeFileSync(path, file.text);
      chmodSync(path, file.mode);
    } catch (error) {
      throw new XentoolError("environment", `cannot write ${path}`, { path }, error);
    }
  }
  if (options.root === "/") reload();
  return files.map((file) => file.path);
}

/**
 * Removes the files that exist, and on the running host lets the kernel's drivers bind new devices again. Returns the
 * paths of the removed files, without `root`.
 */
export function uninstall(options: InstallOptions): string[] {
  const files = installedFiles(options.executable).filter(({ path }) => existsSync(join(options.root, path)));
  if (options.root === "/" && existsSync("/run/systemd/system"))
    Bun.spawnSync(["systemctl", "disable", "--now", "xentool-blkback.service"]);
  for (const file of files) rmSync(join(options.root, file.path), { force: true });
  if (options.root === "/") {
    if (existsSync(AUTOPROBE)) writeFileSync(AUTOPROBE, "1");
    reload();
  }
  return files.map((file) => file.path);
}

function reload(): void {
  if (existsSync("/run/udev")) Bun.spawnSync(["udevadm", "control", "--reload"]);
  if (existsSync("/run/systemd/system")) Bun.spawnSync(["systemctl", "daemon-reload"]);
}

const WATCHING = "/run/xentool/watching";

/**
 * Tells the scripts above that the daemon is running, and tells the kernel not to bind new devices by itself, since
 * the udev rule does that from now on. Without the rule the kernel's behaviour is not changed. Dispose the result
 * when the daemon stops.
 */
export function announceWatching(): Disposable {
  const installed = existsSync("/etc/udev/rules.d/60-xentool-blkback.rules");
  mkdirSync(dirname(WATCHING), { recursive: true });
  writeFileSync(WATCHING, String(process.pid));
  if (installed && existsSync(AUTOPROBE)) writeFileSync(AUTOPROBE, "0");
  return { [Symbol.dispose]: () => rmSync(WATCHING, { force: true }) };
}
