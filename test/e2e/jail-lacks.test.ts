// The jail where the host lacks parts of it: old kernels, containers, somebody who is not root. The disk is served, and
// what is missing is said once; `strict` rather has no disk.
import { afterEach, beforeEach, expect, test } from "bun:test";
import { join } from "node:path";
import { testProgram } from "../sim/xsring-harness.ts";
import { run, type Finished } from "../support/process.ts";
import { DiskHost } from "./disk-host.ts";
import { executable } from "./executable.ts";

const SECCOMP = process.arch === "arm64" ? 277 : 317;
const LANDLOCK = [444, 445, 446];
const withoutCalls = testProgram("without_calls");

let disks: DiskHost;

beforeEach(async () => {
  disks = await DiskHost.start();
});

afterEach(() => disks.close());

/** Serves a disk to a guest that uses it, as a child of `how`. */
function serve(how: readonly string[], ...options: string[]): Promise<Finished> {
  const guest = `XENTOOL_DOMID=1 '${executable}' blkfront bench --vdev xvdb --runtime 0.1 --json >&2`;
  const disk = [
    "blkback",
    "serve",
    join(disks.dir, "a.img"),
    "--domid",
    "1",
    "--vdev",
    "xvdb",
    "--run",
    guest,
  ];
  const env = { ...process.env, ...disks.env };
  return run([...how, executable, ...disk, ...options], { env });
}

const lacking = (...calls: readonly number[]): string[] => [withoutCalls, ...calls.map(String), "--"];

test.each([
  ["Landlock", LANDLOCK, "Landlock"],
  ["seccomp and Landlock", [SECCOMP, ...LANDLOCK], "Landlock, seccomp"],
])("no %s", async (_, calls, parts) => {
  const served = await serve(lacking(...calls));
  expect(served.status).toBe(0);
  expect(served.stderr.split(`the jail does without what this host lacks: ${parts}\n`)).toHaveLength(2);
  expect(served.stderr).toContain('"iops"');
  const strict = await serve(lacking(...calls), "--jail", "strict");
  expect(strict.status).toBe(3);
  expect(strict.stderr).toContain(`--jail strict insists on: ${parts}\n`);
});

test.each([
  ["no privileges", ["unshare", "--user"]],
  ["privileges, and not that to make namespaces, as under systemd", ["setpriv", "--bounding-set=-sys_admin"]],
])("%s: nothing is missing, because no system call makes a socket", async (_, how) => {
  const served = await serve(how, "--jail", "strict");
  expect([served.status, served.stderr.includes("jail")]).toEqual([0, false]);
});

test("an image that another program opens: strict is refused", async () => {
  const served = await serve([], "--format", "qcow2", "--jail", "strict");
  expect([served.status, served.stderr]).toEqual([2, expect.stringContaining("without --jail strict")]);
});

test("doctor shows what there is", async () => {
  const doctor = async (...how: readonly string[]): Promise<string> =>
    (await run([...how, executable, "doctor"], { env: process.env })).stdout;
  expect(await doctor()).toMatch(/jail +complete/);
  expect(await doctor(...lacking(...LANDLOCK))).toMatch(/jail +without Landlock/);
});
