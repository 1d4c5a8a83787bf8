// What `blkback install` writes, for a host and for a package's tree: scripts that sh accepts, units that systemd
// accepts, and nothing left after uninstall.
import { afterEach, beforeEach, describe, expect, test } from "bun:test";
import { chmodSync, mkdirSync, readdirSync, readFileSync, statSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { install, uninstall } from "../../src/blkback/host/install.ts";
import { run } from "../support/process.ts";
import { removeDirectory, temporaryDirectory } from "../support/temporary.ts";

const EXECUTABLE = "/usr/local/bin/xentool";
/**
 * What `systemd-analyze security` gives a unit that may do everything is 9.6, and 10 is the worst. That of `watch` lets
 * the processes of guests become users of their own.
 */
const EXPOSURE_MAX = { "xentool-blkback.service": 3.5, "xentool-serve@.service": 3.1 };
/** With images in directories and on block devices, and none in the network. */
const NARROWED_MAX = { "xentool-blkback.service": 1.9, "xentool-serve@.service": 1.6 };

const DOCUMENT = readFileSync(join(import.meta.dirname, "../../docs/xen-hosts.md"), "utf8");

let root: string;
beforeEach(() => {
  root = temporaryDirectory();
});
afterEach(() => removeDirectory(root));

/** An executable that does nothing, at `path` in the root. */
function put(path: string): void {
  mkdirSync(join(root, path, ".."), { recursive: true });
  writeFileSync(join(root, path), "#!/bin/sh\n");
  chmodSync(join(root, path), 0o755);
}

function filesIn(directory: string): string[] {
  return readdirSync(directory, { recursive: true, encoding: "utf8" })
    .filter((path) => statSync(join(directory, path)).isFile())
    .map((path) => `/${path}`)
    .toSorted();
}

test("for a host, below /etc, with the unit that starts this very executable", () => {
  put(EXECUTABLE);
  const options = { root, prefix: undefined, executable: EXECUTABLE };
  const { paths, notes } = install(options);
  expect(filesIn(root)).toEqual([...paths, EXECUTABLE].toSorted());
  expect(paths.filter((path) => !path.startsWith("/etc/"))).toEqual([]);
  expect(notes.join("\n")).toContain("next: on the host, systemctl enable --now xentool-blkback.service");
  const unit = readFileSync(join(root, "etc/systemd/system/xentool-blkback.service"), "utf8");
  expect(unit).toContain(`\nExecStart=${EXECUTABLE} -v blkback watch\n`);
  expect(uninstall(options).paths).toEqual(paths);
  expect(filesIn(root)).toEqual([EXECUTABLE]);
  expect(uninstall(options)).toEqual({ paths: [], notes: [] });
});

test("for a package, below its prefix, with the path that the executable will have", () => {
  const options = { root, prefix: "/usr", executable: EXECUTABLE };
  const { paths, notes } = install(options);
  expect(filesIn(root)).toEqual([
    "/etc/xen/scripts/block-xentool",
    "/usr/lib/systemd/system/xentool-blkback.service",
    "/usr/lib/systemd/system/xentool-serve@.service",
    "/usr/lib/udev/rules.d/60-xentool-blkback.rules",
    "/usr/lib/xentool/backend-added",
  ]);
  expect(notes[0]).toBe(`next: put the executable at ${root}/usr/bin/xentool`);
  const read = (name: string): string => readFileSync(join(root, "usr/lib", name), "utf8");
  expect(read("systemd/system/xentool-serve@.service")).toContain(
    "\nExecStart=/usr/bin/xentool -v blkback serve ${IMAGE} ",
  );
  expect(read("udev/rules.d/60-xentool-blkback.rules")).toContain('RUN+="/usr/lib/xentool/backend-added"');
  expect(uninstall(options).paths).toEqual(paths);
  expect(filesIn(root)).toEqual([]);
});

test("what cannot be meant is refused, and nothing is written", () => {
  const refusal = (options: Parameters<typeof install>[0], message: string): void => {
    expect(() => install(options)).toThrow(message);
    expect(() => uninstall(options)).toThrow(message);
  };
  refusal({ root: join(root, "none"), prefix: "/usr", executable: EXECUTABLE }, "is not a directory");
  const withoutIt = { root, prefix: undefined, executable: EXECUTABLE };
  expect(() => install(withoutIt)).toThrow(`no xentool at ${root}${EXECUTABLE}`);
  // It may have been removed first.
  expect(uninstall(withoutIt).paths).toEqual([]);
  for (const prefix of ["usr", "", "/a b", "/%h", "/a\nb", '/"'])
    refusal({ root, prefix, executable: EXECUTABLE }, "--prefix");
  expect(filesIn(root)).toEqual([]);
  writeFileSync(join(root, "file"), "");
  refusal({ root: join(root, "file"), prefix: "/usr", executable: EXECUTABLE }, "is not a directory");
});

const DROP_INS = [
  "/etc/systemd/system/xentool-blkback.service.d/images.conf",
  "/etc/systemd/system/xentool-serve@.service.d/images.conf",
];

test("--images narrows the units by drop-ins, which the next install takes away", () => {
  put(EXECUTABLE);
  const options = { root, prefix: undefined, executable: EXECUTABLE };
  const narrow = install({ ...options, images: ["/srv/images", "/dev", "/srv/images/"] });
  expect(narrow.paths.filter((path) => path.endsWith(".conf"))).toEqual(DROP_INS);
  expect(filesIn(root)).toEqual([...narrow.paths, EXECUTABLE].toSorted());
  const text = readFileSync(join(root, DROP_INS[0] ?? ""), "utf8");
  expect(text).toContain("\nEnvironment=XENTOOL_IMAGES=/srv/images:/dev\n");
  expect(text.match(/^BindPaths=.*/gm)).toEqual(["BindPaths=-/srv/images"]);
  expect(install(options).notes.join("\n")).toContain(`removed ${DROP_INS[0]}: images may be anywhere again`);
  install({ ...options, images: ["network"] });
  expect(uninstall(options).paths).toEqual(narrow.paths);
  expect(filesIn(root)).toEqual([EXECUTABLE]);
});

test("a file that cannot be written leaves no part of itself", () => {
  put(EXECUTABLE);
  const inTheWay = "etc/systemd/system/xentool-serve@.service.d/images.conf";
  mkdirSync(join(root, inTheWay), { recursive: true });
  const options = { root, prefix: undefined, executable: EXECUTABLE, images: ["/srv/images"] };
  expect(() => install(options)).toThrow(`cannot write ${join(root, inTheWay)}`);
  expect(filesIn(root).filter((path) => path.includes("images.conf"))).toEqual([
    "/etc/systemd/system/xentool-blkback.service.d/images.conf",
  ]);
});

test("where the units are those of a package, --images writes the drop-ins alone", () => {
  const ofPackage = install({ root, prefix: "/usr", executable: EXECUTABLE }).paths.toSorted();
  const options = { root, prefix: undefined, executable: "/usr/bin/xentool" };
  expect(install({ ...options, images: ["/srv/images"] }).paths).toEqual(DROP_INS);
  expect(filesIn(root)).toEqual([...ofPackage, ...DROP_INS].toSorted());
  expect(install(options).paths).toEqual([]);
  expect(filesIn(root)).toEqual(ofPackage);
  install({ ...options, images: ["/srv/images"] });
  expect(uninstall(options).paths).toEqual(DROP_INS);
  expect(filesIn(root)).toEqual(ofPackage);
});

test.each([
  ["images", "is neither network nor an absolute path"],
  ["/a b", "without special characters"],
  ["/a:b", "without special characters"],
  ["/", "leave --images out"],
  ["/dev/vg", "cannot be had alone"],
])("--images %s is refused, and nothing is written", (place, message) => {
  put(EXECUTABLE);
  const options = { root, prefix: undefined, executable: EXECUTABLE, images: ["/srv/images", place] };
  expect(() => install(options)).toThrow(message);
  expect(() => install({ ...options, prefix: "/usr" })).toThrow("--images and --prefix exclude each other");
  expect(filesIn(root)).toEqual([EXECUTABLE]);
});

describe("scripts and units", () => {
  let paths: readonly string[];
  beforeEach(() => {
    // systemd looks for what the unit starts, so it is there as well as in the root.
    const executable = join(root, "bin/xentool");
    put("bin/xentool");
    put(executable);
    ({ paths } = install({ root, prefix: undefined, executable }));
  });

  test("sh accepts the scripts", async () => {
    const scripts = paths.filter((path) => (statSync(join(root, path)).mode & 0o111) !== 0);
    expect(scripts).toHaveLength(2);
    for (const path of scripts)
      expect(await run(["sh", "-n", join(root, path)])).toEqual({ status: 0, stdout: "", stderr: "" });
  });

  test.each([
    ["anywhere", [], EXPOSURE_MAX],
    ["in some places", ["/srv/images", "/dev"], NARROWED_MAX],
  ])("systemd accepts the units for images %s, and finds them confined", async (_, images, exposureMax) => {
    install({ root, prefix: undefined, executable: join(root, "bin/xentool"), images });
    for (const [name, most] of Object.entries(exposureMax)) {
      const unit = join(root, "etc/systemd/system", name);
      expect(await run(["systemd-analyze", "verify", "--man=no", unit])).toEqual({
        status: 0,
        stdout: "",
        stderr: "",
      });
      const confinement = ["security", "--offline=true", "--no-pager", `--threshold=${10 * most}`];
      const judged = await run(["systemd-analyze", ...confinement, unit]);
      expect([name, judged.status]).toEqual([name, 0]);
      const lines = judged.stdout.matchAll(/^✗ (?:\w+=~)?([^\s/]+)/gm);
      const open = [...lines].map(([, what = ""]) => what);
      expect(open.length).toBeGreaterThan(10);
      // The document says why.
      expect(open.filter((what) => !DOCUMENT.includes(`\`${what.replaceAll("|", "\\|")}\``))).toEqual([]);
    }
  });

  test("the units start where xenstored has no unit of its own, and hide no image", () => {
    const text = readFileSync(join(root, "etc/systemd/system/xentool-blkback.service"), "utf8");
    // Debian starts xenstored from /etc/init.d/xen, so only the order may name units. A start before xenstored runs
    // fails, and must not be the last.
    expect(text).not.toMatch(/^(Requires|BindsTo|Requisite)=/m);
    expect(text).toMatch(/^After=.*\bxen\.service\b/m);
    expect(text).toMatch(/^StartLimitIntervalSec=0$/m);
    // They would hide images in /home, for example, or make them read-only, for the daemon alone.
    expect(text).not.toMatch(/^(ProtectHome|Private(Tmp|Devices|Users|Network)|ReadOnly|Inaccessible)/m);
    expect(text).not.toMatch(/^ProtectSystem=strict/m);
    // A /proc of its own would have no /proc/xen.
    expect(text).not.toMatch(/^(ProtectProc|ProcSubset)=/m);
    // What the kernel's backend is kept away with must stay writable.
    expect(text).toMatch(/^ReadWritePaths=-\/sys\/bus\/xen-backend$/m);
  });
});
