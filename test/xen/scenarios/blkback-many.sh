# One `xentool blkback watch` serves four disks of two guests at once, and rings of 1 to 16 pages.
# limit: 600
# files: dist/xentool
. /payload/dom0/blkback.sh

install_script >/dev/null
start_watch
guest g --with fio
guest h --with fio
# blkfront's parameter is read only when the module is loaded.
ring_order() { on "$1" "rmmod xen_blkfront && insmod /mod/*-xen-blkfront.ko max_ring_page_order=$2"; }
fio_verify() {
  on "$1" --limit 300 "fio --filename=/dev/$2 --name=v --rw=randwrite --bsrange=4k-128k --size=12M --iodepth=${3:-32} --ioengine=libaio \
--direct=1 --verify=crc32c --verify_fatal=1 --verify_state_save=0 >/tmp/fio.$2 2>&1 || { tail -5 /tmp/fio.$2; false; }"
}

for order in 0 2 4; do
  ring_order g $order
  note "ring order $order"
  xl block-attach g "$(xl_disk xvdb "$(image "g$order" 32M)")"
  wait_disk g xvdb
  fio_verify g xvdb 128
  assert_eq "$(stat_of g xvdb ringSlots)" $((32 << order)) 'slots of the ring'
  [ $order = 4 ] || xl block-detach g xvdb
done

note 'four disks of two guests at once, rings of one page and of 16'
ring_order h 0
xl block-attach g "$(xl_disk xvdc "$(image gc 32M)")"
xl block-attach h "$(xl_disk xvdb "$(image hb 32M)")"
xl block-attach h "$(xl_disk xvdc "$(image hc 32M)")"
jobs=()
for name in g h; do
  wait_disk $name xvdb; wait_disk $name xvdc
  on $name --limit 300 "for d in xvdb xvdc; do fio --filename=/dev/\$d --name=v --rw=randwrite --bsrange=4k-128k --size=24M --iodepth=32 --ioengine=libaio \
--direct=1 --verify=crc32c --verify_fatal=1 --verify_state_save=0 >/tmp/fio.\$d 2>&1 || echo failed >>/tmp/failed & done; wait; ! cat /tmp/failed 2>/dev/null" &
  jobs+=($!)
done
for job in "${jobs[@]}"; do wait "$job"; done
xentool blkback stats >"$OUT/stats.txt"
assert_eq "$(xentool blkback list | grep -c Connected)" 4 'disks served'
assert_eq "$(on h 'sha256sum </dev/xvdc')" "$(sha256sum <hc)" 'data'

xl destroy h
assert_eq "$(on g 'sha256sum </dev/xvdb')" "$(sha256sum <g4)" 'data of the guest that stays'
xl destroy g
stop_watch
assert_clean
