# A Linux guest with four processors uses a disk with four queues: fio's checksums are right from all processors at once,
# also when the server is killed meanwhile and its successor offers one queue only; and when two threads have two each.
# limit: 900
# files: dist/xentool
. /payload/dom0/blkback.sh

guest g --with fio 'vcpus=4'
image disk 64M >/dev/null
begin() {
  xentool -v blkback serve disk --domid "$(domid g)" --vdev xvdb "$@" >>"$OUT/serve.log" 2>&1 &
  SERVER=$!
}
queues() { on g 'ls /sys/block/xvdb/mq | wc -l'; }
# busy_queues: how many of the disk's queues have answered requests.
busy_queues() { xentool blkback stats --domid "$(domid g)" --vdev xvdb | grep -cE '^ +queue [0-9]+: [1-9]' || true; }
_all_busy() { [ "$(busy_queues)" = 4 ]; }
_served_again() { [ "$(grep -c 'queues* of' "$OUT/serve.log")" = "$1" ]; }

note 'four queues'
begin --max-queues 4 --filter delay:ms=20
wait_disk g xvdb
assert_eq "$(queues)" 4 'queues that the guest has'
job='fio --filename=/dev/xvdb --rw=randrw --bsrange=4k-32k --iodepth=16 --ioengine=libaio --direct=1 --size=12M --verify=crc32c
  --verify_fatal=1 --verify_state_save=0 --randrepeat=0 --cpus_allowed=0-3 --cpus_allowed_policy=split --offset_increment=16M
  --numjobs=4 --name=q'
job=${job//$'\n'/}
# load: the guest runs the job again and again, until /tmp/stop. ends: what became of it.
load() {
  on g "rm -f /tmp/stop /tmp/status; (while [ ! -e /tmp/stop ]; do $job >/tmp/fio 2>&1 || { echo 1 >/tmp/status; exit; }; done
    echo 0 >/tmp/status) >/dev/null 2>&1 &"
}
ends() { on g --limit 200 'touch /tmp/stop; until [ -e /tmp/status ]; do sleep 1; done; cat /tmp/status'; }
load
in_flight() { local before; before=$(stat_of g xvdb requests); wait_for 60 'I/O' _more "$before"; }
_more() { [ "$(stat_of g xvdb requests)" -gt $(($1 + 40)) ]; }
wait_for 60 'all queues to be in use' _all_busy
assert_jailed $SERVER

note 'killed under load: the successors offer one queue, four, one'
served=1
for offer in 1 4 1; do
  kill -KILL $SERVER; wait $SERVER || true
  begin --max-queues $offer --filter delay:ms=20
  wait_for 60 'the rings to be taken over' _served_again $((++served))
  in_flight
done
# While the load goes on: its last round may be over on one processor before this server has begun.
wait_for 60 'all queues to be in use under a server that offers one' _all_busy
note "requests that were in flight, by queue: $(sed -n 's/.* \([0-9]*\) requests* in flight to carry out again.*/\1/p' "$OUT/serve.log" | paste -sd' ')"
assert_eq "$(ends)" 0 "fio's status: $(on g 'tail -3 /tmp/fio')"
assert_eq "$(on g 'sha256sum </dev/xvdb')" "$(sha256sum <disk)" 'what the guest reads afterwards'
detach

note 'one queue for the same guest'
begin --max-queues 1
wait_disk g xvdb
assert_eq "$(queues)" 1 'queues that the guest has'
assert_eq "$(on g 'sha256sum </dev/xvdb')" "$(sha256sum <disk)" 'what the guest reads'
detach

note 'two threads of a process of watch, each with two queues: watch opens event channels for both; the process is killed'
install_script >/dev/null
start_watch --max-queues 4 --threads 2
xl block-attach g "$(xl_disk xvdb "$WORK/disk")"
wait_disk g xvdb
assert_eq "$(queues)" 4 'queues that the guest has'
_threads() { [ "$(grep -c '2 queues of' "$OUT/watch.log")" = "$1" ]; }
wait_for 60 'two threads with two queues each' _threads 2
load
in_flight
kill -KILL "$(stat_of g xvdb pid)"
wait_for 60 'two threads with two queues each again' _threads 4
in_flight
wait_for 60 'all queues to be in use again' _all_busy
assert_eq "$(ends)" 0 "fio's status: $(on g 'tail -3 /tmp/fio')"
assert_eq "$(on g 'sha256sum </dev/xvdb')" "$(sha256sum <disk)" 'what the guest reads afterwards'
xl block-detach g xvdb
stop_watch

shutdown g
assert_clean
