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
