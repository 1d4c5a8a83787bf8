# What a user-space backend of kind vbd needs of libxl and udev holds.
# The order of the keys and of the script, how errors reach xl, and that the kernel's blkback can be kept from our
# disks and no others. A shell loop stands in for the backend. docs/xen-notes.md says what follows from it.
# limit: 240
# run: by name

# ---- the stand-ins: a script, a udev rule with its helper, a backend ----

cat >/etc/xen/scripts/block-lab <<'S'
#!/bin/sh
echo "$1 $XENBUS_TYPE $XENBUS_PATH" >>/tmp/script-calls
[ "$1" = add ] || exit 0
for i in $(seq 50); do
  case $(xenstore-read "$XENBUS_PATH/hotplug-status" 2>/dev/null) in connected) exit 0 ;; error) exit 1 ;; esac
  sleep 0.1
done
xenstore-write "$XENBUS_PATH/hotplug-error" 'the backend does not answer' "$XENBUS_PATH/hotplug-status" error
exit 1
S
mkdir -p /run/udev/rules.d
cat >/run/lab-backend-added <<'S'
#!/bin/sh
case $(xenstore-read "$XENBUS_PATH/script") in
  */block-lab) [ -e /run/lab-backend ] || xenstore-write "$XENBUS_PATH/state" 2 ;; # or the script would never run
  *) echo "${DEVPATH##*/}" >/sys/bus/xen-backend/drivers_probe ;;
esac
S
chmod +x /etc/xen/scripts/block-lab /run/lab-backend-added
echo 'ACTION=="add", SUBSYSTEM=="xen-backend", RUN+="/run/lab-backend-added"' >/run/udev/rules.d/90-lab.rules
udevadm control --reload

serve() {
  local root=/local/domain/0/backend/vbd device
  trap - ERR; set +e # there may be nothing to serve
  while sleep 0.1; do
    for device in $(xenstore-ls -f $root 2>/dev/null | sed -n 's,/script = ".*/block-lab",,p'); do
      case $(xs "$device/state") in
        1) if [ -e "$(xs "$device/params")" ]; then
            xenstore-write "$device/max-ring-page-order" 1 "$device/hotplug-status" connected "$device/state" 2
          else
            xenstore-write "$device/hotplug-error" "$(xs "$device/params"): no such file" \
              "$device/hotplug-status" error "$device/state" 2
          fi ;;
        5) xenstore-write "$device/state" 6 ;;
      esac
    done
  done
}
driver() { basename "$(readlink "/sys/bus/xen-backend/devices/$1/driver" || echo none)"; }

restore() { echo 1 >/sys/bus/xen-backend/drivers_autoprobe; rm -f /run/udev/rules.d/90-lab.rules; udevadm control --reload; }
trap restore EXIT
echo 0 >/sys/bus/xen-backend/drivers_autoprobe
truncate -s 8M disk
disk="format=raw,vdev=xvdb,access=rw,script=block-lab,target=$WORK/disk"
guest g
id=$(domid g) ours=$(backend vbd g "$(devid xvdb)") device=vbd-$(domid g)-$(devid xvdb)

note 'nobody serves: the script says so'
assert_fails 'script: the backend does not answer' xl block-attach g "$disk"
assert_eq "$(driver "$device")" none 'the driver of our device'
assert_fails 'device already exists in xenstore' xl block-attach g "$disk"
touch /run/lab-backend
serve & server=$!
xl block-detach g xvdb
wait_xs "$ours/state" ''

note 'the image is missing: the reason reaches xl'
assert_fails "script: $WORK/none: no such file" xl block-attach g "${disk%disk}none"
xl block-detach g xvdb
assert_eq "$(xs "/libxl/$id/device/vbd/$(devid xvdb)")" '' "libxl's own record after block-detach"

note 'served'
: >/tmp/script-calls
xl block-attach g "$disk"
assert_eq "$(driver "$device")" none 'the driver of our device'
assert_eq "$(cat /tmp/script-calls)" "add vbd backend/vbd/$id/$(devid xvdb)" 'how the script was called'
assert_eq "$(xs "$ours/type") $(xs "$ours/params")" "phy $WORK/disk" 'what libxl writes'
wait_xs "/local/domain/$id/device/vbd/$(devid xvdb)/state" 3
assert_eq "$(xs "$ours/feature-persistent")" '' "what kernel blkback would have offered"

note "the kernel's blkback, loaded now, leaves ours alone and serves another"
modprobe xen-blkback
assert_eq "$(driver "$device")" none 'the driver of our device'
xl block-attach g "format=raw,vdev=xvdc,access=rw,backendtype=phy,target=$(losetup --find --show disk)"
wait_xs "$(backend vbd g "$(devid xvdc)")/state" 4
assert_eq "$(driver "vbd-$id-$(devid xvdc)")" vbd 'the driver of the other device'
xl block-detach g xvdc
losetup -D

note 'detach'
xl block-detach g xvdb
assert_eq "$(tail -1 /tmp/script-calls)" "remove vbd backend/vbd/$id/$(devid xvdb)" 'how the script was called'
wait_xs "$ours/state" ''

note 'a guest is created with the disk, and with one that is missing'
assert_fails "script: $WORK/none: no such file" guest h --no-wait "disk=['${disk%disk}none']"
assert_eq "$(xs "/local/domain/0/backend/vbd")" '' 'what is left of a guest that could not be created'
guest h --no-wait "disk=['$disk']"
assert_eq "$(xs "$(backend vbd h "$(devid xvdb)")/state")" 2 'the state when xl create is done'
xl destroy h
kill $server
