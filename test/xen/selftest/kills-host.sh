# Takes the whole host down: the machine is started again for the scenarios after it.
# limit: 30
# expect: failed: .*the host went down

sync
echo b >/proc/sysrq-trigger
sleep 30
