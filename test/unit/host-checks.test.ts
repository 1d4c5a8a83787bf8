// `xentool doctor` on made-up hosts: directories that look like a Xen host's /dev, /proc and /sys.
import { afterEach, beforeEach, describe, expect, test } from "bun:test";
import { chmodSync, mkdirSync, rmSync, writeFileSync } from "node:fs";
import { dirname, join } from "node:path";
import { examineHost, isUsable, type Check } from "../../cmd/lib/host-checks.ts";
import { narrowingFiles } from "../../src/blkback/host/host-files.ts";
import { SimHost } from "../../src/sim/host.ts";
import { XenstoreServer } from "../../src/xenstore/server/server.ts";
import { removeDirectory, temporaryDirectory } from "../support/temporary.ts";

let root: string;

beforeEach(() => {
  root = temporaryDirectory();
});

afterEach(() => {
  removeDirectory(root);
});

function plant(files: Readonly<Record<string, string>>): void {
  for (const [path, text] of Object.entries(files)) {
    mkdirSync(dirname(join(root, path)), { recursive: true });
    writeFileSync(join(root, path), text);
  }
}

async function examine(env: Readonly<Record<string, string>> = {}): Promise<Map<string, Check>> {
  return new Map((await examineHost({ root, env })).map((check) => [check.name, check]));
}

const XEN = {
  "sys/hypervisor/type": "xen\n",
  "sys/hypervisor/version/major": "4\n",
  "sys/hypervisor/version/minor": "17\n",
  "sys/hypervisor/version/extra": ".3\n",
  "proc/xen/capabilities": "control_d\n",
};
const DEVICES = Object.fromEntries(
  ["evtchn", "gntdev", "gntalloc", "xenbus"].map((name) => [`dev/xen/${name}`, ""]),
);

test("the storage daemon is looked for in PATH; without it the packages are named", async () => {
  const PATH = "/sbin:/usr/bin";
  const missing = (await examine({ PATH })).get("qemu-storage-daemon");
  expect(missing).toMatchObject({ ok: false, required: false, found: "not in PATH" });
  expect(missing?.advice).toContain("apt install qemu-utils (Debian 12: qemu-system-common)");
  plant({ "usr/bin/qemu-storage-daemon": "" });
  expect((await examine({ PATH })).get("qemu-storage-daemon")).toMatchObject({ ok: true, required: false });
});

test("where the units reach some images alone, they are named", async () => {
  expect((await examine()).has("images")).toBe(false);
  const [file] = narrowingFiles(["/srv/images", "/dev"]);
  plant({ [file?.path ?? ""]: file?.text ?? "" });
  const images = (await examine()).get("images");
  expect(images).toMatchObject({ ok: true, found: expect.stringContaining("/srv/images, /dev alone") });
});

describe("no Xen", () => {
  test("says so once, and that each device is missing", async () => {
    const checks = await examine();
    expect(checks.get("hypervisor")).toMatchObject({ ok: false, found: "none" });
    expect(checks.get("hypervisor")?.advice).toContain("xentool sim run");
    expect(checks.get("/dev/xen/evtchn")).toMatchObject({ ok: false, found: "missing", required: true });
    expect(isUsable([...checks.values()], "xen")).toBe(false);
  });

  test("of another hypervisor: its name, made harmless", async () => {
    plant({ "sys/hypervisor/type": "k\u001b[31mvm" });
    expect((await examine()).get("hypervisor")?.found).toBe("k\\x1b[31mvm");
  });
});

describe("Xen", () => {
  let server: XenstoreServer;

  beforeEach(async () => {
    server = new XenstoreServer({ personality: "oxenstored" });
    await server.listen(join(root, "xenstored"), 0);
  });

  afterEach(() => server.close());

  const env = (): Record<string, string> => ({ XENSTORED_PATH: join(root, "xenstored") });

  test("with everything in place is usable", async () => {
    plant({ ...XEN, ...DEVICES });
    const checks = await examine(env());
    expect([...checks.values()].filter(({ area, ok }) => area === "xen" && !ok)).toEqual([]);
    expect(checks.get("hypervisor")?.found).toBe("Xen 4.17.3");
    expect(checks.get("role")?.found).toStartWith("dom0");
    expect(isUsable([...checks.values()], "xen")).toBe(true);
    while (server.statistics.connections > 0) await new Promise(setImmediate);
  });

  test("in a guest without gntalloc is usable, with what it costs", async () => {
    plant({ ...XEN, ...DEVICES, "proc/xen/capabilities": "" });
    rmSync(join(root, "dev/xen/gntalloc"));
    const checks = await examine(env());
    expect(checks.get("role")?.found).toStartWith("a guest");
    expect(checks.get("/dev/xen/gntalloc")?.advice).toBe(
      "modprobe xen-gntalloc; needed for blkfront and vchan servers",
    );
    expect(isUsable([...checks.values()], "xen")).toBe(true);
  });

  test("without evtchn is not", async () => {
    plant({ ...XEN, ...DEVICES });
    rmSync(join(root, "dev/xen/evtchn"));
    const checks = await examine(env());
    expect(checks.get("/dev/xen/evtchn")?.advice).toStartWith("modprobe xen-evtchn;");
    expect(isUsable([...checks.values()], "xen")).toBe(false);
  });

  test("with a device that does not open: its error, and to be root", async () => {
    plant({ ...XEN, ...DEVICES });
    rmSync(join(root, "dev/xen/gntdev"));
    mkdirSync(join(root, "dev/xen/gntdev"));
    const check = (await examine(env())).get("/dev/xen/gntdev");
    expect(check).toMatchObject({ ok: false, found: expect.stringContaining("EISDIR") as string });
    expect(check?.advice).toStartWith("run as root;");
  });

  test("whose xenstored does not answer is not", async () => {
    plant({ ...XEN, ...DEVICES });
    server.close();
    const checks = await examine(env());
    expect(checks.get("xenstore")).toMatchObject({ ok: false, required: true });
    expect(isUsable([...checks.values()], "xen")).toBe(false);
  });

  test("without xenfs: to mount it", async () => {
    plant({ ...XEN, ...DEVICES });
    rmSync(join(root, "proc"), { recursive: true });
    expect((await examine(env())).get("role")?.advice).toBe("mount -t xenfs xenfs /proc/xen");
  });
});

describe("the simulation", () => {
  test("wants shared memory", async () => {
    expect((await examine()).get("/dev/shm")).toMatchObject({ ok: false, required: true });
    mkdirSync(join(root, "dev/shm"), { recursive: true });
    chmodSync(join(root, "dev/shm"), 0o700);
    const checks = await examine();
    expect(checks.get("/dev/shm")?.ok).toBe(true);
    expect(isUsable([...checks.values()], "sim")).toBe(true);
  });

  test("may run already", async () => {
    const host = await SimHost.start();
    try {
      const check = (await examine({ XENTOOL_SIM: host.dir })).get("XENTOOL_SIM");
      expect(check?.found).toBe(`a simulated host runs in ${host.dir}`);
    } finally {
      await host.stop();
    }
    expect((await examine({ XENTOOL_SIM: host.dir })).get("XENTOOL_SIM")).toMatchObject({ ok: false });
  });
});

test("the xenstored of a simulated host is not taken for that of a real Xen", async () => {
  const host = await SimHost.start();
  try {
    const env = { XENTOOL_SIM: host.dir, XENSTORED_PATH: join(host.dir, "dom0/xenstored") };
    expect((await examine(env)).get("xenstore")).toMatchObject({ ok: false, found: "not looked for" });
    const other = { ...env, XENTOOL_SIM: join(host.dir, "other") };
    expect((await examine(other)).get("xenstore")).toMatchObject({ ok: true });
  } finally {
    await host.stop();
  }
});

test.each([
  ["unlimited", true, "unlimited"],
  ["67108864", true, "64 MiB"],
  ["8388608", false, "8 MiB"],
])("locked memory of %s", async (limit, ok, found) => {
  plant({
    "proc/self/limits": `Max processes 10 10 processes\nMax locked memory     ${limit}   ${limit} bytes\n`,
  });
  expect((await examine()).get("memlock")).toMatchObject({ ok, found, required: false, tuning: true });
});
