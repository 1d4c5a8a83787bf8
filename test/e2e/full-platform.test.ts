// A simulated host on a file system that is full: what needs pages of it fails with one line, and nobody dies of it.
import { expect, test } from "bun:test";
import { join } from "node:path";
import { executable } from "./executable.ts";
import { removeDirectory, temporaryDirectory } from "../support/temporary.ts";

const SCRIPT = `
  "$X" blkback serve "$IMAGE" --domid 1 --vdev xvdb --run '
    dd if=/dev/zero of=/dev/shm/fill bs=4k 2>/dev/null
    XENTOOL_DOMID=1 "$X" blkfront bench --vdev xvdb --runtime 1; echo "full: $?"
    rm /dev/shm/fill
    XENTOOL_DOMID=1 "$X" blkfront bench --vdev xvdb --runtime 0.1 >/dev/null; echo "with room: $?"' 2>&1
  echo "serve: $?"`;

test("a frontend without room for its pages ends with status 5, and the disk serves on", () => {
  const scratch = temporaryDirectory();
  const asRoot = process.getuid?.() === 0 ? [] : ["--user", "--map-root-user"];
  const mounted = `mount -t tmpfs -o size=14m none /dev/shm && truncate -s 4M "$IMAGE" && exec "$X" sim run -- sh -c '${SCRIPT.replaceAll("'", `'\\''`)}'`;
  try {
    const { stdout, exitCode } = Bun.spawnSync(["unshare", ...asRoot, "--mount", "sh", "-c", mounted], {
      env: { PATH: process.env["PATH"] ?? "", X: executable, IMAGE: join(scratch, "disk.img") },
    });
    const said = stdout.toString();
    expect(said).toMatch(/^xentool: cannot share \d+ pages with domain 0: ENOSPC: no space left on device$/m);
    expect(said.match(/^(full|with room): .*$/gm)).toEqual(["full: 5", "with room: 0"]);
    expect(said).toEndWith("serve: 0\n");
    expect(exitCode).toBe(0);
  } finally {
    removeDirectory(scratch);
  }
});

const NBD_SCRIPT = `
  "$X" blkback serve "nbd+unix:///?socket=$DIR/nbd.sock" --domid 1 --vdev xvdb 2>"$DIR/said" & server=$!
  until grep -q offering "$DIR/said"; do sleep 0.02; done
  XENTOOL_DOMID=1 "$X" blkfront bench --vdev xvdb --runtime 0.1 --timeout 60 >/dev/null & bench=$!
  until grep -q "cannot make the log of writes" "$DIR/said"; do sleep 0.02; done
  "$X" blkback serve "$DIR/other" --domid 1 --vdev xvdc --run '
    XENTOOL_DOMID=1 "$X" blkfront bench --vdev xvdc --runtime 0.1 --timeout 5 >/dev/null; echo "beside it: $?"'
  mount -o remount,size=256m /dev/shm
  wait $bench; echo "with room: $?"
  kill $server; wait $server; echo "serve: $?"`;

test("without room for its log of writes, an NBD disk waits and takes none from others; then it is served", () => {
  const scratch = temporaryDirectory();
  const asRoot = process.getuid?.() === 0 ? [] : ["--user", "--map-root-user"];
  const mounted = `mount -t tmpfs -o size=24m none /dev/shm && truncate -s 4M "$DIR/disk" "$DIR/other" && {
    qemu-nbd --format=raw --persistent --socket="$DIR/nbd.sock" "$DIR/disk" & nbd=$!
    until [ -S "$DIR/nbd.sock" ]; do sleep 0.02; done
    "$X" sim run -- sh -c '${NBD_SCRIPT.replaceAll("'", `'\\''`)}'; status=$?
    kill $nbd; wait $nbd; exit $status
  }`;
  try {
    const { stdout, exitCode } = Bun.spawnSync(["unshare", ...asRoot, "--mount", "sh", "-c", mounted], {
      env: { PATH: process.env["PATH"] ?? "", X: executable, DIR: scratch },
    });
    expect(stdout.toString()).toBe("beside it: 0\nwith room: 0\nserve: 143\n");
    expect(exitCode).toBe(0);
  } finally {
    removeDirectory(scratch);
  }
}, 90_000);
