// Disks that `watch` can neither serve nor refuse at once, seen by a toolstack with libxl's patience: it waits 10 s for
// state 2, and then runs the hotplug script, as installed, for the outcome and its reason.
import { afterEach, beforeEach, expect, test } from "bun:test";
import { writeFileSync } from "node:fs";
import { join } from "node:path";
import { backendDir, type DeviceAddress } from "../../src/blkback/address.ts";
import { HOTPLUG_SCRIPT, hostFiles, placesBelow, SCRIPTS } from "../../src/blkback/host/host-files.ts";
import { createDevice, destroyDevice } from "../../src/blkback/toolstack.ts";
import type { SimPlatform } from "../../src/platform/sim.ts";
import { programEnvironment } from "../../src/sim/programs.ts";
import { Xenstore } from "../../src/xenstore/client.ts";
import { DiskHost } from "../e2e/disk-host.ts";
import { spawnXentool } from "../e2e/executable.ts";
import { judge, untilNone } from "../e2e/program-disks.ts";
import { childrenOf, readUntil, run, type Child } from "../support/process.ts";
import { HandmadeGuest } from "./blk-guest.ts";
import { diskAddress } from "./disk-world.ts";

/** LIBXL_INIT_TIMEOUT. */
const LIBXL_PATIENCE_MS = 10_000;

let world: DiskHost;
let dom0: SimPlatform;
let xenstore: Xenstore;
let watch: Child;

beforeEach(async () => {
  world = await DiskHost.start(undefined, { domains: 3 });
  dom0 = world.host.platform(0);
  xenstore = await Xenstore.connect(dom0);
  const args = ["-v", "blkback", "watch"];
  watch = spawnXentool(args, { env: { ...world.env, XENTOOL_DOMID: "0" } });
  await readUntil(watch.stderr, "serving the disks");
});

afterEach(async () => {
  watch.kill("SIGTERM");
  await watch.exited;
  await untilNone(world.dir);
  xenstore.close();
  dom0.close();
  await world.close();
});

const at = (domid: number, devid = 51728): DeviceAddress => ({ ...diskAddress(domid, devid), kind: "vbd" });

/** The keys of a disk line with `script=`. */
async function create(address: DeviceAddress, target: string): Promise<void> {
  await createDevice(xenstore, { address, readOnly: false, deviceType: "disk", params: target });
  await xenstore.rm(`${backendDir(address)}/hotplug-status`);
  await xenstore.write(`${backendDir(address)}/script`, `${SCRIPTS}/${HOTPLUG_SCRIPT}`);
}

function untilState2(address: DeviceAddress): Promise<unknown> {
  const isOffered = (state: string | null): boolean => state === "2";
  return xenstore.waitFor(`${backendDir(address)}/state`, isOffered, { timeoutMs: LIBXL_PATIENCE_MS });
}

/** Returns the script's status, and what libxl then prints. */
async function runScript(address: DeviceAddress): Promise<{ status: number; reason: string | null }> {
  const installed = hostFiles(placesBelow("/usr")).find(({ path }) => path.endsWith(HOTPLUG_SCRIPT));
  const watching = join(world.dir, "watching");
  writeFileSync(watching, String(watch.pid));
  const script = join(world.dir, HOTPLUG_SCRIPT);
  writeFileSync(script, String(installed?.text).replaceAll("/run/xentool/watching", watching), {
    mode: 0o755,
  });
  const { backend, frontend, devid } = address;
  const env = {
    ...programEnvironment(world.host.dir, backend),
    PATH: String(process.env["PATH"]),
    XENBUS_PATH: `backend/vbd/${frontend}/${devid}`,
  };
  const { status } = await run([script, "add"], { env });
  return { status, reason: await xenstore.tryRead(`${backendDir(address)}/hotplug-error`) };
}

async function attach(address: DeviceAddress, target: string): ReturnType<typeof runScript> {
  await create(address, target);
  await untilState2(address);
  return runScript(address);
}

test("an image that another guest's disk holds: libxl gets the reason", async () => {
  const image = join(world.dir, "disk.qcow2");
  await judge("qemu-img", "create", "-q", "-f", "qcow2", image, "1M");
  expect((await attach(at(1), `qcow2:${image}`)).status).toBe(0);
  const { status, reason } = await attach(at(2), `qcow2:${image}`);
  expect({ status, reason }).toEqual({ status: 1, reason: expect.stringContaining(`${image} is in use`) });
  for (const domid of [1, 2]) await destroyDevice(xenstore, at(domid));
}, 60_000);

test("a server that says nothing: libxl gets the reason", async () => {
  const socket = join(world.dir, "silent.sock");
  using _ = Bun.listen({ unix: socket, socket: { data() {} } });
  const { status, reason } = await attach(at(1), `nbd+unix:///?socket=${socket}`);
  expect({ status, reason }).toEqual({ status: 1, reason: expect.stringContaining("no answer") });
  await destroyDevice(xenstore, at(1));
}, 60_000);

test("a guest's process that comes late: libxl waits, and the guest has the disk", async () => {
  const image = (name: string): string => {
    writeFileSync(join(world.dir, name), new Uint8Array(1 << 20).fill(7));
    return join(world.dir, name);
  };
  expect((await attach(at(1), image("first.img"))).status).toBe(0);
  const [server] = childrenOf(watch.pid);
  process.kill(Number(server), "SIGSTOP");
  const second = at(1, 51744);
  await create(second, image("second.img"));
  await untilState2(second);
  const guest = await HandmadeGuest.start(world.host, second);
  await guest.offerRing();
  const outcome = runScript(second);
  process.kill(Number(server), "SIGCONT");
  expect((await outcome).status).toBe(0);
  await guest.untilBackend(4);
  expect(await guest.read(8)).toEqual(new Uint8Array(4096).fill(7));
  guest.close();
  for (const address of [at(1), second]) await destroyDevice(xenstore, address);
}, 60_000);
