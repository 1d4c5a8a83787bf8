# `xentool selftest` passes on real Xen: dom0 serves itself a disk, xenstore keeps its promises, a guest echoes a vchan.
# xenstored: xenstored oxenstored
# on: bookworm trixie
# run: by name
# limit: 300
# files: dist/xentool
. /payload/dom0/vchan.sh

for check in xenstore block; do
  xentool selftest $check --timeout 100 2>&1 | tee "$OUT/$check.txt"
  assert_clean
done

assert_fails 'needs a second domain' xentool selftest vchan
vchan_guest g
begin g echo 'xentool vchan listen 0 xentool-selftest -- cat'
xentool selftest vchan --peer "$(domid g)" --timeout 100 2>&1 | tee "$OUT/vchan.txt"
assert_eq "$(status_of g echo 30)" 0 "status of the guest's echo"
xl destroy g
assert_clean
