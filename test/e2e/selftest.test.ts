// `xentool selftest`: passes on a sound xentool, leaves nothing behind, and fails on builds with a seeded fault.
import { afterAll, beforeAll, expect, test } from "bun:test";
import { cpSync, readdirSync, readFileSync, symlinkSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { SimHost } from "../../src/sim/host.ts";
import { Xenstore } from "../../src/xenstore/client.ts";
import { run, type Finished } from "../support/process.ts";
import { removeDirectory, temporaryDirectory } from "../support/temporary.ts";
import { executable, root, runXentool } from "./executable.ts";

const CHECKS = ["block", "vchan", "xenstore"] as const;

let directory: string;
beforeAll(() => {
  directory = temporaryDirectory();
});
afterAll(() => removeDirectory(directory));

test.each(CHECKS)("%s passes, and leaves no file, key, grant or port", async (check) => {
  const host = await SimHost.start();
  const platform = host.platform(0);
  const xenstore = await Xenstore.connect(platform);
  try {
    const before = await treeOf(xenstore, "/local/domain/0");
    const env = { XENTOOL_SIM: host.dir, TMPDIR: directory };
    const { status, stdout, stderr } = await runXentool(["selftest", check, "--json"], { env });
    expect({ status, stderr }).toEqual({ status: 0, stderr: "" });
    const { passed, ...rest } = JSON.parse(stdout) as { check: string; passed: string[] };
    expect(rest).toEqual({ check });
    expect(passed.length).toBeGreaterThan(1);
    expect(readdirSync(directory)).toEqual([]);
    expect(await treeOf(xenstore, "/local/domain/0")).toEqual(before);
  } finally {
    xenstore.close();
    platform.close();
    const left = await host.settle();
    await host.stop();
    expect(left).toEqual([]);
  }
});

/** The paths below `path`. Empty parents of backends and vchans stay, as they do after others. */
async function treeOf(xenstore: Xenstore, path: string): Promise<string[]> {
  const below = await Promise.all(
    (await xenstore.directory(path)).map((name) => treeOf(xenstore, `${path}/${name}`)),
  );
  return [path, ...below.flat()].filter((it) => !/\/(backend|data\/vchan)(\/[a-z0]+(\/0)?)?$/.test(it));
}

/** Runs a check from a copy of the sources in which `text` of `file` is replaced. */
async function runWithFault(
  [check, limit]: readonly [check: string, limit: string],
  file: string,
  text: string,
  fault: string,
): Promise<Finished> {
  const copy = join(directory, `fault-${check}-${file.replaceAll("/", "-")}`);
  for (const part of ["cmd", "src", "package.json"])
    cpSync(join(root, part), join(copy, part), { recursive: true });
  for (const part of ["node_modules", "build"]) symlinkSync(join(root, part), join(copy, part));
  const path = join(copy, file);
  const source = readFileSync(path, "utf8");
  expect(source).toContain(text);
  writeFileSync(path, source.replace(text, fault));
  const selftest = [process.execPath, join(copy, "cmd/xentool.ts"), "selftest", check, "--timeout", limit];
  return run([executable, "sim", "run", "--", ...selftest]);
}

test.each([
  [
    "a flush that lies",
    ["block", "100"],
    "src/block/targets/nbd/target.ts",
    "return NBD_CMD_FLUSH;",
    "return NBD_CMD_WRITE;",
    /a flush was answered, but block \d+, written before it, was not safe/,
  ],
  [
    "a copy to the wrong grant",
    ["block", "100"],
    "src/native/grant-copy.ts",
    "u32[words + DEST_REF] = ref;",
    "u32[words + DEST_REF] = ref ^ 1;",
    /what was read differs from what was written, from byte \d+ on/,
  ],
  [
    "dropped events",
    ["vchan", "8"],
    "src/platform/adapter.ts",
    "return shim.xt_evtchn_notify(this.handle, port);",
    "return performance.now() % 8 < 1 ? 0 : shim.xt_evtchn_notify(this.handle, port);",
    /FAILED {2}not done after 8 s/,
  ],
] as const)("%s is noticed", async (_name, check, file, text, fault, said) => {
  const { status, stdout, stderr } = await runWithFault(check, file, text, fault);
  expect({ stdout, stderr }).toMatchObject({ stdout: expect.stringMatching(said) as string });
  expect(status).toBe(1);
});
