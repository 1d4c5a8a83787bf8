// node scripts/run.mjs NAME [ARGUMENT…]: what every npm script starts with. Installs what scripts/NAME.ts
// needs (npm packages as locked, Debian packages when we are root), then runs it with tsx. Plain node without
// dependencies, because nothing is installed yet on a fresh machine; does nothing twice.
import { spawn, spawnSync } from "node:child_process";
import { createHash } from "node:crypto";
import { accessSync, constants, existsSync, readdirSync, readFileSync, writeFileSync } from "node:fs";
import { delimiter, join, resolve } from "node:path";

const EXIT_USAGE = 2;
const EXIT_ENVIRONMENT = 3;
const root = resolve(import.meta.dirname, "..");

/** Xen's tools carry its version in their package's name: the one of each Debian release. */
const XEN_OF_DEBIAN = { 12: "xen-4.17", 13: "xen-4.20" };
const xen = xenVersion();

/** Debian packages, each with what is there (a command or a file) once it is installed. */
const COMPILER = { cmake: "cmake", make: "make", gcc: "cc", "libc6-dev": "/usr/include/stdlib.h" };
const CROSS_COMPILER = {
  arm64: {
    "gcc-aarch64-linux-gnu": "aarch64-linux-gnu-gcc",
    "libc6-dev-arm64-cross": "/usr/aarch64-linux-gnu/include/stdlib.h",
  },
  x64: {
    "gcc-x86-64-linux-gnu": "x86_64-linux-gnu-gcc",
    "libc6-dev-amd64-cross": "/usr/x86_64-linux-gnu/include/stdlib.h",
  },
};
/** The architecture that this machine is not. */
const OTHER = process.arch === "arm64" ? "x64" : "arm64";
/** Programs of others that tests use as judges, and the shells that tests complete in. */
const JUDGES = {
  "libnbd-bin": "nbdcopy",
  nbdkit: "nbdkit",
  openssl: "openssl",
  "nbd-server": "nbd-server",
  "qemu-system-common": "qemu-storage-daemon",
  fio: "fio",
  "qemu-utils": "qemu-img",
  "qemu-system-xen": "/usr/libexec/xen-qemu-system-i386",
  e2fsprogs: "e2fsck",
  "xenstore-utils": "xenstore-ls",
  "groff-base": "groff",
  strace: "strace",
  zsh: "zsh",
  fish: "fish",
  systemd: "systemd-analyze",
  "libxen-dev": "/usr/include/libxenvchan.h",
  [xen.replace("xen", "xen-utils")]: `/usr/lib/${xen}/bin/test-xenstore`,
};
const NEEDS = {
  abi: COMPILER,
  build: COMPILER,
  conformance: COMPILER,
  bench: {
    ...COMPILER,
    fio: JUDGES.fio,
    "libnbd-bin": "nbdcopy",
    nbdkit: "nbdkit",
    "qemu-system-common": JUDGES["qemu-system-common"],
    "qemu-system-xen": JUDGES["qemu-system-xen"],
    "qemu-utils": JUDGES["qemu-utils"],
    "libxen-dev": JUDGES["libxen-dev"],
  },
  deb: COMPILER,
  demo: { ...COMPILER, "libnbd-bin": "nbdcopy", e2fsprogs: "e2fsck" },
  fuzz: COMPILER,
  man: COMPILER,
  release: { ...COMPILER, ...CROSS_COMPILER[OTHER] },
  soak: COMPILER,
  test: {
    ...COMPILER,
    ...JUDGES,
    ...CROSS_COMPILER[OTHER],
    "qemu-user-static": OTHER === "arm64" ? "qemu-aarch64-static" : "qemu-x86_64-static",
  },
  "test-ceph": {
    ...COMPILER,
    "qemu-system-common": "qemu-storage-daemon",
    // Has QEMU's driver of RBD.
    "qemu-block-extra": "/usr/share/doc/qemu-block-extra",
    "ceph-mon": "ceph-mon",
    "ceph-mgr": "ceph-mgr",
    "ceph-osd": "ceph-osd",
    "ceph-common": "rbd",
    fio: JUDGES.fio,
  },
  "test-deb": { ...COMPILER, lintian: "lintian", mmdebstrap: "mmdebstrap" },
  "test-xen": {
    ...COMPILER,
    "qemu-system-x86": "qemu-system-x86_64",
    debootstrap: "debootstrap",
    e2fsprogs: "debugfs",
    cpio: "cpio",
    "busybox-static": "/usr/share/doc/busybox-static",
    "xz-utils": "xz",
    zstd: "zstd",
    "libxen-dev": "/usr/include/libxenvchan.h",
  },
};
/** What they need besides when their arguments name the architecture that this machine is not. */
const NEEDS_TO_CROSS = {
  build: CROSS_COMPILER[OTHER],
  deb: CROSS_COMPILER[OTHER],
  "test-xen": { ...CROSS_COMPILER[OTHER], "qemu-system-arm": "qemu-system-aarch64" },
};

function xenVersion() {
  const release = existsSync("/etc/os-release") ? readFileSync("/etc/os-release", "utf8") : "";
  const debian = /^ID=debian$/m.test(release) && /^VERSION_ID="?(\d+)/m.exec(release)?.[1];
  const installed = readdirSync("/usr/lib").find((name) => /^xen-\d/.test(name));
  return XEN_OF_DEBIAN[debian] ?? installed ?? XEN_OF_DEBIAN[13];
}

function fail(status, message) {
  console.error(`xentool: ${message}`);
  process.exit(status);
}

function run(command, args, env = process.env) {
  // What set-up says goes to stderr: stdout is the script's.
  const done = spawnSync(command, args, { cwd: root, env, stdio: ["ignore", 2, 2] });
  if (done.status === 0) return;
  const why = done.error?.message ?? (done.signal === null ? `status ${done.status}` : done.signal);
  fail(EXIT_ENVIRONMENT, `${command} ${args.join(" ")} failed: ${why}`);
}

/** `npm ci`, unless node_modules is what the lock file says already. */
function installModules() {
  const lock = createHash("sha256")
    .update(readFileSync(join(root, "package-lock.json")))
    .digest("hex");
  const stamp = join(root, "node_modules", ".xentool-lock");
  if (existsSync(stamp) && readFileSync(stamp, "utf8") === lock) return;
  console.error("xentool: installing npm packages");
  run("npm", ["ci", "--no-audit", "--no-fund", "--loglevel=error"], environmentOfNpm());
  writeFileSync(stamp, lock);
}

/**
 * For an npm of our own: without what the one that runs us was told with --global, and with a word that keeps
 * `prepare` from setting up once more.
 */
function environmentOfNpm() {
  const kept = Object.entries(process.env).filter(
    ([name]) => !/^npm_config_(global|location|prefix)$/i.test(name),
  );
  return { ...Object.fromEntries(kept), XENTOOL_SETTING_UP: "1" };
}

function isPresent(sign) {
  if (sign.startsWith("/")) return existsSync(sign);
  const path = [...(process.env.PATH ?? "").split(delimiter), "/usr/sbin", "/sbin"];
  return path.some((directory) => {
    try {
      accessSync(join(directory, sign), constants.X_OK);
      return true;
    } catch {
      return false;
    }
  });
}

/** Installs what is missing of `packages`; says what to type where that takes another user. */
function installPackages(packages) {
  const missing = Object.keys(packages).filter((name) => !isPresent(packages[name]));
  if (missing.length === 0) return;
  const list = missing.join(" ");
  if (process.getuid?.() !== 0 || !isPresent("apt-get"))
    fail(EXIT_ENVIRONMENT, `missing packages; as root: apt-get install --no-install-recommends ${list}`);
  console.error(`xentool: installing Debian packages: ${list}`);
  const env = { ...process.env, DEBIAN_FRONTEND: "noninteractive" };
  run("apt-get", ["-qq", "update"], env);
  const quiet = ["-qq", "-o", "Dpkg::Use-Pty=0"];
  run("apt-get", [...quiet, "install", "--no-install-recommends", "-y", ...missing], env);
}

/** Runs the script in our place: its streams, its exit status, and its signals. */
function runScript(script, args) {
  const child = spawn(process.execPath, ["--import", "tsx", script, ...args], { stdio: "inherit" });
  for (const signal of ["SIGINT", "SIGTERM", "SIGHUP"]) process.on(signal, () => child.kill(signal));
  child.on("error", (error) => fail(EXIT_ENVIRONMENT, error.message));
  child.on("exit", (status, signal) => {
    if (signal === null) process.exit(status);
    process.removeAllListeners(signal);
    process.kill(process.pid, signal);
  });
}

if (process.env.XENTOOL_SETTING_UP !== undefined) process.exit(0);
const [name, ...args] = process.argv.slice(2);
const script = join(root, "scripts", `${name}.ts`);
if (name === undefined || !/^[a-z-]+$/.test(name) || !existsSync(script))
  fail(EXIT_USAGE, `usage: node scripts/run.mjs NAME, where scripts/NAME.ts exists`);
process.chdir(root);
installModules();
const crosses = args.some((arg) => [OTHER, `--target=${OTHER}`, `--on=${OTHER}`].includes(arg));
installPackages({ ...NEEDS[name], ...(crosses ? NEEDS_TO_CROSS[name] : {}) });
runScript(script, args);
