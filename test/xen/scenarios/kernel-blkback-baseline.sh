# The backends that Xen comes with serve a Linux guest: how fast they are, our yardstick.
# QEMU's qdisk, and kernel blkback over a loop device.
# limit: 400

dd if=/dev/zero of="$(image disk 256M)" bs=1M count=256 status=none
# libxl attaches a qdisk only to a guest that has had one from the beginning: there is no device model otherwise.
guest g --with fio "disk=['format=raw,vdev=xvdb,access=rw,backendtype=qdisk,target=$WORK/disk']"

for kind in qdisk vbd; do
  [ $kind = qdisk ] ||
    xl block-attach g "format=raw,vdev=xvdb,access=rw,backendtype=phy,target=$(losetup --find --show disk)"
  backend=$(backend $kind g "$(devid xvdb)")
  wait_xs "$backend/state" 4
  assert_eq "$(on g 'cat /sys/block/xvdb/size')" $((256 * 2048)) "the disk's size in sectors"
  on g 'dd if=/dev/urandom of=/tmp/data bs=64k count=16 2>/dev/null'
  on g 'dd if=/tmp/data of=/dev/xvdb bs=64k oflag=direct 2>/dev/null'
  assert_eq "$(head -c 1M disk | sha256sum)" "$(on g 'sha256sum </tmp/data')" 'what the guest wrote'
  note "$kind: fio"
  fio_figures g /dev/xvdb >$kind.fio
  xl block-detach g xvdb
  wait_xs "$backend/state" ''
done
losetup -D
fio_table qdisk=qdisk.fio vbd=vbd.fio | tee "$OUT/table.txt"
