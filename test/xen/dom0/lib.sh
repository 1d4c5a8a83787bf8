# What scenarios are written with. Every scenario has sourced it already, and runs under `set -Eeuo pipefail` in
# $WORK (in memory, removed afterwards); files put into $OUT come back to the host. The first failing command
# or `fail` ends it. SECONDS arguments are multiplied by $PATIENCE.
set -Eeuo pipefail
exec 9>&2
. /payload/dom0/state.sh
. /payload/dom0/fio.sh
export PATH=/payload/files/dist:/payload/programs:$PATH

trap 'status=$?; echo "FAIL: ${BASH_SOURCE[0]##*/}:$LINENO: $BASH_COMMAND (status $status)" >&9; exit $status' ERR

# ---- saying and asserting ----

# note TEXT: a line of the log, with the time since the scenario began.
note() { printf '[%3d s] %s\n' $SECONDS "$*" >&9; }
fail() { echo "FAIL: $*" >&9; trap - ERR; exit 1; }
# assert_eq GOT WANT WHAT
assert_eq() { [ "$1" = "$2" ] || fail "$3: '$1', not '$2'"; }
# assert_match TEXT REGEX WHAT
assert_match() { [[ $1 =~ $2 ]] || fail "$3: '$1' does not match '$2'"; }
# assert_fails REGEX COMMAND...: fails, and says REGEX.
assert_fails() {
  local regex=$1 said; shift
  if said=$("$@" 2>&1); then fail "succeeded: $*"; fi
  [[ $said =~ $regex ]] || fail "$* said '$said', not '$regex'"
}
# wait_for SECONDS WHAT COMMAND...: until COMMAND succeeds.
wait_for() {
  local end=$((SECONDS + $1 * PATIENCE)) what=$2; shift 2
  until "$@" >/dev/null 2>&1; do
    [ $SECONDS -lt $end ] || fail "waited in vain: $what"
    pause 0.2
  done
}

# ---- guests ----

# guest NAME [--memory MIB] [--with fio|FILE:PATH]... [--no-wait] [CONFIG_LINE]...
# Makes a PV guest and waits until `on NAME` works. It has busybox, bash, the PV drivers, xenstore-*, mke2fs and
# e2fsck; --with fio adds fio, --with FILE:PATH a file of dom0's (with the libraries that it needs).
guest() {
  local name=$1 memory=160 wait=1 archives=(/lab/guest/base.cpio) files=() lines=(); shift
  while [ $# != 0 ]; do
    case $1 in
      --memory) memory=$2; shift ;;
      --with) if [[ $2 == *:* ]]; then files+=("$2"); else archives+=("/lab/guest/$2.cpio"); ((memory += 320)); fi; shift ;;
      --no-wait) wait=0 ;;
      *) lines+=("$1") ;;
    esac
    shift
  done
  cat "${archives[@]}" >"$name.cpio"
  _overlay "${files[@]}" >>"$name.cpio"
  {
    printf '%s\n' "name='$name'" "kernel='/lab/vmlinux'" "ramdisk='$WORK/$name.cpio'" "memory=$memory" 'vcpus=1' \
      "extra='console=hvc0 quiet loglevel=4 mitigations=off panic=1'" "on_poweroff='destroy'" "on_crash='destroy'"
    [ ${#lines[@]} = 0 ] || printf '%s\n' "${lines[@]}"
  } >"$name.cfg"
  note "guest $name: xl create"
  # xenconsoled appends: what an earlier guest of this name said would look as if this one were up.
  [ ! -e "$(_log "$name")" ] || mv "$(_log "$name")" "$(_log "$name.until-$SECONDS")"
  xl create -q "$name.cfg" || return
  [ $wait = 0 ] || wait_up "$name"
}

# The archive of a guest's own files.
_overlay() {
  local tree file from to f; tree=$(mktemp -d)
  mkdir -p "$tree/sbin"
  cp /payload/guest/init "$tree/init"
  cp /payload/guest/poweroff "$tree/sbin/poweroff"; cp /payload/guest/poweroff "$tree/sbin/reboot"
  for file in "$@"; do
    from=${file%%:*} to=$tree${file#*:}
    mkdir -p "$(dirname "$to")"; cp -L "$from" "$to"
    for f in $(ldd "$from" 2>/dev/null | grep -o '/[^ ]*' || true); do
      mkdir -p "$tree$(dirname "$f")"; cp -L "$f" "$tree$f"
    done
  done
  # Not GNU's cpio, which reads 512 bytes at a time: 40 seconds for xentool here, where busybox needs one.
  (cd "$tree" && find . | busybox cpio -o -H newc 2>/dev/null)
  rm -rf "$tree"
}

# domid NAME: from xenstore, because starting xl takes a second.
domid() {
  local id
  for id in $(xenstore-list /local/domain); do
    [ "$(xs "/local/domain/$id/name")" != "$1" ] || { echo "$id"; return; }
  done
  echo "there is no domain $1" >&2; return 1
}
# alive NAME: whether the domain exists.
alive() { domid "$1" >/dev/null 2>&1; }
# console NAME: everything that the guest has said.
console() { tr -d '\r' <"$(_log "$1")"; }
_log() { echo "/var/log/xen/console/guest-$1.log"; }
_console_has() { grep -aq -- "$2" "$(_log "$1")"; }
# wait_console NAME TEXT [SECONDS]
wait_console() { wait_for "${3:-60}" "'$2' on $1's console" _console_has "$1" "$2"; }
_ups() { [ "$(grep -ac '^GUEST: up' "$(_log "$1")")" -ge "$2" ]; }
# wait_up NAME [N]: until it has booted for the Nth time (a guest that reboots keeps its console's log).
wait_up() {
  wait_for 90 "$1 to boot" _ups "$1" "${2:-1}"
  note "guest $1: $(console "$1" | grep '^GUEST: up' | tail -1 | cut -d' ' -f2-) s"
}
wait_gone() { wait_for 30 "$1 to be gone" _gone "$1"; }
_gone() { ! alive "$1"; }

_sequence=0
# on NAME [--limit SECONDS] [--quiet SECONDS] COMMAND: runs a shell command in the guest; its output and its status are
# on's. COMMAND is at most 2,900 bytes. A command put into the background (its output sent elsewhere) goes on. --quiet:
# for so long dom0 does not even look for the end, because looking costs what is being measured.
on() {
  local name=$1 limit=60 quiet=0 seq code; shift
  while [[ $1 == --* ]]; do
    case $1 in --limit) limit=$2 ;; --quiet) quiet=$2 ;; esac
    shift 2
  done
  seq=$BASHPID.$((++_sequence)).$RANDOM
  code=$(base64 -w0 <<<"$*")
  [ ${#code} -le 3900 ] || fail "on $name: the command is too long"
  echo "$seq $code" >"$(xenstore-read "/local/domain/$(domid "$name")/console/tty")"
  sleep "$quiet"
  wait_for "$limit" "$name: $*" _answered "$name" "$seq"
  console "$name" | sed -n "/^<<$seq\$/,/^$seq>> /p" | sed '1d;$d' | sed '${/^$/d}'
  return "$(console "$name" | sed -n "s/^$seq>> \([0-9]*\)\.\$/\1/p")"
}
# A console's text comes in pieces of 16 bytes and less, so the end is there once the full stop after the status is.
# Whether the guest still exists is asked every fifth second: it takes a process for each domain and more.
_answered() {
  _console_has "$1" "^$2>> [0-9]*\." && return
  ((++_looks % 25)) || alive "$1" || fail "$1 is gone"
  return 1
}
_looks=0

# shutdown NAME: asks politely, waits until the domain is gone.
shutdown() { xl shutdown "$1" >/dev/null; wait_gone "$1"; }

# ---- xenstore and the rest of the host ----

# xs PATH: the value; nothing when there is none.
xs() { xenstore-read "$1" 2>/dev/null || true; }
_xs_is() { [ "$(xs "$1")" = "$2" ]; }
# wait_xs PATH VALUE [SECONDS]: VALUE '' waits for it to go.
wait_xs() { wait_for "${3:-30}" "$1 = $2" _xs_is "$1" "$2"; }
# backend KIND NAME DEVID: the device's directory in dom0.
backend() { echo "/local/domain/0/backend/$1/$(domid "$2")/$3"; }
# devid XVDA..XVDP: its number.
devid() { echo $((202 * 256 + ($(printf '%d' "'${1#xvd}") - 97) * 16)); }
# image NAME SIZE: a sparse file in $WORK; prints its path.
image() { truncate -s "$2" "$WORK/$1"; echo "$WORK/$1"; }
# left_behind: what this scenario has made and not yet removed; a scenario need not end with it, the runner looks too.
left_behind() { state "$GROUP" | LC_ALL=C comm -13 "$BEFORE" - | grep -v '^process ' || true; }
# assert_clean: no domain, key, grant, port, loop device or mount of this scenario's is left.
assert_clean() {
  local end=$((SECONDS + 10 * PATIENCE)) left
  while left=$(left_behind) && [ -n "$left" ]; do
    [ $SECONDS -lt $end ] || fail "left behind: $(paste -sd';' <<<"$left")"
    pause 0.5
  done
}
