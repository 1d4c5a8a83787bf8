# A command that fails ends the scenario and is named.
# limit: 60
# expect: failed: .*command-fails.sh:5: ls /nowhere

ls /nowhere
echo 'not reached' >"$OUT/reached"
