// What dpkg runs when the package comes, changes and goes. The calls are those of debhelper's dh_installsystemd, so
// that an administrator's choices (disabled, masked) survive upgrades.
import { dirname } from "node:path";

/**
 * An upgrade has the running daemon hand its guests to the new executable (`systemctl reload`), so none of them waits
 * for it. `serve` is left alone, since it lets go at its end.
 */
export const postinst = (unit: string): string => `#!/bin/sh
set -e
if [ "$1" = configure ] || [ "$1" = abort-upgrade ] || [ "$1" = abort-deconfigure ] || [ "$1" = abort-remove ]; then
	if [ -e /run/udev/control ]; then udevadm control --reload || true; fi
	deb-systemd-helper unmask ${unit} >/dev/null || true
	if deb-systemd-helper --quiet was-enabled ${unit}; then
		deb-systemd-helper enable ${unit} >/dev/null || true
	else
		deb-systemd-helper update-state ${unit} >/dev/null || true
	fi
	if [ -d /run/systemd/system ]; then
		systemctl --system daemon-reload >/dev/null || true
		if systemctl --quiet is-active ${unit}; then action=reload; else action=start; fi
		deb-systemd-invoke $action ${unit} >/dev/null || true
	fi
fi
`;

export const prerm = (unit: string): string => `#!/bin/sh
set -e
if [ "$1" = remove ] && [ -d /run/systemd/system ]; then
	deb-systemd-invoke stop ${unit} >/dev/null || true
fi
`;

/** `narrowing`: what `blkback install --images` has written since. */
export const postrm = (unit: string, narrowing: readonly string[]): string => `#!/bin/sh
set -e
if [ "$1" = remove ]; then
	if [ -e /run/udev/control ]; then udevadm control --reload || true; fi
	# Without the udev rule, the kernel has to bind new backend devices by itself again.
	autoprobe=/sys/bus/xen-backend/drivers_autoprobe
	if [ -w $autoprobe ]; then echo 1 >$autoprobe || true; fi
fi
if [ "$1" = purge ]; then
	deb-systemd-helper purge ${unit} >/dev/null || true
${narrowing.map((path) => `	rm -f ${path}\n	rmdir --ignore-fail-on-non-empty ${dirname(path)} 2>/dev/null || true\n`).join("")}fi
if [ -d /run/systemd/system ]; then
	systemctl --system daemon-reload >/dev/null || true
fi
`;
