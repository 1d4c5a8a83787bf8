// Examines this host for `xentool doctor`: what real Xen needs, what the simulated platform needs, and what makes
// either fast. It only looks: devices are opened and closed, nothing is changed. Checks that need the C shim import
// it where they use it, because a host where the shim does not load must be reported too.
import { accessSync, closeSync, constants, existsSync, openSync, readFileSync } from "node:fs";
import { release } from "node:os";
import { join, relative } from "node:path";
import { narrowingFile, placesIn } from "../../src/blkback/host/host-files.ts";
import { RBD_PACKAGE, STORAGE_DAEMON, STORAGE_DAEMON_PACKAGE } from "../../src/block/program/commands.ts";
import { describeError } from "../../src/core/errors.ts";
import { escapeControls, escapeText } from "../../src/core/log.ts";
import { formatBytes } from "./output.ts";

export interface Check {
  readonly area: "host" | "xen" | "sim";
  readonly name: string;
  readonly ok: boolean;
  /** Without it, its area is unusable; the others cost a feature or speed. */
  readonly required: boolean;
  /** Everything works without it, only slower. */
  readonly tuning: boolean;
  readonly found: string;
  /** What to type, or what is lost without it. Absent when ok. */
  readonly advice?: string;
}

export interface Host {
  /** Where /dev, /proc and /sys are looked for; tests create their own. */
  readonly root: string;
  readonly env: Readonly<Record<string, string | undefined>>;
  /** How long xenstored may take to answer. */
  readonly timeoutMs?: number | undefined;
}

type Finding = Pick<Check, "ok" | "found" | "advice">;

const XENSTORE_TIMEOUT_MS = 2000;
const MEMLOCK_BYTES = 64 * 2 ** 20;
const SHM_DIR = "/dev/shm";
const SHIM = "C shim";

const DEVICES = [
  { node: "evtchn", module: "xen-evtchn", required: true, for: "event channels" },
  { node: "gntdev", module: "xen-gntdev", required: true, for: "blkback and vchan clients" },
  { node: "gntalloc", module: "xen-gntalloc", required: false, for: "blkfront and vchan servers" },
  { node: "xenbus", module: "xenfs", required: false, for: "xenstore outside the xenstore domain" },
] as const;

/** Every check, in the order people read them. */
export async function examineHost(host: Host): Promise<Check[]> {
  const optional = (area: Check["area"], name: string, finding: Finding): Check => ({
    area,
    name,
    required: false,
    tuning: false,
    ...finding,
  });
  const xen = hypervisor(host);
  return [
    optional("host", "kernel", { ok: true, found: `Linux ${release()}` }),
    { ...optional("host", SHIM, await checkShim()), required: true },
    optional("host", "io_uring", await checkIoUring()),
    optional("host", "jail", await checkJail()),
    { ...optional("host", "memlock", checkMemlock(host)), tuning: true },
    optional("host", STORAGE_DAEMON, checkStorageDaemon(host)),
    ...checkImagePlaces(host).map((finding) => optional("host", "images", finding)),
    { ...optional("xen", "hypervisor", xen), required: true },
    optional("xen", "role", checkRole(host, xen.ok)),
    ...DEVICES.map((device) => ({
      ...optional("xen", `/dev/xen/${device.node}`, checkDevice(host, device, xen.ok)),
      required: device.required,
    })),
    { ...optional("xen", "xenstore", await checkXenstore(host, xen.ok)), required: true },
    { ...optional("sim", SHM_DIR, checkSharedMemory(host)), required: true },
    ...(host.env["XENTOOL_SIM"]
      ? [optional("sim", "XENTOOL_SIM", await checkSimHost(host.env["XENTOOL_SIM"]))]
      : []),
  ];
}

/** Whether everything that `area`, or the host as a whole, requires is present. */
export function isUsable(checks: readonly Check[], area: "xen" | "sim"): boolean {
  const concerned = checks.filter((check) => check.area === area || check.area === "host");
  return concerned.every(({ ok, required }) => ok || !required);
}

function readText(host: Host, path: string): string | undefined {
  try {
    return readFileSync(join(host.root, path), "utf8").trim();
  } catch {
    return undefined;
  }
}

/** Turns an error into a finding. */
async function attempt(advice: string, finding: () => Promise<Finding>): Promise<Finding> {
  try {
    return await finding();
  } catch (error) {
    return { ok: false, found: escapeControls(describeError(error)), advice };
  }
}

function checkShim(): Promise<Finding> {
  // /proc is not listed: without it, the Bun inside us would have aborted by now.
  const needs = "needs memory, a few descriptors (ulimit -n)";
  return attempt(`${needs} and leave to run code from a memfd; nothing works without`, async () => {
    await import("../../src/native/shim.ts");
    return { ok: true, found: "loads" };
  });
}

function checkIoUring(): Promise<Finding> {
  return attempt(`see ${SHIM}`, async () => {
    const { Reactor } = await import("../../src/native/reactor.ts");
    const reactor = Reactor.open(8);
    reactor.close();
    if (reactor.kind === "uring") return { ok: true, found: "allowed" };
    const advice =
      "images are served by pread and pwrite, slower; `sysctl kernel.io_uring_disabled=0`, or allow it";
    return { ok: false, found: "not allowed", advice: `${advice} in the sandbox's seccomp profile` };
  });
}

function checkJail(): Promise<Finding> {
  return attempt(`see ${SHIM}`, async () => {
    const { missingForJail } = await import("../../src/native/jail.ts");
    const missing = missingForJail();
    if (missing.length === 0) return { ok: true, found: "complete" };
    const advice =
      "a server keeps what it need not have; a newer kernel, or another sandbox profile, has all of it";
    return { ok: false, found: `without ${missing.join(", ")}`, advice };
  });
}

function checkMemlock(host: Host): Finding {
  const limit = /^Max locked memory +(\S+)/m.exec(readText(host, "/proc/self/limits") ?? "")?.[1];
  if (limit === undefined) return { ok: false, found: "unknown", advice: "let us read /proc/self/limits" };
  if (limit === "unlimited") return { ok: true, found: limit };
  const ok = Number(limit) >= MEMLOCK_BYTES;
  const found = formatBytes(Number(limit));
  return ok
    ? { ok, found }
    : { ok, found, advice: "buffers stay unregistered, a little slower; ulimit -l unlimited" };
}

function checkStorageDaemon(host: Host): Finding {
  const dirs = (host.env["PATH"] ?? "").split(":").filter((dir) => dir !== "");
  const path = dirs.map((dir) => join(dir, STORAGE_DAEMON)).find((it) => existsSync(join(host.root, it)));
  if (path !== undefined)
    return {
      ok: true,
      found: `${escapeText(path)}, for serve --format qcow2 and others; for rbd, ${RBD_PACKAGE}, too`,
    };
  const advice = `apt install ${STORAGE_DAEMON_PACKAGE}; needed for serve --format qcow2 and others`;
  return { ok: false, found: "not in PATH", advice };
}

/** Nothing where the units reach images anywhere. */
function checkImagePlaces(host: Host): Finding[] {
  const text = readText(host, narrowingFile());
  const places = text === undefined ? undefined : placesIn(text);
  if (places === undefined) return [];
  const found = `the units reach ${places.map((place) => escapeText(place)).join(", ")} alone`;
  return [{ ok: true, found: `${found}; xentool blkback install changes that` }];
}

function hypervisor(host: Host): Finding {
  const type = readText(host, "/sys/hypervisor/type");
  if (type !== "xen") {
    const found = type === undefined ? "none" : escapeText(type);
    return { ok: false, found, advice: "boot this kernel under Xen, or try: xentool sim run -- sh" };
  }
  const part = (name: string): string => escapeText(readText(host, `/sys/hypervisor/version/${name}`) ?? "?");
  return { ok: true, found: `Xen ${part("major")}.${part("minor")}${part("extra")}` };
}

function checkRole(host: Host, onXen: boolean): Finding {
  if (!onXen) return { ok: false, found: "not a Xen domain", advice: "see hypervisor" };
  const capabilities = readText(host, "/proc/xen/capabilities");
  if (capabilities === undefined)
    return { ok: false, found: "no /proc/xen/capabilities", advice: "mount -t xenfs xenfs /proc/xen" };
  return {
    ok: true,
    found: capabilities.includes("control_d") ? "dom0, the control domain" : "a guest (domU)",
  };
}

function checkDevice(host: Host, device: (typeof DEVICES)[number], onXen: boolean): Finding {
  const path = join(host.root, "/dev/xen", device.node);
  const loss = `needed for ${device.for}`;
  if (!existsSync(path)) {
    const advice = onXen ? `modprobe ${device.module}; ${loss}` : `see hypervisor; ${loss}`;
    return { ok: false, found: "missing", advice };
  }
  try {
    closeSync(openSync(path, "r+"));
    return { ok: true, found: `opens, for ${device.for}` };
  } catch (error) {
    return { ok: false, found: escapeControls(describeError(error)), advice: `run as root; ${loss}` };
  }
}

/** A simulated host names its own xenstored in XENSTORED_PATH, for Xen's programs. It is not that of a real Xen. */
function withoutSimulatedStore(env: Host["env"]): Host["env"] {
  const { XENSTORED_PATH, ...rest } = env;
  const dir = env["XENTOOL_SIM"];
  const isSimulated = dir && XENSTORED_PATH && !relative(dir, XENSTORED_PATH).startsWith("..");
  return isSimulated ? rest : env;
}

async function checkXenstore(host: Host, onXen: boolean): Promise<Finding> {
  const env = withoutSimulatedStore(host.env);
  const named = env["XENSTORED_PATH"];
  if (!onXen && (named === undefined || named === ""))
    return { ok: false, found: "not looked for", advice: "see hypervisor" };
  const advice = "in dom0 `systemctl start xenstored`, or the init script of your distribution";
  return attempt(advice, async () => {
    const { xenstoreEndpoint } = await import("../../src/platform/xen.ts");
    const { Xenstore } = await import("../../src/xenstore/client.ts");
    const endpoint = xenstoreEndpoint(env);
    const xenstore = await Xenstore.connect(endpoint, {
      timeoutMs: host.timeoutMs ?? XENSTORE_TIMEOUT_MS,
    });
    xenstore.close();
    return { ok: true, found: `answers at ${endpoint.path}` };
  });
}

function checkSharedMemory(host: Host): Finding {
  try {
    accessSync(join(host.root, SHM_DIR), constants.W_OK | constants.X_OK);
    return { ok: true, found: "writable" };
  } catch (error) {
    const advice = `mount -t tmpfs -o mode=1777 tmpfs ${SHM_DIR}, or: xentool sim start --dir DIR`;
    return { ok: false, found: escapeControls(describeError(error)), advice };
  }
}

function checkSimHost(dir: string): Promise<Finding> {
  return attempt(`xentool sim start --dir ${escapeText(dir)}, or unset XENTOOL_SIM`, async () => {
    const { askHost } = await import("../../src/sim/control.ts");
    await askHost(dir, { op: "status" });
    return { ok: true, found: `a simulated host runs in ${escapeText(dir)}` };
  });
}
