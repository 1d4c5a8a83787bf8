# What a scenario may leave behind on the host, as sorted lines that can be compared with those of before it, and how to
# wait. Sourced by run-scenarios and by lib.sh.

# Grants that somebody has mapped or pinned, from the hypervisor's own table: "granting-domain reference mapping-domain".
grants() {
  xl dmesg -c >>/tmp/xen-dmesg
  xl debug-keys g
  xl dmesg -c | awk '
    /gnttab_usage_print_all \[/ { delete seen }
    /grant-table for remote/ { for (i = 1; i < NF; i++) if ($i == "remote") owner = $(i + 1) }
    /\(XEN\) \[0x/ || /\(XEN\) \[ *[0-9]+\]/ { gsub(/[][]/, ""); seen["grant " owner " ref " $2 " mapped by d" $3] }
    END { for (line in seen) print line }'
}

# pause SECONDS: waits without starting a process. Under emulation `sleep` in a loop costs a tenth of a processor, which
# the guests then lack.
exec {_silence}<> <(:)
pause() { read -rt "$1" -u "$_silence" || true; }

# Event channels of dom0 that lead to a domain, or wait for one. Debian has no lsevtchn for Arm.
ports() { type lsevtchn >/dev/null 2>&1 || return 0; lsevtchn 0 | sed -n '/[Ii]nterdomain\|[Ww]aiting\|Unbound/s/^ *\([0-9]*\): /port \1 /p'; }

# state [CGROUP]: everything.
state() {
  {
    xl list | awk 'NR > 1 && $2 != 0 { print "domain " $1 " (" $2 ")" }'
    # the directories that hold guests, devices, their errors and device models stay when the last one goes
    xenstore-ls -f / | sed 's/ = .*//; /^\/vm$/d; /^\/libxl$/d; /^\/local\/domain\/0\/device-model$/d; /^\/local\/domain\/0\/backend\(\/[a-z0-9]*\)\?$/d; /^\/local\/domain\/0\/error\(\/backend\(\/[a-z]*\)\?\)\?$/d; s/^/key /'
    grants
    ports
    losetup -a | sed 's/^/loop /'
    awk '$2 !~ "^/(proc|sys|dev)" { print "mount " $2 }' /proc/mounts
    local p
    for p in $(cat "${1:-/dev/null}/cgroup.procs" 2>/dev/null); do
      [ -e "/proc/$p" ] && echo "process $p $(tr '\0' ' ' 2>/dev/null </proc/"$p"/cmdline)"
    done
  } | LC_ALL=C sort -u
}
