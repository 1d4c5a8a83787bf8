# Succeeds, but leaves a key, a loop device and a process behind.
# limit: 60
# expect: failed: left behind: .*key /test/left.*loop .*process .*sleep 1000

xenstore-write /test/left 1
truncate -s 1M "$OUT/file"; losetup --find "$OUT/file"
setsid sleep 1000 &
