# Disks of `xentool blkback serve` in a guest whose QEMU serves a qdisk: neither takes the other's, whichever comes
# first; xl lists and detaches ours, gives nobody else its name, and removes what a killed server left.
# limit: 600
# files: dist/xentool
. /payload/dom0/blkback.sh

for name in own ours later; do image $name 16M >/dev/null; done
disk() { echo "format=raw,vdev=$1,access=rw,backendtype=qdisk,target=$WORK/$2"; }
guest g "disk=['$(disk xvda own)']"
id=$(domid g)
of() { backend qdisk g "$(devid "$1")"; }
wait_xs "$(of xvda)/state" 4
# Whose a device is shows in what it offers: QEMU has no indirect requests.
assert_ours() { assert_eq "$(xs "$(of "$1")/feature-max-indirect-segments") $(xs "$(of "$1")/state")" '256 4' "what $1 offers, and its state"; }
# works VDEV FILE: what the guest writes is in that file.
works() {
  on g "dd if=/dev/urandom of=/dev/$1 bs=64k count=16 oflag=direct 2>/dev/null; dd if=/dev/$1 bs=64k count=16 iflag=direct 2>/dev/null | sha256sum" >there
  assert_eq "$(head -c 1M "$2" | sha256sum)" "$(cat there)" "what is in $2 after the guest wrote $1"
}

note 'our disk appears while QEMU looks on'
attach g xvdb ours; assert_ours xvdb; detach
attach g xvdb ours
assert_ours xvdb; works xvdb ours; works xvda own

note 'xl knows it, and gives nobody its name'
xl block-list g | tee "$OUT/block-list.txt"
assert_match "$(xl block-list g | grep "^$(devid xvdb) ")" " 0 .* 4 .*/backend/qdisk/$id/$(devid xvdb)" 'xl block-list'
assert_fails 'already exists' xl block-attach g "$(disk xvdb later)"
assert_ours xvdb; works xvdb ours

note 'created, and not served yet: QEMU, which takes the one after it, does not; xvdc has come later, too'
xentool blkback create --domid "$id" --vdev xvdd
xl block-attach g "$(disk xvdc later)"
wait_disk g xvdc
assert_eq "$(xs "$(of xvdd)/state")" '' 'the device that nobody serves yet'
assert_ours xvdb; works xvdc later; works xvdb ours

note 'a second QEMU for the guest'
model=/local/domain/0/device-model/$id/state
xenstore-write "$model" starting
"$(readlink -f "/proc/$(pgrep -f -- "-xen-domid $id" | head -1)/exe")" -M xenpv -xen-attach -xen-domid "$id" -nodefaults \
  -nographic -monitor none -serial none -m 32 >"$OUT/second-qemu.txt" 2>&1 & second=$!
wait_xs "$model" running
assert_eq "$(xs "$(of xvdd)/state")" '' 'the device that nobody serves yet'
assert_ours xvdb; works xvdb ours
kill $second; wait $second || true

note 'then served'
truncate -s 16M dd
first=$SERVER
attach g xvdd dd
assert_ours xvdd; works xvdd dd

note "what blkfront --take does to the guest's kernel: its driver has the disk, and lets go of it"
assert_match "$(on g "readlink /sys/bus/xen/devices/vbd-$(devid xvdd)/driver")" '/drivers/vbd$' 'the driver'
on g "echo vbd-$(devid xvdd) >/sys/bus/xen/devices/vbd-$(devid xvdd)/driver/unbind; ! [ -e /sys/bus/xen/devices/vbd-$(devid xvdd)/driver ]"
wait_xs "/local/domain/$id/device/vbd/$(devid xvdd)/state" 6
xentool blkback close --domid "$id" --vdev xvdd; wait $SERVER
xentool blkback destroy --domid "$id" --vdev xvdd
assert_gone g xvdd
SERVER=$first

note 'xl detaches it: the server ends'
xl block-detach g xvdb
status=0; wait $SERVER || status=$?
assert_eq $status 0 "the server's status"
assert_gone g xvdb
works xvda own

note 'a killed server: libxl removes the disk with its domain'
attach g xvdb ours
kill -9 $SERVER; wait $SERVER || true
xl destroy g
assert_clean
