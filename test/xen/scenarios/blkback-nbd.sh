# A disk on an NBD server that is killed in mid-fio and comes back: the guest waits, and loses nothing. Once xentool is
# killed with it.
# limit: 900
# files: dist/xentool
. /payload/dom0/blkback.sh

guest g --with fio
image disk 64M >/dev/null
# storage: an NBD server of the image, in the background.
storage() {
  rm -f nbd.sock
  qemu-nbd --format=raw --persistent --shared=8 --discard=unmap --socket="$PWD/nbd.sock" disk 2>>"$OUT/nbd.log" &
  STORAGE=$!
  wait_for 30 'the NBD server' test -S nbd.sock
}
begin() {
  xentool -v blkback serve "nbd+unix:///?socket=$PWD/nbd.sock" --domid "$(domid g)" --vdev xvdb >>"$OUT/serve.log" 2>&1 &
  SERVER=$!
}
lose() { kill -KILL $STORAGE; wait $STORAGE || true; }
# in_flight: until the guest's I/O goes on.
in_flight() { local before; before=$(stat_of g xvdb requests); wait_for 90 'I/O' _more "$before"; }
_more() { [ "$(stat_of g xvdb requests)" -gt $(($1 + 40)) ]; }
_said() { [ "$(grep -c "$1" "$OUT/serve.log")" -ge "$2" ]; }

storage
begin
wait_disk g xvdb
busy='fio --name=b --filename=/dev/xvdb --rw=randrw --bsrange=4k-32k --iodepth=32 --ioengine=libaio --direct=1 --size=24M
  --fsync=64 --verify=crc32c --verify_fatal=1 --verify_state_save=0 --randrepeat=0'
busy=${busy//$'\n'/}
on g "(while [ ! -e /tmp/stop ]; do $busy >/tmp/fio 2>&1 || { echo 1 >/tmp/status; exit; }; done; echo 0 >/tmp/status) >/dev/null 2>&1 &"

note 'the server is killed in mid-I/O, twice'
for kills in 1 2; do
  in_flight
  lose
  wait_for 60 'the loss to be noticed' _said 'it waits for its NBD server' $kills
  assert_match "$(xentool blkback list)" 'it waits for its NBD server' 'what list says'
  storage
  wait_for 60 'the disk to go on' _said 'it is served now' $kills
done

note 'it is killed together with xentool'
in_flight
kill -KILL $SERVER; lose; wait $SERVER || true
storage
begin
wait_for 60 'the ring to be taken over' _said 'in flight to carry out again' 1
in_flight
status=$(on g --limit 200 'touch /tmp/stop; until [ -e /tmp/status ]; do sleep 1; done; cat /tmp/status')
assert_eq "$status" 0 "fio's status: $(on g 'tail -3 /tmp/fio')"
note "sent again: $(sed -n 's/.* \([0-9]*\) writes\{0,1\} sent again.*/\1/p' "$OUT/serve.log" | paste -sd' ')"
assert_eq "$(on g 'sha256sum </dev/xvdb')" "$(sha256sum <disk)" 'what the guest reads afterwards'

detach
kill $STORAGE; wait $STORAGE || true
shutdown g
assert_clean
