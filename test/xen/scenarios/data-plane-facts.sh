# The facts of /dev/xen and io_uring that the data plane rests on hold, and what each call costs here.
# limit: 120

xen-costs | tee "$OUT/costs.txt"
assert_clean
