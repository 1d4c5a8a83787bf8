# The platform conformance suite passes on /dev/xen/*: dom0 with itself.
# limit: 240
# files: node_modules/bun/bin/bun.exe node_modules/@logtape src test/conformance test/xen/programs/platform-conformance.ts build/shim/libxentool.so
bun=/payload/files/node_modules/bun/bin/bun.exe
$bun /payload/files/test/xen/programs/platform-conformance.ts | tee "$OUT/cases.txt"
assert_clean
