# A guest lives on with its disk of four queues under verified load: paused, with one processor and with four again,
# saved and going on, and restored from a file under another daemon (where Xen can save guests: not on Arm).
# on: bookworm arm64
# limit: 600
# files: dist/xentool
. /payload/dom0/blkback.sh

install_script >/dev/null
start_watch --filter delay:ms=20 --max-queues 4
image disk 64M >/dev/null
guest g --with fio 'vcpus=4' "disk=['$(xl_disk xvdb "$WORK/disk")']"
wait_disk g xvdb
assert_eq "$(on g 'ls /sys/block/xvdb/mq | wc -l')" 4 'queues that the guest has'
job='fio --filename=/dev/xvdb --rw=randrw --bsrange=4k-32k --iodepth=16 --ioengine=libaio --direct=1 --size=12M --verify=crc32c
  --verify_fatal=1 --verify_state_save=0 --randrepeat=0 --offset_increment=16M --numjobs=4 --name=life'
job=${job//$'\n'/}
on g "(while [ ! -e /tmp/stop ]; do $job >/tmp/fio 2>&1 || { echo 1 >/tmp/status; exit; }; done; echo 0 >/tmp/status) >/dev/null 2>&1 &"
in_flight() { local before; before=$(stat_of g xvdb requests); wait_for 60 'I/O' _more "$before"; }
_more() { [ "$(stat_of g xvdb requests)" -gt $(($1 + 40)) ]; }
in_flight

note 'paused'
xl pause g
xl unpause g
in_flight

note 'one processor, then four again'
xl vcpu-set g 1
in_flight
xl vcpu-set --ignore-host g 4 # the machine has two
in_flight

# libxl has no `save` on Arm.
if [ "$(uname -m)" = aarch64 ]; then
  assert_fails 'not implemented' xl save g saved
  in_flight
else
  note 'saved, and goes on'
  xl save -c g saved
  in_flight
  rm saved

  note 'saved; restored under another daemon'
  before=$(domid g)
  xl save g saved
  stop_watch
  start_watch --filter delay:ms=20 --max-queues 4
  xl restore saved
  rm saved
  [ "$(domid g)" != "$before" ] || fail 'the guest was not restored'
  in_flight
fi

status=$(on g --limit 200 'touch /tmp/stop; until [ -e /tmp/status ]; do sleep 1; done; cat /tmp/status')
assert_eq "$status" 0 "fio's status: $(on g 'tail -3 /tmp/fio')"
assert_eq "$(on g 'sha256sum </dev/xvdb')" "$(sha256sum <disk)" 'what the guest reads afterwards'
xl destroy g
stop_watch
xentool blkback uninstall >/dev/null; INSTALLED=
assert_clean
