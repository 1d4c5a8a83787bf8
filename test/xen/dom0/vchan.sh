# What the scenarios of vchan share; they source it. Programs: xentool, and vchan-peer, which is libxenvchan.

# vchan_guest NAME [ARGUMENT]...: a guest that has both.
vchan_guest() {
  local name=$1; shift
  guest "$name" --memory 512 --with /payload/files/dist/xentool:/bin/xentool \
    --with /payload/programs/vchan-peer:/bin/vchan-peer "$@"
}

# at_once NAME GUEST_COMMAND DOM0_COMMAND: both at the same time, and each must succeed. What they said is in
# $WORK/guest.txt and dom0.txt.
at_once() {
  local status=0 other
  (on "$1" --limit 300 "set -o pipefail; $2") >"$WORK/guest.txt" 2>&1 &
  other=$!
  timeout $((300 * PATIENCE)) bash -c "set -o pipefail; $3" >"$WORK/dom0.txt" 2>&1 || status=$?
  wait $other || fail "in $1: $2: status $?: $(paste -sd' ' "$WORK/guest.txt"); dom0: $(paste -sd' ' "$WORK/dom0.txt")"
  [ $status = 0 ] || fail "in dom0: $3: status $status: $(paste -sd' ' "$WORK/dom0.txt")"
}

# relayed XENTOOL_ARGUMENTS BYTES SEED BYTES SEED: a command line that sends the first stream through xentool and
# checks that the second comes out.
relayed() { echo "vchan-peer pattern $2 $3 | xentool vchan $1 | vchan-peer check $4 $5"; }

# keys SERVER CLIENT NAME: the directory of a vchan's keys.
keys() { echo "/local/domain/$1/data/vchan/$2/$3"; }
# tidy_keys: removes dom0's, which those that were killed leave, and the directories that all leave.
tidy_keys() { xenstore-rm /local/domain/0/data/vchan; xenstore-rm -t /local/domain/0/data 2>/dev/null || true; }

# in_background NAME FILE COMMAND: starts it in the guest; what it says goes to /tmp/FILE, its status to /tmp/FILE.status.
in_background() { on "$1" "rm -f /tmp/$2 /tmp/$2.status; ($3; echo \$? >/tmp/$2.status) >/tmp/$2 2>&1 </dev/null &"; }
# said NAME FILE TEXT: waits until the command in the background has said so.
said() { on "$1" --limit 60 "until grep -q '$3' /tmp/$2; do usleep 20000; done"; }
# status_of NAME FILE SECONDS: waits that long for it to end; prints its status.
status_of() {
  on "$1" "i=0; until [ -e /tmp/$2.status ]; do i=\$((i + 1)); [ \$i -lt $((50 * $3 * PATIENCE)) ] || exit 1; usleep 20000; done
    cat /tmp/$2.status" || fail "$1: /tmp/$2 did not end in time: $(on "$1" "cat /tmp/$2")"
}
