# `serve` in its jail on real Xen: a Linux guest's checksums are right, also under a successor of a server that was killed;
# no thread has a privilege, and each has its filter. `watch`: a guest's process is a user of its own besides.
# limit: 500
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

note 'the same disk from `watch`'
install_script >/dev/null
start_watch
xl block-attach g "$(xl_disk xvdb "$WORK/disk")"
wait_disk g xvdb
uid=$((65536 + $(domid g)))
is_somebody() {
  SERVER=$(pgrep -P $WATCH)
  assert_eq "$(jailed)" 'CapEff: 0000000000000000 NoNewPrivs: 1 Seccomp: 2 ' 'what the threads may do'
  assert_eq "$(who)" "Gid: $uid $uid $uid $uid Groups: Uid: $uid $uid $uid $uid " 'who they are'
  assert_eq "$(stat -c %u "/run/xentool/blkback/$(domid g)"/*.journal)" $uid 'whose the journal is'
}
who() { { grep -hsE '^(Uid|Gid|Groups):' /proc/$SERVER/task/*/status || true; } | sort -u | tr -s ' \t\n' ' '; }
is_somebody
on g 'dd if=/bin/busybox of=/dev/xvdb bs=64k count=16 oflag=direct 2>/dev/null' &
write=$!
kill -KILL "$SERVER"
wait $write
is_somebody
assert_eq "$(head -c 1M disk | sha256sum)" "$(on g 'head -c 1048576 /bin/busybox | sha256sum')" 'written meanwhile'
xl block-detach g xvdb
shutdown g
assert_clean
stop_watch
