# A driver domain: the backend in one guest, the frontend in another. And our own frontend in a guest, against
# the kernel's blkback. (QEMU's qdisk is in test/interop.)
# limit: 900
# files: dist/xentool
. /payload/dom0/blkback.sh

xentool=$(command -v xentool)
note 'backend in guest a, frontend in guest b'
# Two processors, because libxl waits ten seconds for a disk, and with one it once took longer to start its process.
guest a --memory 900 --with "$xentool:/bin/xentool" 'driver_domain=1' 'vcpus=2'
guest b
on a 'truncate -s 64M /tmp/disk; xentool -v blkback watch >/tmp/watch.log 2>&1 &
  until grep -q "serving the disks" /tmp/watch.log; do sleep 0.2; done'
xl block-attach b "format=raw,vdev=xvdb,access=rw,backend=a,target=/tmp/disk"
wait_disk b xvdb
on b '/sbin/mke2fs -q -t ext4 /dev/xvdb && mount /dev/xvdb /mnt && cp /bin/busybox /bin/bash /mnt/ && sync && umount /mnt'
assert_eq "$(on b 'sha256sum </dev/xvdb')" "$(on a 'sha256sum </tmp/disk')" 'the same bytes on both sides'
on a '/sbin/e2fsck -fn /tmp/disk >/dev/null'
xl block-detach b xvdb
assert_eq "$(xenstore-ls "/local/domain/$(domid a)/backend/vbd/$(domid b)" 2>/dev/null || true)" '' "what is left in the driver domain's directory"
on a 'cat /tmp/watch.log' >"$OUT/watch-in-guest.txt"
xl destroy a; xl destroy b
assert_clean

note "our frontend against the kernel's blkback"
dd if=/dev/urandom of="$(image disk 8M)" bs=1M count=8 status=none
# An empty file in place of the kernel's own frontend.
module=$(cpio -t </lab/guest/base.cpio 2>/dev/null | grep 'xen-blkfront')
guest c --memory 900 --with "$xentool:/bin/xentool" --with "$(command -v nbdcopy):/bin/nbdcopy" --with "/dev/null:/${module#./}"
xl block-attach c "format=raw,vdev=xvdb,access=rw,backendtype=phy,target=$(losetup --find --show disk)"
on c "xentool -v blkfront nbd --vdev xvdb --socket /tmp/s >/tmp/nbd.log 2>&1 & echo \$! >/tmp/pid
  until [ -S /tmp/s ] && grep -q 'serving' /tmp/nbd.log; do kill -0 \$(cat /tmp/pid) || { cat /tmp/nbd.log; exit 1; }; sleep 0.2; done"
on c "nbdcopy 'nbd+unix:///?socket=/tmp/s' /tmp/copy && sha256sum </tmp/copy" >copied
assert_eq "$(cat copied)" "$(sha256sum <disk)" 'what blkback gives our frontend'
on c "dd if=/dev/urandom of=/tmp/new bs=1M count=8 2>/dev/null; nbdcopy --flush /tmp/new 'nbd+unix:///?socket=/tmp/s' && sha256sum </tmp/new" >written
assert_eq "$(cat written)" "$(sha256sum <disk)" 'what our frontend gives blkback'
on c 'kill $(cat /tmp/pid); while kill -0 $(cat /tmp/pid) 2>/dev/null; do sleep 0.2; done'
xl block-detach c xvdb
losetup -D
xl destroy c
assert_clean
