# xentool and libxenvchan understand each other: every role and place, and rings of every kind; xentool in its jail, too.
# on: trixie arm64
# limit: 800
# files: dist/xentool
. /payload/dom0/vchan.sh

vchan_guest g
id=$(domid g)
# Bytes each way: rings go round many times. npm test has the transfers of a minute.
big=10000000 small=1000000
sequence=0
jail=

# exchange READ_SIZE WRITE_SIZE BYTES PLACING...: streams both ways at once, for each placing of the two programs.
# With $jail, xentool's options.
exchange() {
  local read=$1 write=$2 bytes=$3 name path began
  local sizes="--read-size $read --write-size $write $jail"
  local peer_streams="stream $bytes 1 $bytes 2" streams="$bytes 2 $bytes 1"
  for placing in "${@:4}"; do
    name=v$((++sequence)) began=$SECONDS
    case $placing in
      peer-in-guest-serves)
        at_once g "vchan-peer server 0 /local/domain/$id/data/vchan/0/$name $read $write $peer_streams" \
          "$(relayed "connect $id $name --wait $jail" $streams)" ;;
      peer-in-dom0-serves)
        at_once g "$(relayed "connect 0 $name --wait $jail" $streams)" \
          "vchan-peer server $id /local/domain/0/data/vchan/$id/$name $read $write $peer_streams" ;;
      xentool-in-guest-serves)
        at_once g "$(relayed "listen 0 $name $sizes" $streams)" \
          "vchan-peer client $id /local/domain/$id/data/vchan/0/$name $peer_streams" ;;
      xentool-in-dom0-serves)
        at_once g "vchan-peer client 0 /local/domain/0/data/vchan/$id/$name $peer_streams" \
          "$(relayed "listen $id $name $sizes" $streams)" ;;
      xentool-alone-guest-serves)
        at_once g "$(relayed "listen 0 $name $sizes" $streams)" \
          "$(relayed "connect $id $name --wait $jail" "$bytes" 1 "$bytes" 2)" ;;
      xentool-alone-dom0-serves)
        at_once g "$(relayed "connect 0 $name --wait $jail" $streams)" \
          "$(relayed "listen $id $name $sizes" "$bytes" 1 "$bytes" 2)" ;;
    esac
    note "rings of $read and $write bytes, $placing: $bytes bytes each way in $((SECONDS - began)) s"
  done
}

placings=(peer-in-guest-serves peer-in-dom0-serves xentool-in-guest-serves xentool-in-dom0-serves)
alone=(xentool-alone-guest-serves xentool-alone-dom0-serves)
exchange 65536 65536 $big "${placings[@]}"
exchange 65536 65536 $small "${alone[@]}"
exchange 1048576 1048576 $big "${placings[@]}"
exchange 0 0 $small "${placings[@]}" "${alone[@]}"
exchange 8192 2048 $small peer-in-guest-serves xentool-in-dom0-serves

note 'xentool in its jail, or not at all'
jail='--jail strict'
exchange 65536 65536 $small "${placings[@]}" "${alone[@]}"
tidy_keys
