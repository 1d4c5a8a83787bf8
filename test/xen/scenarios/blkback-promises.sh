# What Linux makes of a flush that failed: its blkfront tells the file system OK and never flushes again. So writes have
# to fail, and they do; under the next server, too. A disk that is let go without a flush is on the image all the same.
# limit: 300
# files: dist/xentool
. /payload/dom0/blkback.sh

guest g
note 'a flush fails once'
attach g xvdb "$(image lost 64M)" --filter error:times=1,op=flush
write='dd if=/bin/busybox of=/dev/xvdb bs=64k count=1 oflag=direct'
on g "$write 2>/dev/null"
on g "$write conv=fsync 2>/dev/null"
on g 'dmesg | grep "empty flush.* op failed"' >/dev/null
on g "! $write 2>/dev/null"
on g 'dd if=/dev/xvdb of=/dev/null bs=64k count=1 iflag=direct 2>/dev/null'
assert_eq "$(stat_of g xvdb flushErrors)" 1 'flushes that failed'
assert_match "$(xentool blkback list)" 'flush: EIO' 'the list'

note 'its server is killed; the next one knows'
kill -KILL $SERVER; wait $SERVER || true
attach g xvdb "$WORK/lost"
on g "! $write 2>/dev/null"
status=0; kill -TERM $SERVER; wait $SERVER || status=$?
assert_eq $status 5 'the status of a server whose disk lost data'
assert_match "$(cat "$OUT/serve-xvdb.log")" 'may be lost: EIO' 'its last words'

note 'let go without a flush'
attach g xvdc "$(image kept 64M)" --filter log:op=flush
on g 'dd if=/bin/busybox of=/dev/xvdc bs=64k count=16 oflag=direct 2>/dev/null'
assert_eq "$(grep -c 'flush #' "$OUT/serve-xvdc.log" || true)" 0 'flushes while it was used'
detach
assert_eq "$(grep -c 'flush #' "$OUT/serve-xvdc.log")" 1 'flushes when it was let go'
shutdown g
assert_clean
