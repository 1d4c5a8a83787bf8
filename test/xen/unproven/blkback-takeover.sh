# A server that is killed with SIGKILL in mid-I/O is succeeded by the next, three times, and the guest loses nothing.
# limit: 500
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
note 'the daemon is killed in mid-I/O, three times; the next one goes on'
on g "(while [ ! -e /tmp/stop ]; do $busy --size=16M --verify=crc32c --verify_fatal=1 --verify_state_save=0 --randrepeat=0 >/tmp/fio 2>&1 || { echo 1 >/tmp/status; exit; }; done
  echo 0 >/tmp/status) >/dev/null 2>&1 &"
for _ in 1 2 3; do
  in_flight
  kill -KILL $WATCH; wait $WATCH || true
  start_watch
done
assert_eq "$(grep -c 'taking over' "$OUT/watch.log")" 3 'rings taken over'
in_flight
status=$(on g --limit 200 'touch /tmp/stop; until [ -e /tmp/status ]; do sleep 1; done; cat /tmp/status')
assert_eq "$status" 0 "fio's status: $(on g 'tail -3 /tmp/fio')"
note "$(grep -o '[0-9]* requests in flight are carried out again' "$OUT/watch.log" | paste -sd';')"
assert_eq "$(on g 'sha256sum </dev/xvdb')" "$(sha256sum <disk)" 'what the guest reads afterwards'

xl destroy g
stop_watch
assert_clean
