#!/bin/sh
# Run by systemd as root in a booted Debian (boot.sh): the package's units as dpkg and an administrator use them, while
# a guest writes. On a simulated host, since there is no Xen here; so both units get a drop-in that names it.
set -eu
UNIT=xentool-blkback.service
export XENTOOL_SIM=/run/host
fail() {
  echo "FAIL: $*"
  systemctl status --no-pager --lines=0 "$UNIT" 'xentool-serve@*' || true
  journalctl --no-pager --output=cat --lines=60 --unit='xentool*' --unit=guest || true
  exit 1
}
until_true() { # WHAT COMMAND...: looks again until the command succeeds, for up to two minutes
  what=$1
  shift
  tries=600
  until "$@"; do
    tries=$((tries - 1))
    [ $tries -gt 0 ] || fail "it never happens that $what"
    sleep 0.2
  done
}
property() { systemctl show --value --property "$1" "$UNIT"; }
says() { property StatusText | grep -q "$1"; }
is_other_process() { [ "$(property MainPID)" != "$main" ] && [ "$(property MainPID)" != 0 ]; }
has_alive_process() { [ "$(property ActiveState)" = active ] && says "serving $1"; }
writes() { xentool --json blkback stats | sed -n 's/^ *"writes": *\([0-9]*\).*/\1/p' | head -n 1; }
writes_more_than() { count=$(writes) && [ "${count:-0}" -gt "$1" ]; }
guest_writes() { until_true "the guest writes $1" writes_more_than "$(writes)"; }

cat >/etc/systemd/system/host.service <<'END'
[Service]
ExecStart=/usr/bin/xentool sim start --foreground --dir /run/host
END
for unit in "$UNIT" xentool-serve@.service; do
  mkdir -p "/etc/systemd/system/$unit.d"
  cat >"/etc/systemd/system/$unit.d/host.conf" <<'END'
[Unit]
ConditionPathExists=
[Service]
Environment=XENTOOL_SIM=/run/host
ReadWritePaths=-/run/host
END
done
cat >>"/etc/systemd/system/$UNIT.d/host.conf" <<'END'
WatchdogSec=10
ExecStart=
ExecStart=/usr/bin/xentool -v blkback watch --kind qdisk --any-script
END

echo '== install: the daemon is enabled and started, and waits for a host'
dpkg -i /deb/1.deb
[ "$(systemctl is-enabled "$UNIT")" = enabled ] || fail 'it is not enabled'
systemctl start host.service
until_true 'it serves' has_alive_process '0 disks'
systemctl enable --now "$UNIT"

echo '== a guest uses a disk'
# What a narrowed unit does not see, but for what is named.
homes=/home
mkdir -p $homes/images
truncate -s 64M $homes/images/disk.img $homes/hidden.img
xentool blkback create --domid 1 --vdev xvdb --params $homes/images/disk.img
systemd-run --quiet --unit=guest --setenv=XENTOOL_SIM=$XENTOOL_SIM --setenv=XENTOOL_DOMID=1 \
  --property=KillSignal=SIGINT --property=StandardOutput=file:/run/bench.json --property=SuccessExitStatus=130 \
  xentool blkfront bench --vdev xvdb --rw randwrite --runtime 3600 --json
until_true 'it serves a disk' says 'serving 1 disk$'
until_true 'the guest writes' writes_more_than 0

echo '== reload: another process takes the disk, without a restart'
main=$(property MainPID)
systemctl reload "$UNIT"
until_true 'another process serves' is_other_process
until_true 'it says so' has_alive_process '1 disk'
guest_writes 'after a reload'

echo '== upgrade: the new executable takes the disk, without a restart'
main=$(property MainPID)
restarts=$(property NRestarts)
dpkg -i /deb/2.deb
until_true 'another process serves' is_other_process
[ "/proc/$(property MainPID)/exe" -ef /usr/bin/xentool ] || fail 'the old executable serves on'
[ "$(property NRestarts)" = "$restarts" ] || fail 'systemd has restarted it'
guest_writes 'after an upgrade'

echo '== watchdog: it is fed, and a process that hangs is followed by another'
fed=$(property WatchdogTimestampMonotonic)
is_fed() { [ "$(property WatchdogTimestampMonotonic)" != "$fed" ]; }
until_true 'it is fed' is_fed
main=$(property MainPID)
kill -STOP "$main"
until_true 'another process serves' is_other_process
[ "$(property NRestarts)" = $((restarts + 1)) ] || fail 'systemd has not restarted it'
guest_writes 'after a hang'

echo '== stop and start: the guest waits and goes on'
systemctl stop "$UNIT"
[ "$(property ActiveState)" = inactive ] || fail "it is $(property ActiveState), $(property Result)"
[ ! -e "/sys/fs/cgroup/system.slice/$UNIT" ] || fail "a process is left"
systemctl start "$UNIT"
until_true 'it serves' has_alive_process '1 disk'
guest_writes 'after a stop'

serve_in_a_unit() {
  systemctl enable --now xentool-serve@vm2
  systemctl show --value --property StatusText xentool-serve@vm2 | grep -q 'waiting for the guest' || fail 'no status'
  XENTOOL_DOMID=2 xentool blkfront bench --vdev xvda --runtime 1 --json | grep -q '"errors": 0' || fail 'no disk'
  systemctl disable --now xentool-serve@vm2
  [ "$(systemctl show --value --property Result xentool-serve@vm2)" = success ] || fail 'it did not end well'
}
echo '== xentool-serve@: a disk in a unit of its own'
mkdir -p /etc/xentool
truncate -s 16M $homes/images/other.img
printf 'IMAGE=%s\nDOMID=2\nVDEV=xvda\nOPTIONS=--mode r --iops 500\n' $homes/images/other.img >/etc/xentool/vm2.conf
serve_in_a_unit

echo '== install --images: both units serve what is there, and reach nothing else'
xentool blkback install --images $homes/images
[ ! -e "/etc/systemd/system/$UNIT" ] || fail 'it wrote a unit beside the one of the package'
systemctl restart "$UNIT"
until_true 'it serves' has_alive_process '1 disk'
guest_writes 'to a narrowed unit'
main=$(property MainPID)
[ "$(ls "/proc/$main/root/home")" = images ] || fail "it sees $(ls "/proc/$main/root/home") in /home"
[ "$(readlink "/proc/$main/ns/net")" != "$(readlink /proc/self/ns/net)" ] || fail 'it has our network'
awk '$5 == "/" && $6 ~ /^ro/ { found = 1 } END { exit !found }' "/proc/$main/mountinfo" || fail 'it may write everywhere'
serve_in_a_unit
says_out_of_reach() { journalctl --no-pager --output=cat --unit="$UNIT" | grep -q "$homes/hidden.img is out of reach"; }
xentool blkback create --domid 2 --vdev xvdb --params $homes/hidden.img
until_true 'it says what is out of reach' says_out_of_reach

echo '== install without --images: what was out of reach is served'
xentool blkback install
systemctl restart "$UNIT"
until_true 'it serves' has_alive_process '1 disk'
guest_writes 'to a unit as before'
offers() { journalctl --no-pager --output=cat --unit="$UNIT" | grep -q "$1: InitWait"; }
xentool blkback destroy --domid 2 --vdev xvdb
xentool blkback create --domid 2 --vdev xvdb --params $homes/hidden.img
until_true 'it is offered' offers 'xvdb of domain 2'
xentool blkback destroy --domid 2 --vdev xvdb
xentool blkback install --images $homes/images

echo '== the guest has seen nothing of all this'
systemctl stop guest.service
grep -q '"errors": 0' /run/bench.json || fail "the guest saw errors: $(cat /run/bench.json)"

echo '== remove, purge'
dpkg -r xentool
[ "$(systemctl is-active "$UNIT" || true)" != active ] || fail 'it serves on'
dpkg -P xentool
[ -z "$(find /etc/systemd/system -name "$UNIT" -print)" ] || fail 'purge leaves a link'
[ -z "$(find /etc/systemd/system -name images.conf -print)" ] || fail 'purge leaves what install wrote'
systemctl --failed --no-legend --plain | grep xentool && fail 'a unit has failed'
echo 'PASS'
