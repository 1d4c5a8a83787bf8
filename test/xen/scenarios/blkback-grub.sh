# GRUB, which is not Linux, boots guests from our disk: PV, of 64 bits, it reads a kernel and hands the disk on to Linux,
# served by `serve` and by `watch`; PVH, of 32 bits, its checksums are right.
# limit: 900
# files: dist/xentool
. /payload/dom0/blkback.sh

note 'a disk with a kernel, what Linux starts with, and what GRUB reads'
mkdir -p tree/boot/grub
ln /lab/vmlinux tree/vmlinux 2>/dev/null || cp /lab/vmlinux tree/vmlinux
{ cat /lab/guest/base.cpio; _overlay; } >tree/initrd
dd if=/dev/urandom of=tree/f bs=1M count=3 status=none
cat >tree/boot/grub/grub.cfg <<'G'
if [ "$grub_cpu" = i386 ]; then
  sha256sum /f
else
  linux /vmlinux console=hvc0 quiet loglevel=4 mitigations=off panic=1
  initrd /initrd
  boot
fi
G
truncate -s $(($(du -sm tree | cut -f1) + 32))M disk
mke2fs -q -F -t ext4 -d tree disk

# grub NAME PROGRAM LINE...: a guest that GRUB boots.
grub() {
  local name=$1 program=$2; shift 2
  printf '%s\n' "name='$name'" "kernel='/usr/lib/grub-xen/$program'" 'memory=320' 'vcpus=2' "on_crash='destroy'" "$@" >"$name.cfg"
}
# same NAME: the guest reads what is in the image.
same() { assert_eq "$(on "$1" --limit 200 'sha256sum </dev/xvda')" "$(sha256sum <disk)" "what Linux reads in $1"; }

note 'by serve: the guest is made paused, and goes on when its disk is offered'
grub p grub-x86_64-xen.bin
xl create -q -p p.cfg
xentool -v blkback serve disk --domid "$(domid p)" --vdev xvda --max-queues 2 >"$OUT/serve-p.log" 2>&1 & SERVER=$!
wait_xs "$(backend qdisk p "$(devid xvda)")/state" 2
xl unpause p
wait_for 240 'Linux to start' _ups p 1
same p
grep 'queues* of' "$OUT/serve-p.log"
assert_eq "$(grep -c 'queues* of' "$OUT/serve-p.log")" 2 'frontends that connected: GRUB and Linux'
xl destroy p
wait $SERVER

note 'by watch, and xl'
install_script >/dev/null
start_watch
grub w grub-x86_64-xen.bin "disk=['$(xl_disk xvda "$WORK/disk")']"
xl create -q w.cfg
wait_for 240 'Linux to start' _ups w 1
same w
xl destroy w

note 'a frontend of 32 bits'
grub h grub-i386-xen_pvh.bin "type='pvh'" "disk=['$(xl_disk xvda "$WORK/disk" r)']"
xl create -q h.cfg
wait_for 200 "GRUB's checksum" _console_has h "$(sha256sum <tree/f | cut -d' ' -f1)"
assert_eq "$(xs "/local/domain/$(domid h)/device/vbd/$(devid xvda)/protocol")" x86_32-abi 'its protocol'
xl destroy h

stop_watch
xentool blkback uninstall >/dev/null; INSTALLED=
assert_clean
