# What is refused or noticed on real Xen, each with its reason and exit status: wrong domains, rights, limits, dead peers;
# a jailed xentool at both ends notices its peer's death, too.
# limit: 900
# files: dist/xentool
. /payload/dom0/vchan.sh

vchan_guest g
id=$(domid g)

# refused PLACE STATUS REGEX COMMAND: it ends with STATUS, and with one line that matches, after what it waited for.
refused() {
  local said
  said=$(in_place "$1" "$4 </dev/null 2>&1 >/dev/null; echo status \$?" | grep -v '^xentool: waiting for ')
  assert_match "$said" "$3" "what '$4' says in $1"
  assert_eq "$(tail -1 <<<"$said")" "status $2" "'$4' in $1"
  assert_eq "$(wc -l <<<"$said")" 2 "lines that '$4' says in $1"
  note "$4: $(head -1 <<<"$said")"
}

refused dom0 3 'there is no domain 999' 'xentool vchan listen 999 x'
refused dom0 3 'this domain.*can crash' 'xentool vchan listen 0 x'
refused g 3 'this domain.*can crash' "xentool vchan connect $id x --wait"
refused g 3 'offers no vchan' 'xentool vchan connect 0 x'
refused g 6 'within 1 s' 'xentool vchan connect 0 x --wait --timeout 1'
refused g 6 'within 1 s' 'xentool vchan listen 0 x --timeout 1'
refused g 3 '/local/domain/0/data/x' 'xentool vchan listen 0 /local/domain/0/data/x'
refused g 2 'made of letters' 'xentool vchan listen 0 x/y'

limit=/sys/module/xen_gntalloc/parameters/limit
trap "echo 1024 >$limit" EXIT
for place in dom0 g; do
  in_place $place "echo 100 >$limit"
  peer=$id; [ $place = dom0 ] || peer=0
  refused $place 3 'gntalloc' "xentool vchan listen $peer x --read-size 1048576"
  in_place $place "echo 1024 >$limit"
done

note 'a server whose rings cannot be'
begin g server "vchan-peer liar 0 $(keys "$id" 0 liar) 27"
said g server lying
refused dom0 4 'order is 27, outside 10 to 20' "xentool vchan connect $id liar"
in_place g 'kill -9 $(pidof vchan-peer)'

note 'a server that died, and its keys'
begin g server 'xentool vchan listen 0 dead'
wait_for 30 'the keys' xenstore-exists "$(keys "$id" 0 dead)/event-channel"
in_place g 'kill -9 $(pidof xentool)'
refused dom0 3 'cannot be used' "xentool vchan connect $id dead"
refused dom0 6 'within 2 s' "xentool vchan connect $id dead --wait --timeout 2"

# jailed PLACE: what every thread of the xentool there may do is nothing but what its filter lets through.
jailed() {
  assert_eq "$(in_place "$1" "grep -hsE '^(CapEff|NoNewPrivs|Seccomp):' /proc/\$(pidof xentool)/task/*/status | sort -u | tr -s '\\t\\n' ' '")" \
    'CapEff: 0000000000000000 NoNewPrivs: 1 Seccomp: 2 ' "what xentool's threads may do in $1"
}
# gone PEER_COMMAND XENTOOL_COMMAND: the guest is destroyed while both are connected.
gone() {
  local began
  begin g peer "$1"
  begin dom0 watcher "$2"
  said dom0 watcher connected
  said g peer connected
  [[ $1 != *--jail* ]] || { jailed dom0; jailed g; }
  xl destroy g
  began=$SECONDS
  assert_eq "$(status_of dom0 watcher 30)" 5 "status of '$2' after the guest was destroyed"
  note "$2: $(tail -1 watcher), within $((SECONDS - began)) s"
}
gone "vchan-peer server 0 $(keys "$id" 0 gone) 65536 65536 hold" "xentool vchan connect $id gone --wait -v"
vchan_guest g
id=$(domid g)
note 'in the jail, too'
gone 'xentool vchan connect 0 gone --wait -v --jail strict' "xentool vchan listen $id gone -v --jail strict"
tidy_keys
