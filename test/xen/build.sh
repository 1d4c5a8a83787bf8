#!/bin/bash
# build.sh DIR LAB: makes a lab once: Xen of a Debian release, a dom0 root file system, the initramfs, and what guests are
# made of. Root, because debootstrap needs it; 3 minutes, 4 GB while it runs, 1 GB afterwards.
# In DIR afterwards: xen, vmlinuz and initramfs.gz (what QEMU boots), base.img (dom0's root, read-only),
# versions (of the packages that matter in a report); of Arm also libraries, which programs for it are linked with.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
dir=$1 lab=$2
arch=amd64 machine=qemu-system-x86 emulator=() loader=/lib64/ld-linux-x86-64.so.2
case $lab in
  bookworm) release=bookworm xen=4.17 ;;
  trixie) release=trixie xen=4.20 ;;
  arm64)
    release=trixie xen=4.20 arch=arm64 machine=qemu-system-arm
    emulator=(/qemu-aarch64-static) loader=/lib/ld-linux-aarch64.so.1
    ;;
  *) echo "build.sh: there is no lab $lab" >&2; exit 1 ;;
esac
mkdir -p "$dir"; cd "$dir"

tools=()
needed=($machine debootstrap e2fsprogs cpio busybox-static xz-utils zstd)
[ $arch = amd64 ] || needed+=(qemu-user-static kmod)
for p in "${needed[@]}"; do
  dpkg -s $p >/dev/null 2>&1 || tools+=($p)
done
if [ ${#tools[@]} != 0 ]; then
  echo "installing ${tools[*]}"
  export DEBIAN_FRONTEND=noninteractive
  { apt-get update -q && apt-get install -qy --no-install-recommends "${tools[@]}"; } >apt.log 2>&1 ||
    { tail -20 apt.log >&2; exit 1; }
fi

# "name [arch]" is for that architecture alone.
packages=$(sed -n "/^#/d; s/XEN/$xen/; s/ARCH/$arch/; s/ \[$arch\]//; /\[/d; p" "$here/packages.txt" | paste -sd,)
bootstrap() { debootstrap --variant=minbase --include="$packages" "$@" >debootstrap.log 2>&1 || { tail -20 debootstrap.log >&2; exit 1; }; }

# Of another architecture, nothing is configured, because that takes many minutes in emulation: all packages are unpacked,
# and what their scripts would have made is made here, as far as dom0 needs it.
unpack_foreign() {
  local deb
  for deb in root/var/cache/apt/archives/*.deb; do dpkg-deb -x "$deb" root; done
  [ ! -L root/proc ] || { rm root/proc; mkdir root/proc; }
  cp root/usr/share/base-passwd/passwd.master root/etc/passwd
  cp root/usr/share/base-passwd/group.master root/etc/group
  rm -rf root/var/run root/var/lock
  ln -s /run root/var/run; ln -s /run/lock root/var/lock
  ln -sf mawk root/usr/bin/awk
  depmod -b root "$(basename root/lib/modules/*)"
  mkdir -p libraries/{include,lib}
  cp -r root/usr/include/{xen,libxen}* libraries/include/
  cp root/usr/lib/aarch64-linux-gnu/libxen*.a libraries/lib/
}

if [ $arch = amd64 ]; then
  bootstrap $release root
else
  bootstrap --foreign --arch=$arch $release root
  unpack_foreign
  cp "$(command -v qemu-aarch64-static)" root/
fi
kernel=$(basename root/lib/modules/*)
# in_root PROGRAM [ARGUMENT]...: PROGRAM is a path.
in_root() { chroot root "${emulator[@]}" "$@"; }

if [ $arch = amd64 ]; then
  in_root /usr/bin/dpkg-query -W xen-hypervisor-$xen-amd64 xen-utils-$xen "linux-image-$kernel" qemu-system-xen fio >versions
  # QEMU's multiboot loader wants Xen unpacked.
  gunzip -c root/boot/xen-$xen-amd64.gz >xen
else
  for p in xen-hypervisor-$xen-$arch xen-utils-$xen "linux-image-$kernel" fio; do
    basename root/var/cache/apt/archives/"$p"_*.deb | sed 's/_/\t/; s/_.*//'
  done >versions
  cp root/boot/xen-$xen-$arch xen
fi
cp "root/boot/vmlinuz-$kernel" vmlinuz

# The modules' files, in the order in which they have to be loaded.
modules() {
  local m
  for m in "$@"; do in_root /sbin/modprobe -S "$kernel" --show-depends "$m"; done |
    awk '/^insmod/ && !seen[$2]++ { print $2 }'
}
# copy_modules DIR MODULE...: numbered, so that a glob lists them in that order, and unpacked, as insmod wants them.
copy_modules() {
  local to=$1 i=10 f; shift; mkdir -p "$to"
  for f in $(modules "$@"); do
    case $f in
      *.xz) xz -dc "root$f" >"$to/$i-$(basename "$f" .xz)" ;;
      *) cp "root$f" "$to/$i-$(basename "$f")" ;;
    esac
    i=$((i + 1))
  done
}
# copy_programs DIR PROGRAM...: with the shared libraries that they need, at the same paths, less what base has.
copy_programs() {
  local to=$1 program f; shift
  for program in "$@"; do
    for f in $program $(in_root $loader --list "$program" 2>/dev/null | grep -o '/[^ ]*'); do
      mkdir -p "$to$(dirname "$f")"
      [ -e "$to$f" ] || [ -e "base$f" ] || cp -L "root$f" "$to$f"
    done
  done
}
archive() { (cd "$1"; find . | LC_ALL=C sort | cpio -o -H newc --reproducible 2>/dev/null); }

# dom0's initramfs finds the root disk and no more.
mkdir -p early/{bin,dev,proc,sys,mnt}
cp root/bin/busybox early/bin/
copy_modules early/mod virtio_blk virtio_pci virtio_mmio crc32c_generic ext4
cat >early/init <<'I'
#!/bin/busybox sh
B=/bin/busybox
$B mount -t proc proc /proc; $B mount -t sysfs sys /sys; $B mount -t devtmpfs dev /dev
for m in /mod/*; do $B insmod $m; done
i=0; while [ ! -b /dev/vda ] && [ $i -lt 100 ]; do $B sleep 0.1; i=$((i + 1)); done
$B mount -t ext4 /dev/vda /mnt && exec $B switch_root /mnt /lab/init
echo "XENLAB: no root disk"; echo o >/proc/sysrq-trigger; $B sleep 30
I
chmod +x early/init
archive early | gzip -1 >initramfs.gz

# dom0's first process is the payload's, so that changing it needs no new lab.
mkdir -p root/lab/guest root/payload
cat >root/lab/init <<'I'
#!/bin/bash
mount -t proc proc /proc; mount -t devtmpfs dev /dev
for i in $(seq 100); do [ -b /dev/vdb ] && break; sleep 0.1; done
mount -t ext4 /dev/vdb /payload && exec /payload/dom0/init
echo "XENLAB: no payload"; echo o >/proc/sysrq-trigger; sleep 30
I
chmod +x root/lab/init

# A guest is a kernel and a list of cpio archives one after the other. Nothing is compressed: under software
# emulation unpacking costs seconds and memory costs nothing.
if [ $arch = amd64 ]; then
  size() { od -An -j$(($1)) -N"$2" -tu"$2" vmlinuz | tr -d ' '; }
  start=$((($(size 0x1f1 1) + 1) * 512 + $(size 0x248 4))) # the boot protocol's setup_sects and payload_offset
  length=$(($(size 0x24c 4) - 4))                          # payload_length, less the size that follows the stream
  payload() { head -c $((start + length)) vmlinuz | tail -c $length; }
  case $(payload | head -c 4 | od -An -tx1 | tr -d ' ') in
    28b52ffd) payload | zstd -dcq >root/lab/vmlinux ;;
    *) payload | xz -dc >root/lab/vmlinux ;;
  esac
else
  cp vmlinuz root/lab/vmlinux
fi
mkdir -p base/{bin,sbin,dev,proc,sys,tmp,run,mnt}
cp root/bin/busybox base/bin/
for applet in $(in_root /bin/busybox --list); do [ -e base/bin/$applet ] || ln -s busybox base/bin/$applet; done
copy_modules base/mod xen-blkfront xenfs xen-privcmd xen-evtchn xen-gntdev xen-gntalloc crc32c_generic ext4
copy_programs base /bin/bash /usr/bin/xenstore-{read,write,ls,rm,list,watch,exists} /sbin/{mke2fs,e2fsck,blkdiscard,fstrim} /bin/dd
archive base >root/lab/guest/base.cpio
mkdir fio
copy_programs fio /usr/bin/fio
archive fio >root/lab/guest/fio.cpio

rm -rf root/usr/share/{doc,man,locale} root/var/cache/apt root/var/lib/apt root/boot root/qemu-* root/debootstrap
truncate -s 3G base.img
mke2fs -q -F -t ext4 -O ^has_journal -d root base.img
rm -rf root early base fio
