// scripts/run.mjs, which every npm script starts with, in a project made for it: nothing is installed here.
import { afterEach, beforeEach, describe, expect, test } from "bun:test";
import { copyFileSync, mkdirSync, symlinkSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import packageJson from "../../package.json";
import { root } from "./executable.ts";
import { readUntil } from "../support/process.ts";
import { removeDirectory, temporaryDirectory } from "../support/temporary.ts";

const node = Bun.which("node") as string;
/** npm builds what it installs, and that again for npx. */
const NPM_TIMEOUT_MS = 300_000;
let project: string;

beforeEach(() => {
  project = temporaryDirectory();
  mkdirSync(join(project, "scripts"));
  mkdirSync(join(project, "bin"));
  for (const name of ["scripts/run.mjs", "package.json", "package-lock.json"])
    copyFileSync(join(root, name), join(project, name));
  symlinkSync(join(root, "node_modules"), join(project, "node_modules"));
  symlinkSync(node, join(project, "bin/node"));
});

afterEach(() => {
  removeDirectory(project);
});

function start(args: readonly string[], cwd = project) {
  return Bun.spawn([node, join(project, "scripts/run.mjs"), ...args], {
    cwd,
    env: { PATH: join(project, "bin") },
    stdin: "ignore",
    stdout: "pipe",
    stderr: "pipe",
  });
}

async function run(args: readonly string[], cwd = project) {
  const child = start(args, cwd);
  const [stdout, stderr, status] = await Promise.all([
    child.stdout.text(),
    child.stderr.text(),
    child.exited,
  ]);
  return { status, stdout, stderr };
}

test("runs a script in the project with its arguments, and has its status", async () => {
  writeFileSync(
    join(project, "scripts/hello.ts"),
    `const words: string[] = process.argv.slice(2);
     console.log(process.cwd(), words.join("+"));
     process.exitCode = 9;`,
  );
  expect(await run(["hello", "a", "--b"], "/")).toEqual({
    status: 9,
    stdout: `${project} a+--b\n`,
    stderr: "",
  });
});

test.each([[[]], [["nothing"]], [["../evil"]], [["Hello"]]])("%j is a mistake", async (args) => {
  const { status, stderr } = await run(args);
  expect(status).toBe(2);
  expect(stderr).toStartWith("xentool: usage:");
});

test("names the Debian packages that are missing where it cannot install them", async () => {
  writeFileSync(join(project, "scripts/build.ts"), "console.log('built');");
  const { status, stdout, stderr } = await run(["build"]);
  expect({ status, stdout }).toEqual({ status: 3, stdout: "" });
  expect(stderr).toStartWith(
    "xentool: missing packages; as root: apt-get install --no-install-recommends cmake",
  );
  expect(stderr.trim().split("\n")).toHaveLength(1);
});

test("npm's `prepare` does nothing while we set up", async () => {
  const child = Bun.spawn([node, join(project, "scripts/run.mjs"), "nothing"], {
    env: { XENTOOL_SETTING_UP: "1" },
  });
  expect(await child.exited).toBe(0);
});

test(
  "npm i -g of a clone, and npx, give the command",
  async () => {
    const env = { PATH: String(process.env["PATH"]), HOME: project, npm_config_offline: "true" };
    const install = Bun.spawn(["npm", "install", "--global", `--prefix=${project}/global`, root], {
      env,
      stdio: ["ignore", "ignore", "pipe"],
    });
    const said = await install.stderr.text();
    expect({ said, status: await install.exited }).toMatchObject({ status: 0 });
    const version = `${packageJson.version}\n`;
    for (const command of [
      [`${project}/global/bin/xentool`],
      ["npx", "--yes", `--package=${root}`, "xentool"],
    ]) {
      const child = Bun.spawn([...command, "--version"], {
        cwd: project,
        env,
        stdio: ["ignore", "pipe", "inherit"],
      });
      expect({ command, stdout: await child.stdout.text() }).toEqual({ command, stdout: version });
    }
  },
  NPM_TIMEOUT_MS,
);

describe("signals", () => {
  test.each(["SIGINT", "SIGTERM"] as const)("%s reaches the script, whose end is ours", async (signal) => {
    writeFileSync(
      join(project, "scripts/wait.ts"),
      `process.on("${signal}", () => { console.log("told"); process.exit(5); });
       setInterval(() => {}, 1000);
       console.log("ready");`,
    );
    const child = start(["wait"]);
    await readUntil(child.stdout, "ready");
    child.kill(signal);
    expect(await readUntil(child.stdout, "told")).toContain("told");
    expect(await child.exited).toBe(5);
  });

  test("one that ends the script ends us the same way", async () => {
    writeFileSync(join(project, "scripts/die.ts"), `process.kill(process.pid, "SIGKILL");`);
    const child = start(["die"]);
    await child.exited;
    expect(child.signalCode).toBe("SIGKILL");
  });
});
