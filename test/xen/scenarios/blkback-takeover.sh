# A server that is killed with SIGKILL with requests in flight is succeeded by the next, and the guest loses nothing. No thread
# of either has a privilege.
# on: trixie arm64
# limit: 900
# files: dist/xentool
. /payload/dom0/blkback.sh

guest g --with fio
image disk 64M >/dev/null
# Each request takes a while, so that some are in flight at every moment.
begin() {
  xentool -v blkback serve disk --domid "$(domid g)" --vdev xvdb --filter delay:ms=100 >>"$OUT/serve.log" 2>&1 &
  SERVER=$!
}
# carried_out: how many requests in flight each successor so far found and carried out again.
carried_out() { sed -n 's/.* \([0-9]*\) requests\{0,1\} in flight to carry out again/\1/p' "$OUT/serve.log"; }
_taken_over() { [ "$(carried_out | wc -l)" = "$1" ]; }
# in_flight: until the guest's I/O goes on.
in_flight() { local before; before=$(stat_of g xvdb requests); wait_for 60 'I/O' _more "$before"; }
_more() { [ "$(stat_of g xvdb requests)" -gt $(($1 + 40)) ]; }

begin
wait_disk g xvdb
assert_jailed $SERVER
note 'the server is killed in mid-I/O, three times; the next one goes on'
busy='fio --name=b --filename=/dev/xvdb --rw=randrw --bsrange=4k-32k --iodepth=32 --ioengine=libaio --direct=1 --size=24M
  --verify=crc32c --verify_fatal=1 --verify_state_save=0 --randrepeat=0'
busy=${busy//$'\n'/}
on g "(while [ ! -e /tmp/stop ]; do $busy >/tmp/fio 2>&1 || { echo 1 >/tmp/status; exit; }; done; echo 0 >/tmp/status) >/dev/null 2>&1 &"
for kills in 1 2 3; do
  in_flight
  kill -KILL $SERVER; wait $SERVER || true
  begin
  wait_for 60 'the ring to be taken over' _taken_over $kills
done
note "requests that were in flight: $(carried_out | paste -sd' ')"
assert_at_least "$(carried_out | sort -n | tail -1)" 8 'requests in flight'
in_flight
assert_jailed $SERVER
status=$(on g --limit 200 'touch /tmp/stop; until [ -e /tmp/status ]; do sleep 1; done; cat /tmp/status')
assert_eq "$status" 0 "fio's status: $(on g 'tail -3 /tmp/fio')"
assert_eq "$(on g 'sha256sum </dev/xvdb')" "$(sha256sum <disk)" 'what the guest reads afterwards'

note 'killed, and a write waits for the next one'
kill -KILL $SERVER; wait $SERVER || true
on g 'dd if=/bin/busybox of=/dev/xvdb bs=64k count=8 oflag=direct 2>/dev/null' &
write=$!
begin
wait $write
assert_eq "$(head -c 512K disk | sha256sum)" "$(on g 'head -c 524288 /bin/busybox | sha256sum')" 'written while nobody served'

note 'a larger image'
truncate -s 128M disk
xentool blkback resize --domid "$(domid g)" --vdev xvdb
_has_sectors() { [ "$(on g 'cat /sys/block/xvdb/size')" = 262144 ]; }
wait_for 30 'the new size' _has_sectors

detach
shutdown g
assert_clean
