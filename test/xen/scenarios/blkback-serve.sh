# A Linux guest uses disks that `xentool blkback serve` hot-plugs with no other tool: what it sees is what is
# offered, file systems and checksums are right on both sides, discard and flush arrive.
# on: trixie arm64
# limit: 600
# files: dist/xentool
. /payload/dom0/blkback.sh

guest g --with fio

note 'what the guest sees of a disk'
attach g xvdb "$(image a 64M)"
device=$(backend qdisk g "$(devid xvdb)")
seen=$(on g 'cd /sys/block/xvdb; for f in size ro queue/logical_block_size queue/physical_block_size \
  queue/discard_granularity queue/discard_max_bytes queue/write_cache queue/max_segments; do echo "$f:$(cat $f)"; done')
# In one request, Linux discards as much as the disk has, and since 6.9 as much as a number of sectors can say.
discards=$((64 << 20))
[[ $(on g 'uname -r') =~ ^([0-5]|6\.[0-8])\. ]] || discards=$(((2 ** 32 - 1) * 512))
wanted="size:131072 ro:0 queue/logical_block_size:512 queue/physical_block_size:$(xs "$device/physical-sector-size") \
queue/discard_granularity:$(xs "$device/discard-granularity") queue/discard_max_bytes:$discards queue/write_cache:write back \
queue/max_segments:32" # blkfront wants 32 of the 256 segments that are offered; 11 would be without indirect requests
assert_eq "$(paste -sd' ' <<<"$seen")" "$wanted" 'what the guest sees'

note 'mkfs, a tree of files, sync, umount in the guest; fsck and checksums in dom0'
on g '/sbin/mke2fs -q -t ext4 /dev/xvdb && mount /dev/xvdb /mnt && mkdir /mnt/tree && cp -a /mod /sbin /bin/bash /bin/busybox /mnt/tree/ &&
  dd if=/dev/urandom of=/mnt/tree/random bs=64k count=64 2>/dev/null && sync'
sums_in g /mnt/tree >from-guest
assert_at_least "$(stat_of g xvdb flushes)" 1 'flushes after sync'
assert_at_least "$(stat_of g xvdb indirect)" 1 'indirect requests'
on g 'umount /mnt'
detach
e2fsck -fn a >fsck.log 2>&1 || fail "e2fsck: $(cat fsck.log)"
mkdir m; mount -o loop,ro a m
sums m/tree >in-dom0; umount m
assert_at_least "$(wc -l <in-dom0)" 15 'files copied'
cmp from-guest in-dom0 || fail 'files that the guest wrote differ'
assert_clean_devices() { assert_eq "$(xs "/local/domain/$(domid g)/device/vbd/$1")$(xenstore-ls -f /local/domain/0/backend/qdisk 2>/dev/null)" '' 'what is left of the device'; }
assert_clean_devices "$(devid xvdb)"

note 'a disk prepared in dom0, read-only in the guest'
mkdir tree; cp -a /etc/xen /payload/scenarios /bin/bash /bin/tar tree/
mke2fs -q -F -t ext4 -d tree "$(image b 96M)"
attach g xvdb b --mode r
assert_eq "$(on g 'cat /sys/block/xvdb/ro')" 1 'the read-only flag'
on g 'mount -o ro,noload /dev/xvdb /mnt'
sums tree >in-dom0; sums_in g /mnt >from-guest
cmp from-guest in-dom0 || fail 'files that the guest read differ'
on g 'umount /mnt; ! dd if=/dev/zero of=/dev/xvdb bs=4k count=1 2>/dev/null'
detach

note 'sectors of 4096'
attach g xvdb a --sector-size 4096
assert_eq "$(on g 'cat /sys/block/xvdb/queue/logical_block_size /sys/block/xvdb/size | paste -sd" "')" '4096 131072' 'sector size, and sectors of 512'
on g 'dd if=/bin/busybox of=/dev/xvdb bs=4096 seek=8 count=64 oflag=direct 2>/dev/null'
assert_eq "$(dd if=a bs=4096 skip=8 count=64 status=none | sha256sum)" "$(on g 'dd if=/bin/busybox bs=4096 count=64 2>/dev/null | sha256sum')" 'data'
detach

note 'discard'
dd if=/dev/urandom of=a bs=1M count=64 conv=notrunc status=none
attach g xvdb a
on g 'blkdiscard -o 1048576 -l 33554432 /dev/xvdb'
assert_at_least "$(stat_of g xvdb discards)" 1 'discards'
assert_eq "$(stat_of g xvdb discardBytes)" 33554432 'bytes discarded'
assert_eq "$(du -k a | cut -f1)" $((32 * 1024)) 'KiB that the image still takes'
assert_eq "$(on g 'dd if=/dev/xvdb bs=1M skip=1 count=32 iflag=direct 2>/dev/null | tr -d "\0" | wc -c')" 0 'bytes not 0 after discard'
on g '/sbin/mke2fs -q -t ext4 /dev/xvdb && mount /dev/xvdb /mnt && dd if=/dev/urandom of=/mnt/big bs=1M count=40 2>/dev/null && sync && rm /mnt/big && sync'
before=$(stat_of g xvdb discardBytes)
on g 'fstrim /mnt && umount /mnt'
assert_at_least "$(stat_of g xvdb discardBytes)" $((before + (38 << 20))) 'bytes discarded by fstrim'

note 'flush'
before=$(stat_of g xvdb flushes)
on g 'for i in 1 2 3 4 5; do dd if=/dev/urandom of=/dev/xvdb bs=4k count=1 conv=fsync 2>/dev/null; done'
assert_eq "$(stat_of g xvdb flushes)" $((before + 5)) 'flushes after five fsyncs'
detach
e2fsck -fn b >fsck.log 2>&1 || fail "e2fsck: $(cat fsck.log)"

note 'fio with checksums, verified at once; the same bytes after the disk was gone'
job='fio --name=v --filename=/dev/xvdb --rw=randrw --bsrange=4k-1M --size=32M --iodepth=32 --ioengine=libaio --direct=1 --verify=crc32c --verify_fatal=1 --randseed=7'
attach g xvdb "$(image c 48M)"
on g --limit 200 "$job --verify_state_save=0" >"$OUT/fio-verify.txt"
detach
attach g xvdb c
assert_eq "$(on g 'sha256sum </dev/xvdb')" "$(sha256sum <c)" 'what the guest reads once the disk is back'
detach

note 'a sparse disk of 8 GiB, written at its end'
attach g xvdb "$(image d 8G)"
on g 'dd if=/bin/busybox of=/dev/xvdb bs=64k seek=131071 count=1 oflag=direct 2>/dev/null'
assert_eq "$(tail -c 65536 d | sha256sum)" "$(on g 'head -c 65536 /bin/busybox | sha256sum')" 'the last 64 KiB'
assert_eq "$(on g 'dd if=/dev/xvdb bs=64k skip=131071 count=1 iflag=direct 2>/dev/null | sha256sum')" "$(tail -c 65536 d | sha256sum)" 'read back'
on g '! dd if=/dev/zero of=/dev/xvdb bs=64k seek=131072 count=1 oflag=direct 2>/dev/null'
detach

on g true
shutdown g
assert_clean
