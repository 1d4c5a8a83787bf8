# Runs after the others went wrong: finds an orderly host.
# limit: 60
# expect: passed

assert_eq "$(xl list | wc -l)" 2 'lines of xl list'
guest g
on g true
