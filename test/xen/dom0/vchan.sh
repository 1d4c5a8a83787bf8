# What the scenarios of vchan share; they source it. Programs: xentool, and vchan-peer, which is libxenvchan.

# vchan_guest NAME [ARGUMENT]...: a guest that has both.
vchan_guest() {
  local name=$1; shift
  guest "$name" --memory 512 --with /payload/files/dist/xentool:/bin/xentool \
    --with /payload/programs/vchan-peer:/bin/vchan-peer "$@"
}

# at_once NAME GUEST_COMMAND DOM0_COMMAND: both at the same time, and each must succeed. What they said is in the
# guest's /tmp/at_once and in $WORK/at_once. Nothing polls meanwhile: under emulation that would cost half the time.
at_once() {
  local status
  begin "$1" at_once "$2"
  bash -c "set -o pipefail; $3" >at_once 2>&1 ||
    fail "in dom0: $3: status $?: $(paste -sd' ' at_once); in $1: $(in_place "$1" 'cat at_once' | paste -sd' ')"
  status=$(status_of "$1" at_once 60)
  [ "$status" = 0 ] || fail "in $1: $2: status $status: $(in_place "$1" 'cat at_once' | paste -sd' ')"
}

# relayed XENTOOL_ARGUMENTS BYTES SEED BYTES SEED: a command line that sends the first stream through xentool and
# checks that the second comes out. How long libxenvchan may be silent at the end is a time limit, too.
relayed() {
  local linger="--linger $((5 * PATIENCE))"
  [[ $1 != *--linger* ]] || linger=
  echo "vchan-peer pattern $2 $3 | xentool vchan $1 -v $linger | vchan-peer check $4 $5"
}

# keys SERVER CLIENT NAME: the directory of a vchan's keys.
keys() { echo "/local/domain/$1/data/vchan/$2/$3"; }
# tidy_keys: removes dom0's, which those that were killed leave, and the directories that all leave.
tidy_keys() { xenstore-rm /local/domain/0/data/vchan; xenstore-rm -t /local/domain/0/data 2>/dev/null || true; }

# in_place PLACE COMMAND: in dom0's $WORK or in a guest's /tmp.
in_place() {
  if [ "$1" = dom0 ]; then timeout $((300 * PATIENCE)) bash -c "cd $WORK; $2"; else on "$1" --limit 300 "cd /tmp; $2"; fi
}
begun=()
# begin PLACE FILE COMMAND: starts it there; what it says goes to FILE, its status to FILE.status. Its input stays open.
begin() {
  begun+=("$1 $2")
  in_place "$1" "rm -f $2 $2.status; [ -p open ] || mkfifo open; (set -o pipefail; $3; echo \$? >$2.status) >$2 2>&1 <>open &"
}
# said PLACE FILE TEXT: waits until it has said that.
said() {
  in_place "$1" "i=0; until grep -q '$3' $2; do i=\$((i + 1)); [ \$i -lt $((120 * PATIENCE)) ] || exit 1; sleep 0.5; done" ||
    fail "$1: no '$3' of $2, but: $(all_said)"
}
# all_said: what each that was begun has said, on one line: why one end waits is known to the other.
all_said() {
  local each
  for each in "${begun[@]}"; do
    [ "${each% *}" = dom0 ] || alive "${each% *}" || continue
    echo "${each#* } in ${each% *}: $(in_place "${each% *}" "cat ${each#* }; [ -e ${each#* }.status ] && cat ${each#* }.status")"
  done | paste -sd' '
}
# status_of PLACE FILE SECONDS: waits that long for it to end, and prints its status.
status_of() {
  in_place "$1" "i=0; until [ -e $2.status ]; do i=\$((i + 1)); [ \$i -le $((4 * $3 * PATIENCE)) ] || exit 1; sleep 0.25; done
    cat $2.status" || fail "$1: $2 did not end in time: $(all_said)"
}
