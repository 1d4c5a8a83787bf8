// npm run release [-- x64|arm64 …]: what a release offers, in dist/release: for each architecture an archive with the
// executable, its manual pages and documents, and a Debian package; and the sums of all of them.
import { createHash } from "node:crypto";
import { cpSync, copyFileSync, mkdirSync, readdirSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import packageJson from "../package.json" with { type: "json" };
import { buildAll } from "./build-all.ts";
import { NATIVE, prepareTarget, TARGETS, targetNamed, type TargetName } from "./build-target.ts";
import { copyright } from "./copyright.ts";
import { completionScripts, debFile, makeDeb, makeManualPages, releaseDate } from "./deb-package.ts";
import { main, root, run, sizeText } from "./lib.ts";

const RELEASE = "dist/release";

/** Everything lies in one directory that is named like the archive. */
function makeArchive(executable: string, target: TargetName): string {
  const name = `${packageJson.name}-${packageJson.version}-linux-${target}`;
  const parent = "build/release";
  const tree = join(root, parent, name);
  rmSync(tree, { recursive: true, force: true });
  mkdirSync(join(tree, "bin"), { recursive: true });
  copyFileSync(join(root, executable), join(tree, "bin", packageJson.name));
  cpSync(makeManualPages(), join(tree, "share/man/man1"), { recursive: true });
  for (const [path, text] of completionScripts()) {
    mkdirSync(join(tree, "share", path, ".."), { recursive: true });
    writeFileSync(join(tree, "share", path), text);
  }
  for (const document of ["README.md", "CHANGELOG.md", "LICENSE"])
    copyFileSync(join(root, document), join(tree, document));
  cpSync(join(root, "docs"), join(tree, "docs"), { recursive: true });
  writeFileSync(join(tree, "copyright"), copyright());
  const archive = join(RELEASE, `${name}.tar.gz`);
  const same = [
    "--sort=name",
    "--owner=0",
    "--group=0",
    "--numeric-owner",
    `--mtime=${releaseDate().toISOString()}`,
  ];
  run("tar", ["-czf", archive, ...same, "-C", parent, name]);
  return archive;
}

await main(() => {
  const names = process.argv.slice(2).map(targetNamed);
  rmSync(join(root, RELEASE), { recursive: true, force: true });
  mkdirSync(join(root, RELEASE), { recursive: true });
  // It writes what is the same for all architectures.
  buildAll(NATIVE);
  for (const target of names.length > 0 ? names : TARGETS) {
    const executable = buildAll(prepareTarget(target));
    makeArchive(executable, target);
    makeDeb(debFile(RELEASE, target), executable, target);
  }
  const files = readdirSync(join(root, RELEASE)).toSorted();
  const sums = files.map((name) => {
    const sum = createHash("sha256")
      .update(readFileSync(join(root, RELEASE, name)))
      .digest("hex");
    return `${sum}  ${name}\n`;
  });
  writeFileSync(join(root, RELEASE, "SHA256SUMS"), sums.join(""));
  for (const name of files) console.log(`${join(RELEASE, name)} (${sizeText(join(RELEASE, name))})`);
  console.log(`${join(RELEASE, "SHA256SUMS")}; check them there with: sha256sum -c SHA256SUMS`);
});
