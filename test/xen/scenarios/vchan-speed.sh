# How fast xentool's vchan is beside libxenvchan's, as ratios within one boot: three ring sizes, and round trips.
# limit: 600
# files: dist/xentool
# run: by name
. /payload/dom0/vchan.sh

rounds=3
vchan_guest g
id=$(domid g)

# measure PROGRAM RING_SIZE KILOBYTES TRIPS NAME: both ends of one program, the guest's serving; lines "KIND FIGURE".
measure() {
  local name=$5 path
  path=$(keys "$id" 0 "$name")
  case $1 in
    libxenvchan)
      at_once g "vchan-peer server 0 $path $2 $2 bench-serve" "vchan-peer client $id $path bench ${3}000 $4"
      sed -n 's/ \(MB\/s\|us\)$//p' at_once ;;
    xentool)
      at_once g "xentool vchan bench listen 0 $name --read-size $2 --write-size $2" \
        "xentool vchan bench connect $id $name --bytes ${3}000 --rounds $4 --json"
      cat at_once >>"$OUT/xentool.jsonl"
      tr '{,' '\n\n' <at_once | tr -d '"' | awk -F: '
        $1 == "kind" { kind = $2 }
        $1 == "bytesPerSecond" { print kind, $2 / 1e6 }
        $1 == "microseconds" { print kind, $2 + 0 }' ;;
  esac
}

for ring in '65536 60000' '0 2000' '1048576 600000'; do
  read -r size kilobytes <<<"$ring"
  for ((round = 1; round <= rounds; round++)); do
    for program in libxenvchan xentool; do
      measure $program "$size" $((kilobytes / PATIENCE)) $((1000 / PATIENCE)) "$program-$size-$round" | sed "s/^/$program $size /" >>figures.txt
      note "$program, rings of $size bytes, round $round: $(tail -4 figures.txt | cut -d' ' -f3- | paste -sd,)"
    done
  done
done

# The medians, and their ratio: above 1 xentool is better.
awk -v middle=$(((rounds + 1) / 2)) '
  { values[$2 " " $3 " " $1] = values[$2 " " $3 " " $1] " " $4; if (!seen[$2 " " $3]++) order[++count] = $2 " " $3 }
  function median(list, all, i, j, n, t) {
    n = split(list, all, " ")
    for (i = 2; i <= n; i++) for (j = i; j > 1 && all[j - 1] + 0 > all[j] + 0; j--) { t = all[j]; all[j] = all[j - 1]; all[j - 1] = t }
    return all[middle] + 0
  }
  END {
    printf "%-10s %-12s %12s %12s %8s\n", "ring", "kind", "libxenvchan", "xentool", "ratio"
    for (i = 1; i <= count; i++) {
      split(order[i], key, " "); theirs = median(values[order[i] " libxenvchan"]); ours = median(values[order[i] " xentool"])
      printf "%-10s %-12s %12.3f %12.3f %8.2f\n", key[1], key[2], theirs, ours, key[2] == "round-trip" ? theirs / ours : ours / theirs
    }
  }' figures.txt | tee "$OUT/speed.txt"
assert_eq "$(grep -c . "$OUT/speed.txt")" 13 'lines of the table'
