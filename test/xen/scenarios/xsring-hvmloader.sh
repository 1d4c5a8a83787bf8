# The real hvmloader: its ring from the first request to the answered close.
# xenstored: oxenstored
# on: trixie
# limit: 400
# files: dist/xentool

printf '%s\n' "name='h'" "type='hvm'" "memory=96" "vcpus=1" "kernel='/lab/vmlinux'" "vga='none'" \
  "extra='console=ttyS0 panic=1'" "serial='file:$WORK/serial'" "on_crash='destroy'" >h.cfg
xl create -q -p h.cfg
id=$(domid h)
xentool xsring trace --domid "$id" >"$OUT/trace.txt" 2>"$OUT/trace.err" &
trace=$!
wait_for 150 'the trace to begin' grep -q server_features "$OUT/trace.txt"
xl unpause h
wait_for 90 'hvmloader to close its ring' grep -q 'began anew' "$OUT/trace.txt"
grep -q 'READ("' "$OUT/trace.txt"
grep -q 'server_features 1 (RECONNECTION)' "$OUT/trace.txt"
note "requests before the close: $(grep -c ' #' "$OUT/trace.txt")"
xl destroy h
wait_gone h
wait $trace
note "$(cat "$OUT/trace.err")"
