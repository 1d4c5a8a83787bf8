# A libxenvchan program that reads until the vchan is closed cannot be told that xentool's input has ended: xentool ends.
# limit: 600
# run: by name
# files: dist/xentool
. /payload/dom0/vchan.sh

vchan_guest g
id=$(domid g)

note 'by itself after 5 seconds of silence, at once with --send; whoever serves'
for how in '' --send; do
  name=untold$how
  at_once g "vchan-peer server 0 $(keys "$id" 0 "$name") 65536 65536 stream 0 1 5000000 2 wait" \
    "vchan-peer pattern 5000000 2 | xentool vchan connect $id $name --wait $how"
  assert_eq "$(grep -c 'sent nothing for 5 s' at_once || true)" $([ -z "$how" ] && echo 1 || echo 0) "what connect $how says"
  at_once g "vchan-peer client 0 $(keys 0 "$id" "$name") stream 0 1 5000000 2 wait" \
    "vchan-peer pattern 5000000 2 | xentool vchan listen $id $name $how"
  assert_eq "$(grep -c 'sent nothing for 5 s' at_once || true)" $([ -z "$how" ] && echo 1 || echo 0) "what listen $how says"
done
note 'xentool only receives, however long its own input stays open'
at_once g "vchan-peer server 0 $(keys "$id" 0 received) 65536 65536 stream 5000000 1 0 2" \
  "mkfifo silent; xentool vchan connect $id received --wait --receive <>silent | vchan-peer check 5000000 1"
at_once g "vchan-peer client 0 $(keys 0 "$id" received) stream 5000000 1 0 2" \
  "xentool vchan listen $id received --receive <>silent | vchan-peer check 5000000 1"

tidy_keys
