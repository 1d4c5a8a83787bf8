# What Linux' blkfront writes into xenstore is recorded, for test/traces: a disk that comes and goes, a guest that is saved
# and goes on, one that is restored; with one queue and with two.
# on: bookworm trixie
# limit: 600
# files: dist/xentool
# run: by name
. /payload/dom0/blkback.sh

install_script >/dev/null
start_watch --max-queues 4
image disk 16M >/dev/null; image first 16M >/dev/null

# record NAME GUEST: everything that crosses the guest's ring of xenstore, until `recorded NAME`. What passes between two
# looks at the ring is lost, so the looks go before everything else.
record() {
  nice -n -19 xentool xsring trace --domid "$(domid "$2")" --write "$1.pcap" >"$1.txt" 2>"$OUT/$1.err" &
  TRACE=$!
  wait_for 60 'the trace to begin' grep -q server_features "$1.txt"
}
recorded() {
  local status=0
  kill -INT $TRACE; wait $TRACE || status=$?
  assert_eq "$status" 130 'the status of an interrupted trace'
  xentool xsring trace --read "$1.pcap" --json >"$OUT/$1.json" 2>/dev/null
}
# step GUEST TEXT: a line of the golden trace that the frontend does not write itself.
step() { on "$1" "xenstore-write data/trace '$2'"; }
io() {
  on "$1" 'dd if=/bin/busybox of=/dev/xvdb bs=64k count=4 conv=fsync 2>/dev/null'
  step "$1" io
}
# The guest's process is there as long as the guest has a disk, so this one stays: libxl waits ten seconds for a backend,
# whatever $PATIENCE is, and the start of a process may take longer.
first_disk() { xl block-detach g xvda 2>/dev/null || true; xl block-attach g "$(xl_disk xvda "$WORK/first")"; }
attach_disk() { xl block-attach g "$(xl_disk xvdb "$WORK/disk")"; wait_disk g xvdb; }
detach_disk() { xl block-detach g xvdb; assert_gone g xvdb; }

for queues in 1 2; do
  name=linux-$(uname -r | cut -d. -f1-2)-$queues
  note "$queues queue(s): the disk comes, the guest is saved and goes on, the disk goes"
  guest g "vcpus=$queues"
  wait_for 60 "the guest's first disk" first_disk
  record "$name" g
  attach_disk
  io g
  xl save -c g saved
  step g '# saved, and goes on'
  io g
  detach_disk
  recorded "$name"

  note "$queues queue(s): restored"
  attach_disk
  xl save g saved
  wait_for 60 'the guest to be restored' xl restore -p saved
  record "$name-restored" g
  xl unpause g
  io g
  detach_disk
  recorded "$name-restored"
  rm saved
  xl destroy g
done
stop_watch
xentool blkback uninstall >/dev/null; INSTALLED=
assert_clean
