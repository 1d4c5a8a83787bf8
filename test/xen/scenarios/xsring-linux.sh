# A live guest's ring: its boot is traced, its traffic inspected, and it is closed as far as this xenstored allows.
# xenstored: xenstored oxenstored
# on: trixie arm64
# limit: 600
# files: dist/xentool

guest g --no-wait
xl pause g
id=$(domid g)
xentool xsring trace --domid "$id" --write "$WORK/boot.pcap" >"$OUT/boot.txt" 2>"$OUT/boot.err" &
trace=$!
wait_for 150 'the trace to begin' grep -q server_features "$OUT/boot.txt"
xl unpause g
wait_up g
on g 'for i in 1 2 3; do xenstore-write data/xsring "value $i"; xenstore-read data/xsring; done' >"$OUT/values"
assert_eq "$(paste -sd, "$OUT/values")" 'value 1,value 2,value 3' 'what the guest reads'
wait_for 30 'the trace to show it' grep -q 'READ("data/xsring") .*<unfinished\|READ("data/xsring") = "value 3"' "$OUT/boot.txt"

xentool xsring inspect --domid "$id" --history 100 | tee "$OUT/inspect.txt"
grep -q "^domain $id: healthy" "$OUT/inspect.txt"
grep -q 'READ("data/xsring") = "value 3"' "$OUT/inspect.txt"

status=0; kill -INT $trace; wait $trace || status=$?
assert_eq "$status" 130 "the status of an interrupted trace"
note "trace: $(tail -1 "$OUT/boot.err")"
grep -q 'WATCH(' "$OUT/boot.txt"
xentool xsring trace --read "$WORK/boot.pcap" --json --path data/xsring >"$OUT/replies.json" 2>/dev/null
assert_eq "$(grep -c '"event":"reply".*"type":"WRITE".*"values":\["OK"\]' "$OUT/replies.json")" 3 'writes in the trace'
assert_eq "$(grep -c '"event":"reply".*"type":"READ".*"values":\["value [123]"\]' "$OUT/replies.json")" 3 'reads in the trace'
xentool xsring trace --read "$WORK/boot.pcap" >"$OUT/again.txt" 2>/dev/null
cmp "$OUT/boot.txt" "$OUT/again.txt"

close() {
  status=0
  xentool xsring close --domid "$id" "$@" >"$OUT/close.txt" 2>"$OUT/close.err" || status=$?
  note "close $*: status $status; $(tail -1 "$OUT/close.err") $(cat "$OUT/close.txt")"
}

if [ "$XENSTORED" = oxenstored ]; then
  close
  assert_eq "$status" 0 'close'
  grep -q "^domain $id: closed by handshake" "$OUT/close.txt"
  assert_eq "$(on g 'xenstore-read domid')" "$id" 'what the guest reads over the new ring'
else
  close
  assert_eq "$status" 4 'close'
  grep -q 'is without RECONNECTION; it answers `help`' "$OUT/close.err"
  close --method reintroduce
  assert_eq "$status" 0 'close by reintroduce'
  assert_eq "$(on g 'xenstore-read domid')" "$id" 'what the guest reads over the new ring'
  close --method release
  assert_eq "$status" 4 'close by release without force'
  close --method release --force
  assert_eq "$status" 0 'close by release'
  # The ring works again; what the guest was let read belongs to a domain that is gone, as xenstored sees it.
  on g 'xenstore-read domid || true' >"$OUT/after-release"
  xentool xsring inspect --domid "$id" >"$OUT/released.txt"
  grep -q 'READ("domid") = E' "$OUT/released.txt"
fi
xl destroy g
wait_gone g
