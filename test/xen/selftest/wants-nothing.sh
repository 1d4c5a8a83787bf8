# Asks for a file that the repository does not have: is not run, and that is an error.
# files: test/xen/selftest/no-such-file
# limit: 30
# expect: not run: test/xen/selftest/no-such-file is missing
