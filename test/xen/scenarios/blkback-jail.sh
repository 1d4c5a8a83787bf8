# `serve` in its jail on real Xen: a Linux guest's checksums are right, also under a successor of a server that was killed;
# no thread has a privilege, and each has its filter.
# limit: 400
# files: dist/xentool
. /payload/dom0/blkback.sh

guest g --with fio 'vcpus=2'
image disk 64M >/dev/null
begin() { xentool -v blkback serve disk --domid "$(domid g)" --vdev xvdb --filter delay:ms=20 >>"$OUT/serve.log" 2>&1 & SERVER=$!; }
in_flight() { local before; before=$(stat_of g xvdb requests); wait_for 60 'I/O' _more "$before"; }
_more() { [ "$(stat_of g xvdb requests)" -gt $(($1 + 40)) ]; }
_connected() { [ "$(grep -c 'queues* of' "$OUT/serve.log")" = "$1" ]; }
# jailed: what every thread of the server may do. One may end meanwhile.
jailed() { { grep -hsE '^(CapEff|NoNewPrivs|Seccomp):' /proc/$SERVER/task/*/status || true; } | sort -u | tr -s '\t\n' ' '; }

_has_sectors() { [ "$(on g 'cat /sys/block/xvdb/size')" = "$1" ]; }

begin
wait_disk g xvdb
assert_eq "$(jailed)" 'CapEff: 0000000000000000 NoNewPrivs: 1 Seccomp: 2 ' 'what the threads may do'
job='fio --name=j --filename=/dev/xvdb --rw=randrw --bsrange=4k-64k --iodepth=16 --ioengine=libaio --direct=1 --size=16M
  --fsync=64 --verify=crc32c --verify_fatal=1 --verify_state_save=0 --randrepeat=0'
job=${job//$'\n'/}
on g "(while [ ! -e /tmp/stop ]; do $job >/tmp/fio 2>&1 || { echo 1 >/tmp/status; exit; }; done; echo 0 >/tmp/status) >/dev/null 2>&1 &"
in_flight

note 'killed under load'
kill -KILL $SERVER; wait $SERVER || true
begin
wait_for 60 'the ring to be taken over' _connected 2
in_flight
status=$(on g --limit 200 'touch /tmp/stop; until [ -e /tmp/status ]; do sleep 1; done; cat /tmp/status')
assert_eq "$status" 0 "fio's status: $(on g 'tail -3 /tmp/fio')"
assert_eq "$(on g 'sha256sum </dev/xvdb')" "$(sha256sum <disk)" 'what the guest reads afterwards'

note 'a larger image'
truncate -s 128M disk
xentool blkback resize --domid "$(domid g)" --vdev xvdb
wait_for 30 'the new size' _has_sectors 262144
detach
shutdown g
assert_clean
