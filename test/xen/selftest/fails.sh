# Fails in a function called by a function, with a guest running.
# limit: 60
# expect: failed: .*waited in vain: a file that never comes

guest g
deep() { wait_for 2 'a file that never comes' test -e /nowhere; }
deep
