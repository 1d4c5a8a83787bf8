# xl's guest on a qcow2: what it trims makes the image smaller; QEMU's storage daemon is killed in mid-fio with
# verification, and nothing is lost. At the end the image is sound, and has what the guest read.
# on: trixie
# limit: 600
# files: dist/xentool
. /payload/dom0/blkback.sh

install_script >/dev/null
start_watch
qemu-img create -q -f qcow2 disk.qcow2 64M
guest g --with fio "disk=['$(xl_disk xvdb "qcow2:$WORK/disk.qcow2")']"
daemon() { pgrep -x qemu-storage-da; }
allocated() { echo $(($(stat -c %b disk.qcow2) / 2)); } # KiB
_below() { [ "$(allocated)" -lt "$1" ]; }

note 'a file of 32 MiB, and without it'
on g '/sbin/mke2fs -q -t ext4 /dev/xvdb && mount /dev/xvdb /mnt && dd if=/dev/urandom of=/mnt/big bs=1M count=32 2>/dev/null && sync'
full=$(allocated)
assert_at_least "$full" 32768 'KiB that the image has on its host'
on g 'rm /mnt/big && sync && fstrim /mnt && umount /mnt'
wait_for 60 'the image to become smaller' _below $((full - 30 * 1024))
note "from $full KiB to $(allocated)"

note 'the storage daemon is killed in mid-I/O, three times'
busy='fio --name=b --filename=/dev/xvdb --rw=randrw --bsrange=4k-32k --iodepth=32 --ioengine=libaio --direct=1 --size=24M
  --fsync=64 --verify=crc32c --verify_fatal=1 --verify_state_save=0 --randrepeat=0'
busy=${busy//$'\n'/}
on g "(while [ ! -e /tmp/stop ]; do $busy >/tmp/fio 2>&1 || { echo 1 >/tmp/status; exit; }; done; echo 0 >/tmp/status) >/dev/null 2>&1 &"
in_flight() { local before; before=$(stat_of g xvdb requests); wait_for 90 'I/O' _more "$before"; }
_more() { [ "$(stat_of g xvdb requests)" -gt $(($1 + 40)) ]; }
_another() { [ -n "$(daemon)" ] && [ "$(daemon)" != "$1" ]; }
for _ in 1 2 3; do
  in_flight
  killed=$(daemon)
  kill -KILL "$killed"
  wait_for 60 'another daemon' _another "$killed"
done
in_flight
status=$(on g --limit 200 'touch /tmp/stop; until [ -e /tmp/status ]; do sleep 1; done; cat /tmp/status')
assert_eq "$status" 0 "fio's status: $(on g 'tail -3 /tmp/fio')"
read_by_guest=$(on g 'sha256sum </dev/xvdb')

note 'the image, when the guest is gone'
shutdown g
_no_daemon() { ! daemon; }
wait_for 60 'the storage daemon to end' _no_daemon
qemu-img check -q disk.qcow2
qemu-img convert -f qcow2 -O raw disk.qcow2 raw
assert_eq "$(sha256sum <raw)" "$read_by_guest" 'what the image has'
stop_watch
xentool blkback uninstall >/dev/null; INSTALLED=
assert_clean
