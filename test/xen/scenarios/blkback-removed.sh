# A device that the toolstack removes while its guest connects, at any moment of that, leaves nothing in xenstore, and its
# server ends.
# limit: 300
# files: dist/xentool
. /payload/dom0/blkback.sh

guest g
id=$(domid g)
image disk 16M >/dev/null
back=/local/domain/0/backend/qdisk/$id/$(devid xvdc) front=/local/domain/$id/device/vbd/$(devid xvdc)
for round in 1 2 3 4; do
  xentool blkback serve "$WORK/disk" --domid "$id" --vdev xvdc 2>>"$OUT/removed.log" &
  server=$!
  until xenstore-exists "$back/state"; do :; done
  for _ in $(seq $((RANDOM % 8))); do xenstore-exists "$back/state"; done
  xenstore-rm "$back" "$front"
  wait $server || true
  xenstore-ls -f / >"$OUT/keys"
  assert_eq "$(grep -cE "^($back|$front)" "$OUT/keys" || true)" 0 "keys left of the device, round $round"
done
# Its kernel may still be reading the partitions of a disk that is gone, and then hears nothing of a shutdown.
xl destroy g
assert_clean
