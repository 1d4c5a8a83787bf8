# A PV guest boots, runs commands for dom0, reboots, shuts down, and leaves nothing.
# xenstored: xenstored oxenstored
# limit: 180
# run: by name

guest g
assert_eq "$(on g 'echo hello from $(uname -s)')" 'hello from Linux' "a command's output"
status=0; on g 'exit 7' || status=$?
assert_eq "$status" 7 "a command's status"
id=$(domid g)
assert_eq "$(on g 'xenstore-read domid')" "$id" "the guest's own number"

xl reboot g
wait_up g 2
[ "$(domid g)" != "$id" ] || fail 'the guest did not reboot'
on g true

shutdown g
assert_clean
