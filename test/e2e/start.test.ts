// The executable started in hostile surroundings: it must not take code or settings from where it is started,
// nor need anything there.
import { afterEach, beforeEach, describe, expect, test } from "bun:test";
import { existsSync, mkdirSync, readdirSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { version } from "../../package.json";
import { runShell, runXentool } from "./executable.ts";
import { removeDirectory, temporaryDirectory } from "../support/temporary.ts";

let dir: string;

beforeEach(() => {
  dir = temporaryDirectory();
});

afterEach(() => {
  removeDirectory(dir);
});

/** A module that leaves a mark when it runs; gives the path of the mark. */
function plantModule(): { readonly module: string; readonly mark: string } {
  const module = join(dir, "planted.ts");
  const mark = join(dir, "planted-code-ran");
  writeFileSync(module, `require("node:fs").writeFileSync(${JSON.stringify(mark)}, "");\n`);
  return { module, mark };
}

test("tells its version", async () => {
  const began = performance.now();
  const outcome = await runXentool(["--version"]);
  console.log(`xentool --version: ${(performance.now() - began).toFixed(1)} ms`);
  expect(outcome).toEqual({ status: 0, stdout: `${version}\n`, stderr: "" });
});

describe("the current directory", () => {
  test("gives no code: bunfig.toml's preload does not run", async () => {
    const { module, mark } = plantModule();
    writeFileSync(join(dir, "bunfig.toml"), `preload = [${JSON.stringify(module)}]\n`);
    expect(await runXentool(["--version"], { cwd: dir })).toMatchObject({ status: 0, stderr: "" });
    expect(existsSync(mark)).toBe(false);
  });

  test("gives no settings: .env is not read", async () => {
    writeFileSync(join(dir, ".env"), "XENTOOL_SIM=/planted\nXENTOOL_DOMID=7\n");
    const { status, stdout } = await runXentool(["doctor", "--platform", "sim", "--json"], { cwd: dir });
    expect(status).toBe(0);
    expect(stdout).not.toContain("/planted");
  });

  test("gives no modules: packages and tsconfig.json there are not used", async () => {
    const { mark, module } = plantModule();
    mkdirSync(join(dir, "node_modules/yargs"), { recursive: true });
    writeFileSync(join(dir, "node_modules/yargs/index.js"), `require(${JSON.stringify(module)});\n`);
    writeFileSync(
      join(dir, "tsconfig.json"),
      '{ "compilerOptions": { "paths": { "*": ["./planted.ts"] } } }\n',
    );
    expect(await runXentool(["doctor", "--platform", "sim"], { cwd: dir })).toMatchObject({ status: 0 });
    expect(existsSync(mark)).toBe(false);
  });

  test("may be gone", async () => {
    const { status, stdout } = await runShell(
      `mkdir "$dir/gone" && cd "$dir/gone" && rmdir "$dir/gone" && "$xentool" --version`,
      { dir },
    );
    expect({ status, stdout }).toEqual({ status: 0, stdout: `${version}\n` });
  });
});

describe("the environment", () => {
  test("gives no code: BUN_OPTIONS' preload does not run", async () => {
    const { module, mark } = plantModule();
    await runXentool(["--version"], { env: { BUN_OPTIONS: `--preload ${module}` } });
    expect(existsSync(mark)).toBe(false);
  });

  const doctor = ["doctor", "--platform", "sim"];

  test("need not have a directory for temporary files", async () => {
    expect(await runXentool(doctor, { env: { TMPDIR: "/nonexistent" } })).toMatchObject({ status: 0 });
  });

  test("may forbid running files of the directory for temporary files: nothing is put there", async () => {
    const TMPDIR = join(dir, "temporary");
    mkdirSync(TMPDIR, { mode: 0o500 });
    expect(await runXentool(doctor, { env: { TMPDIR } })).toMatchObject({ status: 0 });
    expect(readdirSync(TMPDIR)).toEqual([]);
  });

  test("may forbid colours", async () => {
    const script = `script -qec '"$xentool" doctor --platform sim' /dev/null`;
    expect((await runShell(script, { TERM: "xterm-256color" })).stdout).toContain("\x1b[");
    expect((await runShell(script, { TERM: "xterm-256color", NO_COLOR: "1" })).stdout).not.toContain("\x1b[");
  });
});
