# Xen, dom0's kernel and Xen's user space are what the other scenarios take for granted.
# xenstored: xenstored oxenstored
# on: bookworm trixie arm64
# limit: 60

assert_match "$(xl info xen_version)" '^4\.' "Xen's version"
for device in evtchn gntdev gntalloc xenbus; do
  [ -c /dev/xen/$device ] || fail "/dev/xen/$device is missing"
done
assert_eq "$(xs domid)" 0 "dom0's own number in xenstore"
pidof "$XENSTORED" >/dev/null || fail "$XENSTORED does not run"
xenstore-write /test/key value
assert_eq "$(xs /test/key)" value 'a key that was just written'
assert_match "$(left_behind)" 'key /test/key' 'what the leak check sees'
xenstore-rm /test
assert_clean
