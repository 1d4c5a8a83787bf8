// The executable for the other architecture, cross-built by the command that users type and run by QEMU's user mode.
import { expect, test } from "bun:test";
import { truncateSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { removeDirectory, temporaryDirectory } from "../support/temporary.ts";
import { run } from "../support/process.ts";

const ROOT = join(import.meta.dir, "../..");
const OTHER = process.arch === "arm64" ? { name: "x64", gnu: "x86_64" } : { name: "arm64", gnu: "aarch64" };
/** Runs a program of the other architecture, with the libraries of its cross compiler. */
const EMULATOR = [`qemu-${OTHER.gnu}-static`, "-L", `/usr/${OTHER.gnu}-linux-gnu`];
const FOREIGN = [...EMULATOR, join(ROOT, `dist/xentool-${OTHER.name}`)];
const TIMEOUT_MS = 300_000;

async function outputOf(command: readonly string[], status = 0): Promise<string> {
  const ran = await run(command, { cwd: ROOT });
  expect({ command: command.join(" "), ...ran }).toMatchObject({ status });
  return ran.stdout;
}

test(
  "is built, has the same layouts, and serves a disk on a simulated host",
  async () => {
    const said = await outputOf(["node", "scripts/run.mjs", "build", "--target", OTHER.name]);
    expect(said).toContain(`dist/xentool-${OTHER.name}`);

    const native = await outputOf(["build/shim/layout_probe"]);
    const foreign = await outputOf([...EMULATOR, `build/${OTHER.name}/build/shim/layout_probe`]);
    expect(foreign).toBe(native);

    const directory = temporaryDirectory();
    try {
      const image = join(directory, "disk.img");
      writeFileSync(image, "");
      truncateSync(image, 1 << 20);
      const script = `
        set -e
        ${FOREIGN.join(" ")} blkback serve ${image} --domid 1 --vdev xvdb & server=$!
        XENTOOL_DOMID=1 ${FOREIGN.join(" ")} blkfront bench --vdev xvdb --rw randwrite --runtime 1 --json
        kill $server
        wait $server || test $? = 143`;
      const report = await outputOf([...FOREIGN, "sim", "run", "--domains", "2", "--", "sh", "-c", script]);
      expect(JSON.parse(report)).toMatchObject({ errors: 0 });
    } finally {
      removeDirectory(directory);
    }
  },
  TIMEOUT_MS,
);

test("an architecture that is not known is refused", async () => {
  const { status, stderr } = await run(["node", "scripts/run.mjs", "build", "--target", "mips"], {
    cwd: ROOT,
  });
  expect(stderr).toContain("--target mips is none of x64, arm64");
  expect(status).toBe(1);
});
