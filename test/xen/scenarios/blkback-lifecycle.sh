# A guest that reboots, shuts down, is destroyed or crashes in mid-I/O leaves nothing; a daemon that is stopped is
# succeeded by another; images that are full or shrink.
# limit: 600
# files: dist/xentool
. /payload/dom0/blkback.sh

install_script >/dev/null
start_watch
image disk 128M >/dev/null
busy='fio --name=b --filename=/dev/xvdb --rw=randrw --bsrange=4k-256k --iodepth=32 --ioengine=libaio --direct=1'
boot() { guest g --with fio "disk=['$(xl_disk xvdb "$WORK/disk")']"; }
# in_flight: until the guest's I/O goes on.
in_flight() { local before; before=$(stat_of g xvdb requests); wait_for 60 'I/O' _more "$before"; }
_more() { [ "$(stat_of g xvdb requests)" -gt $(($1 + 100)) ]; }

boot
note 'SIGTERM of the daemon; the guest waits for the next one'
stop_watch
on g 'dd if=/bin/busybox of=/dev/xvdb bs=64k count=16 oflag=direct 2>/dev/null' &
write=$!
start_watch
wait $write
assert_eq "$(head -c 1M disk | sha256sum)" "$(on g 'head -c 1048576 /bin/busybox | sha256sum')" 'written while nobody served'

note 'reboot'
xl reboot g
wait_up g 2
assert_eq "$(on g 'head -c 1048576 /dev/xvdb | sha256sum')" "$(head -c 1M disk | sha256sum)" 'after a reboot'

note 'crash in mid-I/O'
on g "$busy --size=64M --runtime=600 --time_based >/dev/null 2>&1 & sleep 1"
in_flight
on g '(sleep 1; echo c >/proc/sysrq-trigger) >/dev/null 2>&1 &'
wait_gone g
assert_clean

note 'destroyed in mid-I/O'
boot
on g "$busy --size=64M --runtime=600 --time_based >/dev/null 2>&1 & sleep 1"
in_flight
xl destroy g
assert_clean

note 'the next guest works; the image shrinks, and grows again'
boot
truncate -s 64M disk
on g '! dd if=/dev/xvdb of=/dev/null bs=64k skip=1536 count=1 iflag=direct 2>/dev/null'
on g 'dd if=/dev/xvdb of=/dev/null bs=64k count=16 iflag=direct 2>/dev/null'
truncate -s 128M disk
on g 'dd if=/dev/xvdb of=/dev/null bs=64k skip=1536 count=1 iflag=direct 2>/dev/null'

note 'an image on a file system that is full'
mkdir small; mount -t tmpfs -o size=2M tmpfs small
truncate -s 16M small/image
xl block-attach g "$(xl_disk xvdc "$WORK/small/image")"
wait_disk g xvdc
on g '! dd if=/dev/zero of=/dev/xvdc bs=64k count=256 oflag=direct 2>/dev/null'
on g 'blkdiscard /dev/xvdc && dd if=/bin/busybox of=/dev/xvdc bs=64k count=16 oflag=direct 2>/dev/null'
assert_eq "$(head -c 1M small/image | sha256sum)" "$(on g 'head -c 1048576 /bin/busybox | sha256sum')" 'written when there was room again'
xl block-detach g xvdc
umount small

shutdown g
assert_clean
stop_watch
