// A host that has no room left, or does not let us have what it has: one line that names what it was, and status 3
// or 5. Never a stack, and nothing half made is left.
import { afterAll, beforeAll, describe, expect, test } from "bun:test";
import { chmodSync, mkdirSync, truncateSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { SimHost } from "../../src/sim/host.ts";
import { executable } from "./executable.ts";
import { finished, type Finished } from "../support/process.ts";
import { removeDirectory, temporaryDirectory } from "../support/temporary.ts";

const ENVIRONMENT = 3;
const IO = 5;

let host: SimHost;
let dir: string;
let image: string;

beforeAll(async () => {
  host = await SimHost.start();
  mkdirSync(join(host.dir, "blkback"));
  dir = temporaryDirectory();
  image = join(dir, "disk");
  writeFileSync(image, "");
  truncateSync(image, 1 << 20);
});

afterAll(async () => {
  const leaks = await host.settle();
  await host.stop();
  removeDirectory(dir);
  expect(leaks).toEqual([]);
});

/** Runs a line of shell under `wrapper`, in which $xentool is the executable, on the simulated host. */
function runUnder(wrapper: readonly string[], script: string): Promise<Finished> {
  return finished(
    Bun.spawn([...wrapper, "sh", "-c", script], {
      env: { PATH: process.env["PATH"] ?? "", XENTOOL_SIM: host.dir, xentool: executable, image },
      stdin: "ignore",
      stdout: "pipe",
      stderr: "pipe",
    }),
  );
}

test("no room for statistics: serve says so and leaves none behind", async () => {
  const asRoot = process.getuid?.() === 0 ? [] : ["--user", "--map-root-user"];
  const script = `mount -t tmpfs -o size=4k none $XENTOOL_SIM/blkback
    "$xentool" blkback serve $image --domid 1 --vdev xvdb; status=$?
    ls $XENTOOL_SIM/blkback; exit $status`;
  const { status, stdout, stderr } = await runUnder(["unshare", ...asRoot, "--mount"], script);
  expect(stderr).toMatch(/^xentool: cannot make [^\n]*\.stats for statistics: ENOSPC[^\n]*\n$/);
  expect(status).toBe(ENVIRONMENT);
  expect(stdout).not.toContain(".stats");
});

describe("without the right to", () => {
  /** Without capabilities, also when the tests run as root: modes count. */
  async function expectRefusal(path: string, args: string, status: number): Promise<void> {
    const wrapper = ["setpriv", "--inh-caps=-all", "--bounding-set=-all"];
    const asUser = process.getuid?.() === 0 ? wrapper : [];
    chmodSync(path, 0);
    try {
      const outcome = await runUnder(asUser, `exec "$xentool" ${args}`);
      expect(outcome.stderr).toMatch(/^xentool: [^\n]*EACCES[^\n]*\n$/);
      expect(outcome).toMatchObject({ status, stdout: "" });
    } finally {
      chmodSync(path, 0o700);
    }
  }
  const disk = "--domid 1 --vdev xvdb";

  test.each([
    `blkback serve $image ${disk}`,
    "blkback watch",
    "blkback list",
    `blkback create ${disk} --params $image`,
    `blkfront bench --vdev xvdb`,
    "vchan listen 1 t",
    "vchan connect 1 t",
    "xsring inspect --domid 1",
    "xsring trace --domid 1",
  ])("the simulated host: %s", (args) => expectRefusal(host.dir, args, ENVIRONMENT));

  test("the directory of the state", () =>
    expectRefusal(join(host.dir, "blkback"), `blkback serve $image ${disk}`, ENVIRONMENT));

  test("the image", () => expectRefusal(image, `blkback serve $image ${disk}`, IO));
});
