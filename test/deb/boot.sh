#!/bin/sh
# Run by `npm run test:deb` as root in a mount and PID namespace of its own: boots the systemd of the Debian root $1 as
# PID 1, in a cgroup namespace of its own, which has it run /deb/booted.sh. Ends with the status of that.
set -eu
root=$1
groups=$(findmnt -n -t cgroup2 -o TARGET | head -n 1)
[ -n "$groups" ] || { echo 'no cgroup2 is mounted here'; exit 1; }
group=$groups/xentool-test-$$
if [ "${2-}" != inside ]; then
  mkdir "$group"
  status=0
  # The group of the shell that unshares becomes the root that systemd sees.
  unshare --mount --pid --fork --kill-child --uts --ipc --mount-proc sh -c \
    'echo 0 >"$1/cgroup.procs"; exec unshare --cgroup sh "$2" "$3" inside' enter "$group" "$0" "$root" || status=$?
  find "$group" -depth -type d -exec rmdir {} +
  exit $status
fi
mount --bind "$root" "$root"
mount -t proc proc "$root/proc"
mount -t sysfs -o ro sysfs "$root/sys"
mount -t cgroup2 cgroup2 "$root/sys/fs/cgroup"
mount -t tmpfs tmpfs "$root/run"
mount -t tmpfs tmpfs "$root/dev"
for device in null zero full random urandom tty; do
  touch "$root/dev/$device"
  mount --bind "/dev/$device" "$root/dev/$device"
done
mkdir "$root/dev/shm" "$root/dev/pts"
ln -s pts/ptmx "$root/dev/ptmx"
units=$root/etc/systemd/system
mkdir -p "$units/multi-user.target.wants"
cat >"$units/booted.service" <<'END'
[Unit]
After=multi-user.target
[Service]
Type=oneshot
ExecStart=/bin/sh -c 'status=0; sh /deb/booted.sh || status=$$?; systemctl exit $$status'
StandardOutput=file:/deb/booted.log
StandardError=inherit
END
ln -s ../booted.service "$units/multi-user.target.wants/booted.service"
export container=xentool
exec chroot "$root" /lib/systemd/systemd systemd.unit=multi-user.target
