#!/bin/sh
# Run by `npm run test:deb` as root in a fresh Debian: the package /deb/1.deb is installed and serves, is upgraded to
# /deb/2.deb while a guest writes, is removed and purged; meanwhile promtool judges the metrics of the busy disk. On a simulated host, since there is no Xen here.
set -eu
UNIT=/usr/lib/systemd/system/xentool-blkback.service
WANTED=/etc/systemd/system/multi-user.target.wants/xentool-blkback.service
fail() { echo "FAIL: $*"; exit 1; }
version() { dpkg-query -W -f '${Version}' xentool; }

dpkg -i /deb/1.deb
[ "$(version)" = "$(dpkg-deb -f /deb/1.deb Version)" ] || fail "version $(version)"
xentool --version
[ -x /etc/xen/scripts/block-xentool ] && [ -x /usr/lib/xentool/backend-added ] || fail 'scripts are missing'
[ -f "$UNIT" ] && [ "$(readlink -f "$WANTED")" = "$(readlink -f "$UNIT")" ] || fail 'the unit is not enabled'
grep -q '^ExecStart=/usr/bin/xentool ' "$UNIT" || fail "the unit starts something else"
for page in xentool xentool-blkback-watch; do
  dpkg -L xentool | grep -qx "/usr/share/man/man1/$page.1.gz" || fail "no manual page $page"
done

cat >/tmp/life.sh <<'EOF'
set -eu
truncate -s 64M /tmp/disk.img
xentool blkback serve /tmp/disk.img --domid 1 --vdev xvdb & old=$!
XENTOOL_DOMID=1 xentool blkfront bench --vdev xvdb --rw randwrite --runtime 20 --json >/tmp/bench.json & bench=$!
until xentool blkback stats --json | grep -q '"writes": *[1-9]'; do sleep 0.2; done
xentool blkback stats --prometheus >/tmp/metrics.prom
grep -q '^xentool_blkback_requests_total{.*} [1-9]' /tmp/metrics.prom || { echo 'FAIL: no requests in the metrics'; exit 1; }
/deb/promtool check metrics </tmp/metrics.prom || { echo 'FAIL: promtool objects to the metrics'; exit 1; }
dpkg -i /deb/2.deb
kill -0 $old || { echo 'FAIL: the upgrade ended a server'; exit 1; }
# As the unit does: the old server ends without asking the guest, the new one goes on.
kill -9 $old
xentool blkback serve /tmp/disk.img --domid 1 --vdev xvdb & new=$!
wait $bench
kill $new
wait $new || [ $? = 143 ]
grep -q '"errors": *0' /tmp/bench.json || { echo 'FAIL: the guest saw errors'; cat /tmp/bench.json; exit 1; }
EOF
xentool sim run --domains 2 -- sh /tmp/life.sh
[ "$(version)" = "$(dpkg-deb -f /deb/2.deb Version)" ] || fail "version $(version) after the upgrade"

dpkg -r xentool
[ ! -e /usr/bin/xentool ] && [ ! -e "$UNIT" ] || fail 'remove leaves the program'
[ -e /etc/xen/scripts/block-xentool ] || fail 'remove takes what is the administrator'"'"'s'
dpkg -P xentool
rm -rf /tmp/disk.img /tmp/life.sh /tmp/bench.json /tmp/metrics.prom
left=$(find / -xdev -path /proc -prune -o -name '*xentool*' -print)
[ -z "$left" ] || fail "purge leaves $left"
echo 'PASS'
