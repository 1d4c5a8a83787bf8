// npm run test:ceph: disks in a Ceph cluster, which runs on this machine's loopback for the time of the tests. It takes
// 1 GiB of memory and a minute or two, so it is no part of npm test.
import { buildAll } from "./build-all.ts";
import { bun, main, run } from "./lib.ts";

await main(() => {
  buildAll();
  run(bun, ["test", "./test/ceph/rbd.ceph.ts", ...process.argv.slice(2)]);
});
