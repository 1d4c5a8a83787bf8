# xentool and vchan-socket-proxy, with an echo service behind a unix socket: the proxy as server, and as client.
# limit: 600
# run: by name
# files: dist/xentool
. /payload/dom0/vchan.sh

proxy=$(echo /usr/lib/xen-4.*/bin/vchan-socket-proxy) # not the wrapper on the PATH, which a guest could not run
bytes=600000
# libxenstore ends its thread with pthread_cancel, which loads libgcc
libgcc=/lib/x86_64-linux-gnu/libgcc_s.so.1
vchan_guest g --with $proxy:/bin/vchan-socket-proxy --with $libgcc:$libgcc
id=$(domid g)
socat UNIX-LISTEN:"$WORK/echo",fork EXEC:cat &
echo_service=$!
wait_for 10 'the echo service' test -S "$WORK/echo"

note 'the proxy serves in dom0, in front of the socket; two clients in the guest, one after the other'
$proxy -m server "$id" "$(keys 0 "$id" proxy)" "$WORK/echo" &
server=$!
for round in 1 2; do
  on g --limit 200 "set -o pipefail; $(relayed '--timeout 60 connect 0 proxy --wait --linger 2' $bytes $round $bytes $round)"
  note "client $round: $bytes bytes there and back"
done
kill $server; wait $server || true

note 'xentool serves in dom0, in front of the socket; the proxy is the client, in the guest'
xentool vchan listen "$id" service --keep --unix "$WORK/echo" --json >sessions.json &
server=$!
wait_for 60 'xentool to serve' xenstore-exists "$(keys 0 "$id" service)/event-channel"
for round in 1 2; do
  # the proxy ends with its input, whatever is still to come
  on g --limit 200 "set -o pipefail; (vchan-peer pattern $bytes $round; sleep 10) |
    vchan-socket-proxy 0 $(keys 0 "$id" service) - | vchan-peer check $bytes $round"
  note "client $round: $bytes bytes there and back"
done
note 'then xentool is the client, in one command after the other, none of which waits for a server'
client=$(relayed '--timeout 60 connect 0 service' $bytes '$round' $bytes '$round')
on g --limit 200 "(set -eo pipefail; for round in 3 4 5; do $client; done)"
wait_for 10 'five sessions to be over' eval '[ "$(grep -c . sessions.json)" = 5 ]'
status=0; kill $server; wait $server || status=$?
assert_eq $status 143 'status of xentool after TERM'
assert_eq "$(grep -c "\"bytesReceived\":$bytes,\|\"bytesReceived\": $bytes," sessions.json)" 5 'sessions in which everything came'
cp sessions.json "$OUT"
kill $echo_service; wait $echo_service || true
tidy_keys
