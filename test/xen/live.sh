# A host that stays up and takes scenarios as they come, for working on one: without a boot for each try.
# limit: 100000
#
#   npm run test:xen -- --share /tmp/live test/xen/live.sh
#
# A job is a directory /tmp/live/NAME.job that has scenario.sh and, each where it is wanted, dom0/, guest/, programs/ and
# files/ (as /payload has them). Its log appears in it, and when it has ended, its status. Jobs run one after the other.
trap - ERR
set +Eeu +o pipefail
modprobe 9pnet_virtio; modprobe 9p
mkdir -p /live
mount -t 9p -o trans=virtio,version=9p2000.L,msize=512000 share /live

same() { [ "$(stat -c '%Y %s' "$1")" = "$(stat -c '%Y %s' "$2" 2>/dev/null)" ]; }

# job DIRECTORY: runs it as the runner does, but for the judgement of what is left behind, which assert_clean makes.
job() {
  local file id
  for file in $(cd "$1" && find dom0 guest programs files -type f 2>/dev/null); do
    same "$1/$file" "/payload/$file" || { mkdir -p "/payload/${file%/*}"; cp -p "$1/$file" "/payload/$file"; }
  done
  rm -rf /tmp/job /tmp/job-out; mkdir /tmp/job /tmp/job-out
  mkdir -p "$GROUP/job"; state >/tmp/job-before
  (
    echo $BASHPID >"$GROUP/job/cgroup.procs"
    export WORK=/tmp/job OUT=/tmp/job-out BEFORE=/tmp/job-before GROUP=$GROUP/job
    cd /tmp/job && exec setsid bash -c '. /payload/dom0/lib.sh; . "$1"' job "$1/scenario.sh"
  ) >"$1/log" 2>&1 </dev/null
  status=$?
  {
    timeout 20 xl list; xenstore-ls -f /; lsevtchn 0; tail -n +1 /var/log/xen/*.log; dmesg -c
  } >"$1/state" 2>&1
  for id in $(xl list | awk 'NR > 1 && $2 != 0 { print $2 }'); do timeout 60 xl destroy "$id" >/dev/null 2>&1; done
  echo 1 >"$GROUP/job/cgroup.kill"
  cp -r /tmp/job-out/. "$1/"; cp /var/log/xen/console/*.log "$1/" 2>/dev/null
  rm -f /var/log/xen/console/*.log /var/log/xen/xl-*.log
  echo $status >"$1/status"
}

until [ -e /live/stop ]; do
  for directory in /live/*.job; do
    [ ! -e "$directory/scenario.sh" ] || [ -e "$directory/status" ] || job "$directory"
  done
  sleep 0.3
done
umount /live
