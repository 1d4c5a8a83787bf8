// Output that cannot be written, because a disk is full or nobody reads any more: on stdout it is an error of its
// own, on stderr it is nothing, because nobody can be told.
import { afterAll, beforeAll, describe, expect, test } from "bun:test";
import { writeFileSync } from "node:fs";
import { join } from "node:path";
import { SimHost } from "../../src/sim/host.ts";
import { runShell } from "./executable.ts";
import { removeDirectory, temporaryDirectory } from "../support/temporary.ts";

const IO = 5;
const TIMEOUT = 6;
const NO_SPACE = "cannot write to standard output: ENOSPC: no space left on device, write";

let host: SimHost;
let dir: string;
let env: Record<string, string>;

beforeAll(async () => {
  dir = temporaryDirectory();
  writeFileSync(join(dir, "disk.img"), new Uint8Array(2 ** 20));
  host = await SimHost.start();
  env = { XENTOOL_SIM: host.dir, image: join(dir, "disk.img") };
});

afterAll(async () => {
  expect(await host.settle()).toEqual([]);
  await host.stop();
  removeDirectory(dir);
});

describe("a full stdout: status 5 and one line", () => {
  test.each([
    "doctor",
    "blkback list",
    "sim status",
    "xsring inspect --domid 1",
    "--help",
    "vchan listen --help",
    "--version",
    "completion bash",
  ])("%s", async (command) => {
    const { status, stderr } = await runShell(`"$xentool" ${command} >/dev/full`, env);
    expect({ status, stderr }).toEqual({ status: IO, stderr: `xentool: ${NO_SPACE}\n` });
  });

  test("JSON with --json, as other errors", async () => {
    const { status, stderr } = await runShell('"$xentool" doctor --json >/dev/full', env);
    expect({ status, error: JSON.parse(stderr) as unknown }).toEqual({
      status: IO,
      error: { error: { kind: "io", message: NO_SPACE, context: {} } },
    });
  });

  test("a trace whose two files are full", async () => {
    const trace = '"$xentool" xsring trace --domid 1 --write /dev/full -o /dev/full --duration 20';
    const { status, stderr } = await runShell(trace, env);
    expect({ status, stderr }).toEqual({
      status: IO,
      stderr: "xentool: cannot write /dev/full: ENOSPC: no space left on device, write\n",
    });
  });

  test.each(["xsring inspect --domid 1 --watch", "blkback serve $image --domid 1 --vdev xvdb --json"])(
    "%s ends in order",
    async (command) => {
      const { status, stderr } = await runShell(`"$xentool" ${command} >/dev/full`, env);
      expect(status).toBe(IO);
      expect(stderr.match(/cannot write/g)).toHaveLength(1);
      const { stdout } = await runShell('"$xentool" blkback list --json', env);
      expect(JSON.parse(stdout)).toEqual([]);
    },
  );
});

describe.each([
  ["full", "2>/dev/full"],
  ["without a reader", "2>&4"],
])("a stderr %s (%s) changes no exit status", (_what, redirection) => {
  test.each([
    ["vchan listen 1 t --timeout 0.2", TIMEOUT],
    ["vchan listen 1 t --timeout 0.2 -vv", TIMEOUT],
    ["vchan listen 1 t --timeout 0.2 --json", TIMEOUT],
    ["frobnicate", 2],
    ["blkback serve $image --domid 1 --vdev xvdb -vv --run 'exit 7'", 7],
    ["xsring close --domid 1 --dry-run -vv", 0],
  ])("%s: %d", async (command, expected) => {
    const pipe = "exec 4> >(true); wait $!";
    const { status, stdout } = await runShell(`${pipe}; "$xentool" ${command} ${redirection}`, env);
    expect(status, stdout).toBe(expected);
  });
});

test("both full: the status still says that stdout was", async () => {
  expect((await runShell('"$xentool" doctor >/dev/full 2>&1', env)).status).toBe(IO);
});
