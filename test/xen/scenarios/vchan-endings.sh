# Either side closes, is stopped or is killed: the other notices and ends, whoever serves, and wherever.
# limit: 800
# files: dist/xentool
. /payload/dom0/vchan.sh

vchan_guest g
id=$(domid g)
declare -A number=([dom0]=0 [g]=$id) other=([dom0]=g [g]=dom0)
sequence=0

# meet SERVER SERVER_PLACE CLIENT: starts both, xentool or vchan-peer, under a new name, and waits until they have met.
meet() {
  local server=$1 at=$2 client=$3 there=${other[$2]} name=e$((++sequence)) path
  path=$(keys "${number[$at]}" "${number[$there]}" "$name")
  case $server in
    xentool) begin "$at" server "xentool vchan listen ${number[$there]} $name -v" ;;
    vchan-peer) begin "$at" server "vchan-peer server ${number[$there]} $path 65536 65536 hold" ;;
  esac
  case $client in
    xentool) begin "$there" client "xentool vchan connect ${number[$at]} $name --wait -v" ;;
    vchan-peer) begin "$there" client "vchan-peer client ${number[$at]} $path hold" ;;
  esac
  said "$at" server connected
  said "$there" client connected
}

# signalled SIGNAL PLACE VICTIM PROGRAM STATUS: sends it to the PROGRAM that is the VICTIM (server or client) there.
# The one in the other place ends with STATUS, because it has noticed: neither tires of a silent peer here, whose input
# stays open. The victim's own status is then in $victim_status.
signalled() {
  local at=$2 survivor=client; [ "$3" = server ] || survivor=server
  in_place "$at" "kill -$1 \$(pidof $4)"
  assert_eq "$(status_of "${other[$at]}" $survivor 60)" "$5" "status of the $survivor after $1 of the $3, a $4"
  victim_status=$(status_of "$at" "$3" 60)
}

# Each program serves in each place, and each is killed, and survives, in each. `npm test` has the other combinations.
note 'vchan-peer serves'
meet vchan-peer dom0 xentool
signalled KILL dom0 server vchan-peer 0
meet vchan-peer g xentool
signalled KILL dom0 client xentool 0
note 'xentool serves'
meet xentool dom0 vchan-peer
signalled KILL g client vchan-peer 0
meet xentool g vchan-peer
signalled KILL g server xentool 0
meet xentool g vchan-peer
signalled TERM g server xentool 0
assert_eq "$victim_status" 143 'status of xentool after TERM'

note 'xentool alone, serving in g'
meet xentool g xentool
signalled KILL g server xentool 5
meet xentool g xentool
signalled TERM dom0 client xentool 5
assert_eq "$victim_status" 143 'status of xentool after TERM'

note 'xentool closes first, once the peer is silent; everything has come'
at_once g "vchan-peer server 0 $(keys "$id" 0 linger) 65536 65536 stream 5000000 1 5000000 2 wait" \
  "$(relayed "connect $id linger --wait --linger 1" 5000000 2 5000000 1)"
at_once g "vchan-peer client 0 $(keys 0 "$id" linger) stream 5000000 1 5000000 2 wait" \
  "$(relayed "listen $id linger --linger 1" 5000000 2 5000000 1)"

note "packets through a command at xentool's end"
at_once g "vchan-peer server 0 $(keys "$id" 0 packets) 4096 1024 packets 300" "xentool vchan connect $id packets --wait -- cat"
at_once g "xentool vchan listen 0 packets2 --read-size 0 --write-size 0 -- cat" \
  "vchan-peer client $id $(keys "$id" 0 packets2) packets 300"
at_once g "vchan-peer client 0 $(keys 0 "$id" packets3) packets 300" "xentool vchan listen $id packets3 -- cat"
tidy_keys
