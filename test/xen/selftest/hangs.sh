# Ignores signals, has a child that left the process group, and a guest: all of it is ended.
# limit: 25
# expect: hung: no end within 25 s

guest g
setsid sleep 1000 &
trap '' TERM INT HUP
while :; do sleep 1; done
