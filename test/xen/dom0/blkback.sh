# What scenarios of xentool's block backend share: serving a disk, its statistics, and a tree of files with checksums.

# attach NAME VDEV IMAGE [OPTION]...: hot-plugs IMAGE by `xentool blkback serve` and waits until the guest has the disk.
# SERVER is its process; what it says goes to $OUT/serve-VDEV.log.
attach() {
  local name=$1 vdev=$2 image=$3; shift 3
  xentool -v blkback serve "$image" --domid "$(domid "$name")" --vdev "$vdev" "$@" >>"$OUT/serve-$vdev.log" 2>&1 &
  SERVER=$!
  wait_xs "$(backend qdisk "$name" "$(devid "$vdev")")/state" 4
  wait_disk "$name" "$vdev"
}
# wait_disk NAME VDEV: until the guest has it.
wait_disk() { on "$1" "until [ -b /dev/$2 ]; do sleep 0.1; done"; }
# detach [PID]: SIGTERM, and the server ends as after a signal, with the device gone.
detach() {
  local status=0
  kill -TERM "${1:-$SERVER}"
  wait "${1:-$SERVER}" || status=$?
  assert_eq $status 143 "the server's status after SIGTERM"
}

# stat_of NAME VDEV FIELD: a counter of the server's, as it is now. From a process that prints them every second,
# because starting one for each takes too long here; it begins with the first call.
stat_of() {
  local disk since
  [ -e stats.pid ] || { xentool blkback stats --watch --json >stats.log & echo $! >stats.pid; }
  disk=$(printf '"domid":%d,"devid":%d,' "$(domid "$1")" "$(devid "$2")") since=$(date +%s%3N)
  wait_for 60 "statistics of $2 of $1" _fresh_stats "$disk" "$since"
  _stats "$disk" "$3"
}
# The disk's own numbers come before those of its queues.
_stats() { grep -F "$1" stats.log | tail -1 | grep -o "\"$2\":[0-9.]*" | head -1 | cut -d: -f2; }
_fresh_stats() { [ "$(_stats "$1" time)" -ge "$2" ]; }

# install_script: `xentool blkback install`, undone at the end.
install_script() { INSTALLED=1; xentool blkback install; }
INSTALLED=
_end() { [ ! -e stats.pid ] || kill "$(cat stats.pid)"; [ -z "$INSTALLED" ] || xentool blkback uninstall >/dev/null; }
trap _end EXIT

# assert_at_least GOT MINIMUM WHAT
assert_at_least() { awk -v a="$1" -v b="$2" 'BEGIN { exit !(a >= b) }' || fail "$3: $1, not at least $2"; }
# sums DIRECTORY: the checksum of every file below it, by name; for a guest, too, as text.
SUMS='cd "$1" && find . -type f | sort | while read -r f; do sha256sum "$f"; done'
sums() { sh -c "$SUMS" - "$1"; }
sums_in() { on "$1" "set -- $2; $SUMS"; }

# xl_disk VDEV TARGET [ACCESS]: what xl is told of a disk that `xentool blkback watch` is to serve.
xl_disk() { echo "format=raw,vdev=$1,access=${3:-rw},script=block-xentool,target=$2"; }
# start_watch [OPTION]...: the daemon; WATCH is its process, what it says is in $OUT/watch.log.
start_watch() {
  : >>"$OUT/watch.log"
  local before; before=$(grep -c 'serving the disks' "$OUT/watch.log" || true)
  xentool -v blkback watch "$@" >>"$OUT/watch.log" 2>&1 &
  WATCH=$!
  wait_for 60 'the daemon to be ready' _watches $((before + 1))
}
_watches() { [ "$(grep -c 'serving the disks' "$OUT/watch.log")" -ge "$1" ]; }
stop_watch() {
  local status=0
  kill -TERM $WATCH; wait $WATCH || status=$?
  assert_eq $status 143 "the daemon's status after SIGTERM"
}
# assert_gone NAME VDEV: neither libxl nor xenstore knows the disk any more.
assert_gone() {
  local id number; id=$(domid "$1") number=$(devid "$2")
  assert_eq "$(xenstore-ls -f / | grep -E "/(vbd|qdisk)/$id/$number|/$id/device/vbd/$number" || true)" '' "what is left of $2"
}

# assert_jailed PID [UID]: no thread of a server has a privilege, and each has its filter; with UID, that is who they all are.
assert_jailed() {
  assert_eq "$(_of_threads "$1" 'CapEff|NoNewPrivs|Seccomp')" 'CapEff: 0000000000000000 NoNewPrivs: 1 Seccomp: 2 ' 'what the threads may do'
  [ $# = 1 ] || assert_eq "$(_of_threads "$1" 'Uid|Gid|Groups')" "Gid: $2 $2 $2 $2 Groups: Uid: $2 $2 $2 $2 " 'who the threads are'
}
# A thread may end meanwhile.
_of_threads() { { grep -hsE "^($2):" /proc/"$1"/task/*/status || true; } | sort -u | tr -s ' \t\n' ' '; }
