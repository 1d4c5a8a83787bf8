# An image that this host or another guest uses is refused, and xl told why; Xen's own block script sees ours. A guest that is
# restored beside its paused self does not get its disk; one that is migrated on its host does.
# limit: 600
# files: dist/xentool
. /payload/dom0/blkback.sh

install_script >/dev/null
start_watch
image disk 32M >/dev/null; image root 32M >/dev/null
guest g "disk=['$(xl_disk xvda "$WORK/root")']"
id=$(domid g)

note 'a mounted device, with a partition; xl is told where'
printf '\x83\0\0\0\0\x08\0\0\0\xf0\0\0' | dd of=disk bs=1 seek=450 conv=notrunc status=none
printf '\x55\xaa' | dd of=disk bs=1 seek=510 conv=notrunc status=none
loop=$(losetup --find --show --partscan disk)
mkfs.ext4 -q "${loop}p1"; mkdir mnt; mount "${loop}p1" mnt
assert_fails "script: $loop is in use: its partition ${loop}p1 is mounted at $WORK/mnt" xl block-attach g "$(xl_disk xvdb "$loop")"
xl block-detach g xvdb
assert_gone g xvdb
assert_fails "script: $WORK/disk is in use: $loop lies over it .its partition ${loop}p1 is mounted at $WORK/mnt.; target=w!:PATH shares it" \
  xl block-attach g "$(xl_disk xvdb "$WORK/disk")"
xl block-detach g xvdb
umount mnt

note 'served, it cannot be mounted, and Xen does not give it to another domain'
xl block-attach g "$(xl_disk xvdb "$loop")"
wait_disk g xvdb
assert_eq "$(xs "$(backend vbd g "$(devid xvdb)")/physical-device")" "$(stat -c %t:%T "$loop")" 'physical-device'
assert_fails "busy|Can't open blockdev" mount "${loop}p1" mnt
assert_fails 'mounted in a guest domain' xl block-attach 0 "format=raw,vdev=xvdz,access=rw,backendtype=phy,target=$loop"
xl block-detach 0 xvdz 2>/dev/null || true
xl block-detach g xvdb
assert_gone g xvdb
losetup --detach "$loop"

note 'restored beside its paused self'
on g 'echo before | dd of=/dev/xvda bs=512 conv=sync oflag=direct 2>/dev/null'
xl save -p g saved
sed "s/^name=.*/name='h'/" g.cfg >h.cfg
assert_fails "in use: xvda of domain $id, served by this process;" xl restore h.cfg saved
! alive h || fail 'a guest without its disk was left'
xl unpause g
assert_eq "$(on g 'dd if=/dev/xvda bs=512 count=1 iflag=direct 2>/dev/null | head -c 6')" before 'the paused guest goes on'

note 'restored in its place'
xl save -p g saved
xl destroy g
xl restore h.cfg saved
assert_eq "$(on h 'dd if=/dev/xvda bs=512 count=1 iflag=direct 2>/dev/null | head -c 6')" before 'the restored guest goes on'

note 'migrated to its own host, with its disk at both ends for a while'
xl migrate -s '' h 'exec xl migrate-receive' >migrate.log 2>&1 || fail "xl migrate: $(cat migrate.log)"
cp migrate.log "$OUT/"
xl rename h h--incoming # which is how its console's log is called
assert_eq "$(on h--incoming 'dd if=/dev/xvda bs=512 count=1 iflag=direct 2>/dev/null | head -c 6')" before 'the migrated guest goes on'

xl destroy h--incoming
stop_watch
xentool blkback uninstall >/dev/null; INSTALLED=
assert_clean
