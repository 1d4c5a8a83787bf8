// The files that a host with xl needs for a disk line with `script=block-xentool` to be served by `xentool blkback
// watch`. docs/xen-notes.md has the reason for each piece.
export const HOTPLUG_SCRIPT = "block-xentool";
export const UNIT = "xentool-blkback.service";
export const SERVE_UNIT = "xentool-serve@.service";
const ADMINISTRATORS_UNITS = "/etc/systemd/system";
export const RULE = "60-xentool-blkback.rules";
/** Where libxl looks for scripts, on every distribution. */
export const SCRIPTS = "/etc/xen/scripts";

/** The variable by which a narrowed unit tells us where images may be, separated by colons. */
export const IMAGE_PLACES = "XENTOOL_IMAGES";
/** Stands there for all block devices, wherever they have a name. */
export const BLOCK_DEVICES = "/dev";
/** Stands there for NBD servers on other hosts, and Ceph. */
export const NETWORK = "network";

export interface HostFile {
  readonly path: string;
  readonly mode: number;
  readonly text: string;
}

/**
 * libxl runs it after the daemon has set state 2, and reports its exit status and hotplug-error. After 40 s libxl kills
 * it, so it counts seconds and no rounds: those take longer on a busy machine.
 */
const hotplugScript = `#!/bin/sh
# Part of xentool. libxl runs this for disks with script=${HOTPLUG_SCRIPT}.
[ "$1" = add ] || exit 0
now() { read -r up _ </proc/uptime; echo "\${up%.*}"; }
end=$(($(now) + 35))
while [ "$(now)" -lt $end ]; do
  case $(xenstore-read "$XENBUS_PATH/hotplug-status" 2>/dev/null) in
    connected) exit 0 ;;
    error) exit 1 ;;
  esac
  kill -0 "$(cat /run/xentool/watching)" 2>/dev/null || break
  sleep 0.1
done
# A write below a device that is gone would make half of one.
xenstore-exists "$XENBUS_PATH/frontend" && xenstore-write "$XENBUS_PATH/hotplug-error" \\
  "xentool blkback watch does not answer; see: systemctl status xentool-blkback" \\
  "$XENBUS_PATH/hotplug-status" error
exit 1
`;

/** Keeps the kernel's blkback away from our disks, and leaves all others to it. */
const helperScript = `#!/bin/sh
# Part of xentool. udev runs this for each new backend device while automatic binding is
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

const rule = (helper: string): string => `# Part of xentool.
ACTION=="add", SUBSYSTEM=="xen-backend", RUN+="${helper}"
`;

/**
 * What both units have, and why not more: `systemd-analyze security` finds what is left open. Images may lie anywhere,
 * also in /home, /root and /tmp, belong to anyone, and may be on a server in the network. A new /proc (ProtectProc)
 * would be without /proc/xen, which says that this is domain 0. JavaScript is compiled as it runs, so memory has to
 * become executable.
 */
const confined = (more = ""): string => `# io_uring's memory is locked on kernels before 5.12.
LimitMEMLOCK=infinity
# Guests keep their disks while nobody serves; the next server goes on where this one stopped.
KillMode=mixed
TimeoutStopSec=30
# After SIGTERM, and after everything is let go: not a failure.
SuccessExitStatus=143
# Longer than storage that is only slow needs to open an image.
WatchdogSec=5min
NoNewPrivileges=yes
# Images belong to anyone, and /proc of other processes says who uses them. Files that the user of a guest's process
# has left become those of the next server.
CapabilityBoundingSet=CAP_CHOWN CAP_DAC_OVERRIDE CAP_DAC_READ_SEARCH CAP_FOWNER CAP_SYS_PTRACE
${more}# Block devices appear while we run; those of Xen are misc devices.
DevicePolicy=closed
DeviceAllow=block-* rw
DeviceAllow=char-misc rw
# An image in /usr, /boot or /etc can only be read.
ProtectSystem=full
PrivateMounts=yes
ProtectKernelTunables=yes
# Except for what keeps the kernel's own backend away from our disks.
ReadWritePaths=-/sys/bus/xen-backend
ProtectKernelModules=yes
ProtectKernelLogs=yes
ProtectControlGroups=yes
ProtectClock=yes
ProtectHostname=yes
RestrictAddressFamilies=AF_UNIX AF_INET AF_INET6
RestrictNamespaces=yes
RestrictRealtime=yes
RestrictSUIDSGID=yes
LockPersonality=yes
SystemCallArchitectures=native
# With what a process of ours needs to lock itself in.
SystemCallFilter=@system-service seccomp landlock_create_ruleset landlock_add_rule landlock_restrict_self
SystemCallFilter=~@resources
SystemCallErrorNumber=EPERM`;

/** A process for each guest becomes a user of its own, whom we may end. */
const OTHER_USERS = `CapabilityBoundingSet=CAP_KILL CAP_SETGID CAP_SETUID
`;

/**
 * xenstored is started by xen.service on Debian and by a unit of its own elsewhere, so none of them is required.
 */
const AFTER = "After=xen.service xenstored.service xen-init-dom0.service";

const watchUnit = (executable: string): string => `# Part of xentool.
[Unit]
Description=xentool: disks for Xen guests, served from user space
Documentation=man:xentool-blkback-watch(1)
ConditionPathExists=/proc/xen
# Until xenstored runs, we are started again and again.
${AFTER}
Before=xendomains.service
StartLimitIntervalSec=0

[Service]
Type=notify
ExecStart=${executable} -v blkback watch
# A new version takes the guests over, one after the other, while they work. /bin/kill is not on every host.
ExecReload=/bin/sh -c 'kill -USR2 "$MAINPID"'
Restart=always
RestartSec=1
# Each guest has a process with its threads, and two of them in a handover.
TasksMax=infinity
# A guest's process that the kernel kills for its memory is followed by another one; the other guests go on.
OOMPolicy=continue
${confined(OTHER_USERS)}

[Install]
WantedBy=multi-user.target
`;

const serveUnit = (
  executable: string,
): string => `# Part of xentool. One disk in a cgroup of its own. For xentool-serve@NAME, /etc/xentool/NAME.conf has
# the lines IMAGE=/a.img, DOMID=NAME and VDEV=xvdb, and may have one OPTIONS=--direct --iops 500.
[Unit]
Description=xentool: the disk %i of a Xen guest
Documentation=man:xentool-blkback-serve(1)
ConditionPathExists=/proc/xen
${AFTER}

[Service]
Type=notify
EnvironmentFile=/etc/xentool/%i.conf
ExecStart=${executable} -v blkback serve \${IMAGE} --domid \${DOMID} --vdev \${VDEV} $OPTIONS
# A disk that was detached, or whose guest is gone, is not served again; nor is one whose command line makes no sense.
Restart=on-failure
RestartSec=1
RestartPreventExitStatus=2
${confined()}

[Install]
WantedBy=multi-user.target
`;

/**
 * What narrows both units to images in some places: as a drop-in it does so to those of a package, too. Everything else
 * is read-only, and of homes and temporary files only these places are there.
 */
const narrowed = (places: readonly string[]): string => {
  const directories = places.filter((place) => place !== BLOCK_DEVICES && place !== NETWORK);
  const bound = directories.map((directory) => `BindPaths=-${directory}\n`).join("");
  return `# Part of xentool, written by: xentool blkback install --images. Run that again to change it, and without
# --images to have images anywhere.
[Unit]
# What is mounted on a place after we have started is not seen.
After=remote-fs.target
[Service]
Environment=${IMAGE_PLACES}=${places.join(":")}
ProtectSystem=strict
ProtectHome=tmpfs
PrivateTmp=yes
${bound}# /run/xentool outlives each of us.
RuntimeDirectory=xentool
RuntimeDirectoryPreserve=yes
# Without it we cannot say which process of somebody else's has an image.
CapabilityBoundingSet=~CAP_SYS_PTRACE
${places.includes(BLOCK_DEVICES) ? "" : NO_BLOCK_DEVICES}${places.includes(NETWORK) ? "" : NO_NETWORK}`;
};

const NO_BLOCK_DEVICES = `DeviceAllow=
DeviceAllow=char-misc rw
`;

const NO_NETWORK = `PrivateNetwork=yes
IPAddressDeny=any
RestrictAddressFamilies=
RestrictAddressFamilies=AF_UNIX
`;

/** Where the files go: those of a distribution below PREFIX/lib, those of an administrator below /etc. */
export interface Places {
  readonly executable: string;
  readonly rules: string;
  readonly units: string;
  readonly helper: string;
}

export function placesBelow(prefix: string): Places {
  return {
    executable: `${prefix}/bin/xentool`,
    rules: `${prefix}/lib/udev/rules.d`,
    units: `${prefix}/lib/systemd/system`,
    helper: `${prefix}/lib/xentool/backend-added`,
  };
}

export function administratorsPlaces(executable: string): Places {
  return {
    executable,
    rules: "/etc/udev/rules.d",
    units: ADMINISTRATORS_UNITS,
    helper: `${SCRIPTS}/xentool-backend-added`,
  };
}

export function hostFiles({ executable, rules, units, helper }: Places): HostFile[] {
  return [
    { path: `${SCRIPTS}/${HOTPLUG_SCRIPT}`, mode: 0o755, text: hotplugScript },
    { path: helper, mode: 0o755, text: helperScript },
    { path: `${rules}/${RULE}`, mode: 0o644, text: rule(helper) },
    { path: `${units}/${UNIT}`, mode: 0o644, text: watchUnit(executable) },
    { path: `${units}/${SERVE_UNIT}`, mode: 0o644, text: serveUnit(executable) },
  ];
}

/** What narrows the units, whoever has brought them, to images in `places`. */
export function narrowingFiles(places: readonly string[]): HostFile[] {
  const text = narrowed(places);
  return [UNIT, SERVE_UNIT].map((unit) => ({ path: narrowingFile(unit), mode: 0o644, text }));
}

/** The places in the text of such a file. */
export function placesIn(text: string): readonly string[] | undefined {
  const [, list] = new RegExp(`^Environment=${IMAGE_PLACES}=(.*)$`, "m").exec(text) ?? [];
  return list?.split(":");
}

/** Where it is. */
export function narrowingFile(unit = UNIT): string {
  return `${ADMINISTRATORS_UNITS}/${unit}.d/images.conf`;
}
