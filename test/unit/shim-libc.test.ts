// The shim asks for no newer C library than the Bun that carries it: Debian 11, with glibc 2.31, runs this Bun.
import { expect, test } from "bun:test";
import { spawnSync } from "node:child_process";
import { join } from "node:path";

const SHIM = join(import.meta.dir, "../../build/shim/libxentool.so");

/** The newest version of glibc that a program or library needs, e.g. [2, 17]. */
function newestLibc(path: string): [number, number] {
  const { stdout } = spawnSync("objdump", ["-p", path], { encoding: "utf8" });
  const versions = [...stdout.matchAll(/ GLIBC_(\d+)\.(\d+)/g)].map(([, major, minor]): [number, number] => [
    Number(major),
    Number(minor),
  ]);
  expect(versions).not.toEqual([]);
  return versions.reduce((a, b) => ((a[0] - b[0] || a[1] - b[1]) > 0 ? a : b));
}

test("the shim loads where Bun starts", () => {
  const [major, minor] = newestLibc(process.execPath);
  const [ourMajor, ourMinor] = newestLibc(SHIM);
  expect(ourMajor).toBe(major);
  expect(ourMinor).toBeLessThanOrEqual(minor);
});
