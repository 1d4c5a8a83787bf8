// The examples of docs/sim.md, as they stand there: a shell script followed by what it prints, and the C files that it
// compiles.
import { afterEach, beforeEach, expect, test } from "bun:test";
import { readFileSync, writeFileSync } from "node:fs";
import { dirname, join } from "node:path";
import { executable, root } from "../e2e/executable.ts";
import { run } from "../support/process.ts";
import { removeDirectory, temporaryDirectory } from "../support/temporary.ts";

const page = readFileSync(join(root, "docs/sim.md"), "utf8");
/** Each has its own heading: a script and what it prints, with C files before them where it needs some. */
const examples = page
  .split(/^### /m)
  .slice(1)
  .map((section) => ({
    name: /^.*/.exec(section)?.[0],
    files: [...section.matchAll(/^```c\n(\/\* (\S+\.c): [^]*?)```$/gm)].map(([, text = "", name = ""]) => ({
      name,
      text,
    })),
    script: /^```sh\n([^]*?)```$/m.exec(section)?.[1] ?? "",
    output: /^```text\n([^]*?)```$/m.exec(section)?.[1],
  }));

let dir: string;
beforeEach(() => {
  dir = temporaryDirectory();
});
afterEach(() => removeDirectory(dir));

test("there is one for each kind of program", () => {
  expect(examples.map(({ name }) => name)).toEqual(["QEMU", "libxenvchan", "A shell script"]);
});

test.each(examples)("$name", async ({ files, script, output }) => {
  for (const { name, text } of files) writeFileSync(join(dir, name), text);
  const env = { PATH: `${dirname(executable)}:${process.env["PATH"]}`, TMPDIR: dir };
  const ran = await run(["bash", "-ec", script], { cwd: dir, env });
  expect(ran).toMatchObject({ status: 0, stdout: output });
});
