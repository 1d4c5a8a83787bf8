// The Debian package: its tree, its control files, and dpkg-deb to pack them.
import { createHash } from "node:crypto";
import {
  chmodSync,
  mkdirSync,
  readdirSync,
  readFileSync,
  renameSync,
  rmSync,
  statSync,
  writeFileSync,
} from "node:fs";
import { dirname, join } from "node:path";
import { gzipSync } from "node:zlib";
import packageJson from "../package.json" with { type: "json" };
import { narrowingFiles, UNIT } from "../src/blkback/host/host-files.ts";
import { ARCHITECTURES, type TargetName } from "./build-target.ts";
import { completionScript } from "../cmd/lib/completion-scripts.ts";
import { copyright } from "./copyright.ts";
import { postinst, postrm, prerm } from "./deb-scripts.ts";
import { outputOf, root, run } from "./lib.ts";

const NAME = packageJson.name;
const DOCS = `usr/share/doc/${NAME}`;

const NARROWING = narrowingFiles([]).map(({ path }) => path);

/** What lintian would object to, each with why it is so. */
const OVERRIDES: readonly (readonly [tag: string, reason: string])[] = [
  [
    "embedded-library",
    "Bun's run time is one executable with its libraries in it; Debian has no package of it.",
  ],
  ["hardening-no-pie", "Bun's run time is linked by its makers, and at a fixed address."],
  ["hardening-no-relro", "The same."],
  ["bogus-mail-host", "The project has no address; set DEBFULLNAME and DEBEMAIL for yours."],
  ["bogus-mail-host-in-debian-changelog", "The same."],
];

/** The path, relative to the project, of the package for an architecture. */
export function debFile(
  directory: string,
  target: TargetName,
  version: string = packageJson.version,
): string {
  return join(directory, `${NAME}_${version}_${ARCHITECTURES[target].debian}.deb`);
}

/** Packs `executable`, which is for `target`, as `file`. dist/xentool, of this machine, writes what goes beside it. */
export function makeDeb(
  file: string,
  executable: string,
  target: TargetName,
  version: string = packageJson.version,
): void {
  const architecture = ARCHITECTURES[target].debian;
  const tree = join(root, "build/deb", architecture);
  rmSync(tree, { recursive: true, force: true });
  const put = (path: string, contents: string | Buffer, mode = 0o644): void => {
    mkdirSync(dirname(join(tree, path)), { recursive: true });
    writeFileSync(join(tree, path), contents);
    chmodSync(join(tree, path), mode);
  };
  put(`usr/bin/${NAME}`, readFileSync(join(root, executable)), 0o755);
  outputOf(join(root, "dist/xentool"), ["blkback", "install", "--root", tree, "--prefix", "/usr"]);
  const pages = makeManualPages();
  for (const name of readdirSync(pages))
    put(`usr/share/man/man1/${name}.gz`, gzipSync(readFileSync(join(pages, name)), { level: 9 }));
  for (const [path, text] of completionScripts()) put(`usr/share/${path}`, text);
  const date = releaseDate();
  put(`${DOCS}/copyright`, copyright());
  put(`${DOCS}/changelog.gz`, gzipSync(changelog(version, date), { level: 9 }));
  put(`${DOCS}/NEWS.gz`, gzipSync(readFileSync(join(root, "CHANGELOG.md")), { level: 9 }));
  for (const name of readdirSync(join(root, "docs")).filter((it) => !it.startsWith("architecture")))
    put(`${DOCS}/${name}`, readFileSync(join(root, "docs", name)));
  put(
    `usr/share/lintian/overrides/${NAME}`,
    OVERRIDES.map(([tag, why]) => `# ${why}\n${NAME}: ${tag}\n`).join(""),
  );
  const files = filesIn(tree);
  const conffiles = files.filter((path) => path.startsWith("etc/"));
  put("DEBIAN/conffiles", conffiles.map((path) => `/${path}\n`).join(""));
  put("DEBIAN/md5sums", files.map((path) => `${md5(join(tree, path))}  ${path}\n`).join(""));
  put("DEBIAN/control", control(version, architecture, installedKib(tree, files)));
  put("DEBIAN/postinst", postinst(UNIT), 0o755);
  put("DEBIAN/prerm", prerm(UNIT), 0o755);
  put("DEBIAN/postrm", postrm(UNIT, NARROWING), 0o755);
  mkdirSync(dirname(join(root, file)), { recursive: true });
  // gzip takes seconds where xz takes minutes, and lintian does not know zstd.
  const options = ["--root-owner-group", "-Zgzip"];
  const env = { SOURCE_DATE_EPOCH: String(Math.floor(date.getTime() / 1000)) };
  run("dpkg-deb", [...options, "--build", tree, `${file}.new`], { quiet: true, env });
  renameSync(join(root, `${file}.new`), join(root, file));
}

/** Makes the manual pages; returns the directory of section 1. */
export function makeManualPages(): string {
  run(process.execPath, ["--import", "tsx", "scripts/man.ts"], { quiet: true });
  return join(root, "dist/man/man1");
}

/** Completion for each shell, by the path below /usr/share where it looks. */
export function completionScripts(): (readonly [path: string, text: string])[] {
  return [
    [`bash-completion/completions/${NAME}`, completionScript("bash")],
    [`zsh/vendor-completions/_${NAME}`, completionScript("zsh")],
    [`fish/vendor_completions.d/${NAME}.fish`, completionScript("fish")],
  ];
}

/** When the sources were last changed, so that the same sources make the same package. */
export function releaseDate(): Date {
  const given = process.env["SOURCE_DATE_EPOCH"];
  if (given !== undefined) return new Date(Number(given) * 1000);
  return new Date(outputOf("git", ["log", "-1", "--format=%cI"]).trim());
}

function maintainer(): string {
  const { DEBFULLNAME = "The xentool authors", DEBEMAIL = "xentool@localhost" } = process.env;
  return `${DEBFULLNAME} <${DEBEMAIL}>`;
}

function changelog(version: string, date: Date): string {
  const rfc = date.toUTCString().replace("GMT", "+0000");
  return `${NAME} (${version}) unstable; urgency=medium

  * Built by "npm run deb"; NEWS.gz says what is new.

 -- ${maintainer()}  ${rfc}
`;
}

function control(version: string, architecture: string, kib: number): string {
  return `Package: ${NAME}
Version: ${version}
Architecture: ${architecture}
Maintainer: ${maintainer()}
Installed-Size: ${kib}
Depends: libc6 (>= 2.17)
Recommends: xenstore-utils, xen-utils-common
Suggests: qemu-utils
Section: admin
Priority: optional
Description: Xen PV disks, vchan pipes and xenstore rings from user space
 One executable for a Xen host's shell and for CI. It serves disk images to
 guests, uses disks as a guest would, carries bytes between domains and
 inspects a guest's xenstore ring. All of it also runs without Xen, on an
 embedded platform with grant tables, event channels and a xenstore server.
 .
 With the package, disks of xl with script=block-xentool are served by a
 daemon, xentool-blkback.service.
`;
}

function filesIn(tree: string): string[] {
  return readdirSync(tree, { recursive: true, encoding: "utf8" })
    .filter((path) => statSync(join(tree, path)).isFile())
    .toSorted();
}

function installedKib(tree: string, files: readonly string[]): number {
  return files.reduce((sum, path) => sum + Math.ceil(statSync(join(tree, path)).size / 1024), 0);
}

function md5(path: string): string {
  return createHash("md5").update(readFileSync(path)).digest("hex");
}
