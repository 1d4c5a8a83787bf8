# xl's disks with script=block-xentool are served by `xentool blkback watch`: attach, detach, a disk line of a
# configuration; errors reach xl with their reason, and xenstore is clean after each. A guest's process is a user of its
# own, without privileges.
# on: trixie arm64
# limit: 700
# files: dist/xentool
. /payload/dom0/blkback.sh

install_script >installed
assert_eq "$(wc -l <installed)" 5 'files installed'
image disk 64M >/dev/null; image other 32M >/dev/null
guest g
id=$(domid g) number=$(devid xvdb)
ours=$(backend vbd g "$number")

note 'no daemon: xl is told so'
echo 0 >/sys/bus/xen-backend/drivers_autoprobe # as the unit leaves it when the daemon dies
assert_fails 'xentool blkback watch does not answer' xl block-attach g "$(xl_disk xvdb "$WORK/disk")"
start_watch
# libxl waits ten seconds, whatever $PATIENCE is, and the daemon first starts a process for this guest.
wait_for 60 'the disk to be detached' xl block-detach g xvdb
assert_gone g xvdb

note 'the image is missing, or is none'
assert_fails "script: .*cannot open $WORK/none" xl block-attach g "$(xl_disk xvdb "$WORK/none")"
xl block-detach g xvdb
assert_gone g xvdb
assert_fails 'script: .*neither a file nor a block device' xl block-attach g "$(xl_disk xvdb /dev/null)"
xl block-detach g xvdb

note 'attached'
xl block-attach g "$(xl_disk xvdb "$WORK/disk")"
wait_xs "$ours/state" 4
wait_disk g xvdb
assert_eq "$(on g 'cat /sys/block/xvdb/size /sys/block/xvdb/ro | paste -sd" "')" '131072 0' 'size and read-only flag'

note "the guest's process is killed while it writes"
uid=$((65536 + id))
is_somebody() {
  assert_jailed "$(pgrep -P $WATCH)" $uid
  assert_eq "$(stat -c %u "/run/xentool/blkback/$id"/*.journal)" $uid 'whose the journal is'
}
is_somebody
on g 'dd if=/bin/busybox of=/dev/xvdb bs=64k count=16 seek=256 oflag=direct 2>/dev/null' &
write=$!
pkill -KILL -P $WATCH
wait $write
is_somebody
assert_eq "$(dd if=disk bs=1M count=1 skip=16 status=none | sha256sum)" "$(on g 'head -c 1048576 /bin/busybox | sha256sum')" 'written meanwhile'

note 'a file system'
on g '/sbin/mke2fs -q -t ext4 /dev/xvdb && mount /dev/xvdb /mnt && cp /bin/busybox /mnt/ && sync && umount /mnt'
assert_fails "in use: xvdb of domain $id, served by this process" xl block-attach g "$(xl_disk xvdc "$WORK/disk")"
xl block-detach g xvdc
[ ! -e "/sys/bus/xen-backend/devices/vbd-$id-$number/driver" ] || fail "the kernel's blkback has taken our disk"

note "the kernel's blkback, loaded now, leaves it alone"
modprobe xen-blkback
[ ! -e "/sys/bus/xen-backend/devices/vbd-$id-$number/driver" ] || fail "the kernel's blkback has taken our disk"

note 'detached'
xl block-detach g xvdb
assert_gone g xvdb
e2fsck -fn disk >fsck.log 2>&1 || fail "e2fsck: $(cat fsck.log)"

note 'detached while it is mounted'
xl block-attach g "$(xl_disk xvdb "$WORK/disk")"
wait_disk g xvdb
on g 'mount /dev/xvdb /mnt && echo some >/mnt/file && sync'
status=0; xl block-detach g xvdb 2>detach.log || status=$?
note "xl block-detach: status $status $(paste -sd' ' detach.log); frontend '$(xs "/local/domain/$id/device/vbd/$number/state")', backend '$(xs "$ours/state")'"
on g 'echo more >/mnt/other; sync; umount /mnt; true' >"$OUT/guest-after-detach.txt" 2>&1
[ $status = 0 ] || xl block-detach g xvdb
assert_gone g xvdb
status=0; e2fsck -fp disk >fsck.log 2>&1 || status=$?
[ $status -le 1 ] || fail "e2fsck: $(cat fsck.log)"

note 'read-only, and taken away by force'
xl block-attach g "$(xl_disk xvdb "$WORK/disk" r)"
wait_disk g xvdb
assert_eq "$(on g 'cat /sys/block/xvdb/ro')" 1 'read-only flag'
xentool blkback force-close --kind vbd --domid "$id" --vdev xvdb
wait_xs "$ours/state" 6
xl block-detach g xvdb
assert_gone g xvdb

note 'from a configuration: a guest with a disk that is missing, and one with two'
assert_fails "cannot open $WORK/none" guest h --no-wait "disk=['$(xl_disk xvda "$WORK/none")']"
! alive h || fail 'a guest without its disk was left'
guest h "disk=['$(xl_disk xvda "$WORK/disk" r)', '$(xl_disk xvdb "$WORK/other")']"
assert_eq "$(on h 'cat /sys/block/xvda/size /sys/block/xvda/ro /sys/block/xvdb/size | paste -sd" "')" '131072 1 65536' 'what it sees'
on h 'mount -o ro /dev/xvda /mnt && cmp /mnt/busybox /bin/busybox && umount /mnt'
shutdown h

xl destroy g
stop_watch
xentool blkback uninstall >/dev/null; INSTALLED=
assert_eq "$(cat /sys/bus/xen-backend/drivers_autoprobe)" 1 'drivers_autoprobe after uninstall'
assert_clean
