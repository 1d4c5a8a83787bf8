# With `--grants persistent` a Linux guest lends its pages once, with one queue and with four: fio's checksums are right,
# also when the server is killed meanwhile, and no page stays mapped.
# limit: 900
# files: dist/xentool
. /payload/dom0/blkback.sh

guest g --with fio 'vcpus=4'
id=$(domid g)
image disk 64M >/dev/null
served=0
begin() {
  attach g xvdb disk --grants persistent --max-queues "$1"
  wait_for 60 'the rings to be served' _served $((++served))
}
_served() { [ "$(grep -c 'queues* of' "$OUT/serve-xvdb.log")" = "$1" ]; }
# kept: pages of the guest that dom0 has mapped, less the rings and the console, which are mapped anyway.
kept() { grants | grep -c "^grant d$id ref .* mapped by d0" || true; }
job='fio --filename=/dev/xvdb --rw=randrw --bsrange=4k-64k --iodepth=16 --ioengine=libaio --direct=1 --size=12M --verify=crc32c
  --verify_fatal=1 --verify_state_save=0 --randrepeat=0 --offset_increment=16M --numjobs=4 --name=p'
job=${job//$'\n'/}
in_flight() { local before; before=$(stat_of g xvdb requests); wait_for 60 'I/O' _more "$before"; }
_more() { [ "$(stat_of g xvdb requests)" -gt $(($1 + 40)) ]; }

for queues in 4; do
  note "$queues queues"
  before=$(kept)
  begin $queues
  assert_eq "$(on g 'ls /sys/block/xvdb/mq | wc -l')" $queues 'queues that the guest has'
  assert_eq "$(xs "/local/domain/$id/device/vbd/$(devid xvdb)/feature-persistent")" 1 'what the guest agrees to'
  on g "rm -f /tmp/stop /tmp/status; (while [ ! -e /tmp/stop ]; do $job >/tmp/fio 2>&1 || { echo 1 >/tmp/status; exit; }; done; echo 0 >/tmp/status) >/dev/null 2>&1 &"
  in_flight
  pages=$(($(kept) - before))
  note "$pages pages are mapped"
  assert_at_least $pages $((queues * 32)) 'pages that are kept'

  kill -KILL $SERVER; wait $SERVER || true
  begin $queues
  in_flight
  status=$(on g --limit 200 'touch /tmp/stop; until [ -e /tmp/status ]; do sleep 1; done; cat /tmp/status')
  assert_eq "$status" 0 "fio's status: $(on g 'tail -3 /tmp/fio')"
  assert_eq "$(on g 'sha256sum </dev/xvdb')" "$(sha256sum <disk)" 'what the guest reads afterwards'
  detach
  assert_eq "$(kept)" "$before" 'pages mapped when the disk is gone'
done

shutdown g
assert_clean
