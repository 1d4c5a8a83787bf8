# Two guests, with no dom0 in between: xentool and libxenvchan, every placing; a guest that is destroyed is noticed.
# on: bookworm arm64
# limit: 800
# files: dist/xentool
. /payload/dom0/vchan.sh

bytes=5000000
vchan_guest a
vchan_guest b
a=$(domid a) b=$(domid b)

# succeeded WHAT GUEST FILE SECONDS: it ends in time with status 0; if not, what both guests' programs said is told.
succeeded() {
  local status
  status=$(status_of "$2" "$3" "$4")
  [ "$status" = 0 ] ||
    fail "$1: status of $2: $status; a: $(in_place a 'cat in-a' | paste -sd' '); b: $(in_place b 'cat in-b' | paste -sd' ')"
}

# between WHAT COMMAND_IN_A COMMAND_IN_B: both at the same time, and each must succeed.
between() {
  local began=$SECONDS
  begin a "in-a" "$2"
  begin b "in-b" "$3"
  succeeded "$1" b in-b 300
  succeeded "$1" a in-a 60
  note "$1: $bytes bytes each way in $((SECONDS - began)) s"
}

between 'xentool to xentool' "$(relayed "listen $b x" $bytes 1 $bytes 2)" "$(relayed "connect $a x --wait" $bytes 2 $bytes 1)"
between 'xentool serves libxenvchan' "$(relayed "listen $b xc" $bytes 1 $bytes 2)" \
  "vchan-peer client $a $(keys "$a" "$b" xc) stream $bytes 2 $bytes 1"
between 'libxenvchan serves xentool' "vchan-peer server $b $(keys "$a" "$b" cx) 65536 65536 stream $bytes 1 $bytes 2" \
  "$(relayed "connect $a cx --wait" $bytes 2 $bytes 1)"

note "the server's domain is destroyed while both are connected"
begin a victim "xentool vchan listen $b gone -v"
begin b watcher "xentool vchan connect $a gone --wait -v"
said b watcher connected
said a victim connected
xl destroy a
began=$SECONDS
assert_eq "$(status_of b watcher 30)" 5 "status of b"
note "noticed within $((SECONDS - began)) s; $(in_place b 'cat watcher' | tail -1)"
