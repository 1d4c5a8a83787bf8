// What goes into a Debian package besides our files: scripts that sh accepts, and whose the code is.
import { expect, test } from "bun:test";
import { writeFileSync } from "node:fs";
import { join } from "node:path";
import packageJson from "../../package.json";
import { copyright } from "../../scripts/copyright.ts";
import { postinst, postrm, prerm } from "../../scripts/deb-scripts.ts";
import { run } from "../support/process.ts";
import { removeDirectory, temporaryDirectory } from "../support/temporary.ts";

test("dpkg's scripts are right for sh, and name the unit", async () => {
  const dir = temporaryDirectory();
  try {
    const unit = "xentool-blkback.service";
    for (const text of [postinst(unit), prerm(unit), postrm(unit, ["/etc/unit.d/images.conf"])]) {
      expect(text).toContain(" xentool-blkback.service ");
      writeFileSync(join(dir, "script"), text);
      expect(await run(["sh", "-n", join(dir, "script")])).toEqual({ status: 0, stdout: "", stderr: "" });
    }
  } finally {
    removeDirectory(dir);
  }
});

test("the copyright names everything that is in the executable, each field on lines of its own", () => {
  const text = copyright();
  for (const name of [
    "*",
    "usr/bin/xentool",
    ...Object.keys(packageJson.dependencies).map((it) => `node_modules/${it}/*`),
  ])
    expect(text).toContain(`\nFiles: ${name}\n`);
  // yargs brings packages of its own.
  expect(text.match(/^Files: node_modules/gm)?.length).toBeGreaterThan(
    Object.keys(packageJson.dependencies).length,
  );
  const paragraphs = text.trim().split(/\n\n+/);
  for (const paragraph of paragraphs)
    for (const line of paragraph.split("\n")) expect(line).toMatch(/^([A-Z][A-Za-z-]*: \S| \S)/);
});
