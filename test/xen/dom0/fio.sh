# The five figures by which backends are compared. Sourced by lib.sh. Under software emulation only ratios
# between figures of one boot mean anything.

FIGURES='randread-1 randread-32 randwrite-1 randwrite-32 read-1M'

# fio_figures NAME DEVICE [SECONDS]: measures in guest NAME (made --with fio); prints "FIGURE VALUE" lines: IOPS, and for
# the last MB/s.
fio_figures() {
  local guest=$1 device=$2 seconds=${3:-5} figure rw depth size line
  for figure in $FIGURES; do
    rw=${figure%-*} depth=${figure#*-} size=4k
    [ "$rw" = read ] && depth=4 size=1M
    line=$(on "$guest" --quiet $((seconds + 1)) "fio --name=f --filename=$device --direct=1 --ioengine=libaio --rw=$rw --bs=$size \
--iodepth=$depth --runtime=$seconds --time_based --minimal --terse-version=3 --randseed=1" | grep '^3;')
    # terse version 3: read KiB/s and IOPS are fields 7 and 8, write 48 and 49
    awk -F';' -v figure="$figure" -v rw="$rw" '{
      if (rw == "read") value = $7 * 1.024 / 1000; else value = rw == "randread" ? $8 : $49
      print figure, value }' <<<"$line"
  done
}

# fio_table NAME=FILE...: what fio_figures printed, side by side, with ratios to the first.
fio_table() {
  awk '
    BEGIN {
      printf "%-14s", "figure"
      for (i = 1; i < ARGC; i++) { split(ARGV[i], part, "="); name[i] = part[1]; printf "%20s", name[i]
        while ((getline line < part[2]) > 0) { split(line, f, " "); value[f[1], i] = f[2]; if (i == 1) order[++n] = f[1] } }
      print ""
      for (k = 1; k <= n; k++) { printf "%-14s", order[k]
        for (i = 1; i < ARGC; i++) {
          text = sprintf("%.0f", value[order[k], i])
          if (i > 1 && value[order[k], 1] > 0) text = text sprintf(" (%.2f)", value[order[k], i] / value[order[k], 1])
          printf "%20s", text }
        print "" }
    }' "$@"
}
