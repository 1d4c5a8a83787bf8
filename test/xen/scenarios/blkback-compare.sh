# The same guest and image, served by xentool, QEMU's qdisk and the kernel's blkback over loop: fio's figures side
# by side, and what a request costs xentool in system calls.
# limit: 900
# files: dist/xentool
# run: by name
. /payload/dom0/blkback.sh

install_script >/dev/null
dd if=/dev/zero of="$(image disk 256M)" bs=1M count=256 status=none
# libxl attaches a qdisk only to a guest that has had one from the beginning: there is no device model otherwise.
guest g --with fio "disk=['format=raw,vdev=xvdb,access=rw,backendtype=qdisk,target=$WORK/disk']"

# measure NAME: after a while of load, so that our JIT and everyone's caches are warm.
measure() {
  note "$1: fio"
  on g "fio --name=warm --filename=/dev/xvdb --direct=1 --ioengine=libaio --rw=randrw --bs=4k --iodepth=32 --runtime=5 --time_based >/dev/null"
  fio_figures g /dev/xvdb 4 >"$1.fio"
}
detached() { xl block-detach g xvdb; wait_xs "$1/state" ''; }

measure qdisk
detached "$(backend qdisk g "$(devid xvdb)")"

start_watch
xl block-attach g "$(xl_disk xvdb "$WORK/disk")"
wait_disk g xvdb
measure xentool
for depth in 1 32; do
  before=$(stat_of g xvdb requests)
  strace -f -c -S calls -o "$OUT/strace-$depth.txt" -p $WATCH & strace=$!
  on g "fio --name=s --filename=/dev/xvdb --direct=1 --ioengine=libaio --rw=randread --bs=4k --iodepth=$depth --runtime=5 --time_based >/dev/null"
  kill -INT $strace; wait $strace || true
  echo "depth $depth: $(($(stat_of g xvdb requests) - before)) requests"
  head -12 "$OUT/strace-$depth.txt"
done
detached "$(backend vbd g "$(devid xvdb)")"
stop_watch

echo 1 >/sys/bus/xen-backend/drivers_autoprobe
xl block-attach g "format=raw,vdev=xvdb,access=rw,backendtype=phy,target=$(losetup --find --show disk)"
wait_disk g xvdb
measure blkback
detached "$(backend vbd g "$(devid xvdb)")"
losetup -D

for other in qdisk blkback; do fio_table $other=$other.fio xentool=xentool.fio; done | tee "$OUT/table.txt"
shutdown g
assert_clean
