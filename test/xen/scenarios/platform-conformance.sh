# The platform conformance suite passes on /dev/xen/*: dom0 with itself, and a guest that shares with dom0 that maps.
# on: trixie
# limit: 600
# files: dist/xentool node_modules/@logtape src test/conformance test/support test/xen/programs build/shim/libxentool.so
. /payload/dom0/vchan.sh

# xentool is Bun, too.
bun='env BUN_BE_BUN=1 xentool'
programs=/payload/files/test/xen/programs

note 'dom0 with itself'
$bun $programs/platform-conformance.ts 2>&1 | tee "$OUT/dom0.txt"
assert_clean

note 'a guest with dom0'
$bun build --target=bun --outdir=agent --asset-naming='[name].[ext]' $programs/platform-agent.ts
vchan_guest g --memory 900 --with agent/platform-agent.js:/agent/agent.js --with agent/libxentool.so:/agent/libxentool.so
id=$(domid g)
begin g agent "(cd /agent && exec xentool vchan listen 0 conformance -- $bun agent.js $id)"
xentool vchan connect "$id" conformance --wait --timeout 60 -- $bun $programs/platform-conformance.ts "$id" 2>&1 | tee "$OUT/guest.txt" ||
  fail "the agent said: $(in_place g 'cat agent')"
assert_eq "$(status_of g agent 30)" 0 "status of the guest's agent"
assert_eq "$(tail -1 "$OUT/guest.txt")" "$(tail -1 "$OUT/dom0.txt")" 'what both runs end with'
xl destroy g
assert_clean
