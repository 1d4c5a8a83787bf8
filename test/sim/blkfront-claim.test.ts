// A disk that somebody in this domain uses is not taken away from whoever that is, unless --take insists; and whoever
// loses a disk says so. What a killed frontend left is nobody's.
import { afterEach, beforeEach, describe, expect, test } from "bun:test";
import { mkdirSync, readFileSync, symlinkSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { backendDir, frontendDir } from "../../src/blkback/address.ts";
import { closeDevice, destroyDevice, forceCloseDevice } from "../../src/blkback/toolstack.ts";
import { FrontClaim } from "../../src/blkfront/claim.ts";
import { toDomid } from "../../src/core/types.ts";
import { ServedDisk, VDEV } from "./blkfront-harness.ts";
import { removeDirectory, temporaryDirectory } from "../support/temporary.ts";
import { start as startProgram, type Child } from "../support/process.ts";

const XENTOOL = new URL("../../cmd/xentool.ts", import.meta.url).pathname;
const VICTIM = new URL("blkfront-victim.ts", import.meta.url).pathname;

let disk: ServedDisk;
const children: Child[] = [];

function start(...command: string[]): Child {
  const child = startProgram([process.execPath, ...command], {
    env: { ...process.env, XENTOOL_SIM: disk.host.dir, XENTOOL_DOMID: "1", NO_COLOR: "1" },
  });
  children.push(child);
  return child;
}

/** The end of one of which a line of stdout has been read. */
async function endOf(child: Child): Promise<{ status: number; stderr: string }> {
  return { stderr: await child.stderr.text(), status: await child.exited };
}

const bench = (...more: string[]): Child =>
  start(XENTOOL, "blkfront", "bench", "--vdev", VDEV, "--runtime", "0.05", ...more);

/** An NBD server that has the disk. */
async function nbd(...more: string[]): Promise<Child> {
  const child = start(
    XENTOOL,
    "blkfront",
    "nbd",
    "--vdev",
    VDEV,
    "--json",
    "--socket",
    join(disk.dir, `${children.length}.sock`),
    ...more,
  );
  await untilSaid(child, "serving");
  return child;
}

async function untilSaid(child: Child, word: string): Promise<void> {
  const reader = child.stdout.getReader();
  const { value } = await reader.read();
  reader.releaseLock();
  if (!Buffer.from(value ?? []).includes(word)) throw new Error(await child.stderr.text());
}

const frontKey = (key: string): string => `${frontendDir(disk.address)}/${key}`;

/** A frontend that is not xentool's: its ring is in xenstore, its process is not known. */
async function foreignFrontend(): Promise<void> {
  const frontend = await disk.connect();
  const port = await disk.xenstore.tryRead(frontKey("event-channel"));
  await frontend.close();
  await disk.xenstore.write(frontKey("event-channel"), String(Number(port) + 1));
  await disk.xenstore.write(frontKey("ring-ref"), "1");
  await disk.xenstore.write(`${backendDir(disk.address)}/state`, "4");
  await disk.xenstore.write(frontKey("state"), "4");
}

beforeEach(async () => {
  disk = await ServedDisk.start({ offer: { maxQueues: 4 } });
});

afterEach(async () => {
  for (const child of children.splice(0)) {
    child.kill("SIGKILL");
    await child.exited;
  }
  await disk.close();
});

describe("a disk in use", () => {
  test.each(["bench", "nbd"])("%s leaves it to the process that has it", async (action) => {
    const frontend = await disk.connect();
    const socket = action === "nbd" ? ["--socket", join(disk.dir, "second.sock")] : [];
    const end = await endOf(start(XENTOOL, "blkfront", action, "--vdev", VDEV, ...socket));
    expect(end.status).toBe(3);
    expect(end.stderr).toContain("in use: another xentool blkfront has it; --take");
    expect(Buffer.compare(await frontend.read(0, 4096), disk.image().subarray(0, 4096))).toBe(0);
    expect(await disk.xenstore.tryRead(frontKey("state"))).toBe("4");
  });

  test.each(["3", "4"])("and to a frontend of others in state %s", async (state) => {
    await foreignFrontend();
    await disk.device.abandon();
    await disk.xenstore.write(frontKey("state"), state);
    const end = await endOf(bench());
    expect(end.status).toBe(3);
    expect(end.stderr).toContain("in use: a frontend of it is");
    expect(await disk.xenstore.tryRead(frontKey("state"))).toBe(state);
  });

  test("--take: the new one works, the old one ends with 5 and touches nothing", async () => {
    const loser = await nbd();
    const winner = await nbd("--take");
    const lost = await endOf(loser);
    expect(lost.status).toBe(5);
    expect(lost.stderr).toContain("was lost: somebody else has taken it");
    expect(await disk.xenstore.tryRead(frontKey("state"))).toBe("4");
    winner.kill("SIGTERM");
    expect((await endOf(winner)).status).toBe(143);
    expect((await endOf(bench())).status).toBe(0);
  });
});

describe("what a killed frontend left", () => {
  async function killOne(queues = 1): Promise<void> {
    const victim = start(VICTIM, disk.host.dir, VDEV, String(queues));
    await untilSaid(victim, "connected");
    victim.kill("SIGKILL");
    await victim.exited;
    expect(await disk.xenstore.tryRead(frontKey("state"))).toBe("4");
  }

  test("is nobody's, again and again", async () => {
    for (const queues of [1, 4, 2, 1]) await killOne(queues);
    expect((await endOf(bench("--queues", "2"))).status).toBe(0);
  });

  test.each([
    [1, "event-channel"],
    [2, "queue-0/event-channel"],
  ])("is somebody's when another has taken it over (%i queues)", async (queues, key) => {
    await killOne(queues);
    const port = await disk.xenstore.tryRead(frontKey(key));
    await disk.xenstore.write(frontKey(key), `${port}1`);
    expect((await endOf(bench())).status).toBe(3);
    expect((await endOf(bench("--take"))).status).toBe(0);
  });
});

describe("how a disk ends", () => {
  test("asked back by the toolstack: 0", async () => {
    const server = await nbd();
    await closeDevice(disk.xenstore, disk.address);
    expect(await endOf(server)).toEqual({ status: 0, stderr: "" });
  });

  test.each([
    ["removed", (): Promise<void> => destroyDevice(disk.xenstore, disk.address)],
    ["closed by force", (): Promise<void> => forceCloseDevice(disk.xenstore, disk.address)],
    [
      "closed by a backend that failed",
      (): Promise<void> => disk.xenstore.write(`${backendDir(disk.address)}/state`, "5"),
    ],
  ])("%s: 5, and nothing comes back", async (name, end) => {
    const server = await nbd();
    await end();
    const { status, stderr } = await endOf(server);
    expect([status, stderr]).toEqual([5, stderr]);
    expect(stderr).toContain("xvdb of domain 1 was lost: ");
    expect(await disk.xenstore.exists(frontendDir(disk.address))).toBe(name !== "removed");
  });
});

test("a disk with a driver of the kernel's, as sysfs has it, and how it is taken from it", () => {
  const sysfs = temporaryDirectory();
  const claim = new FrontClaim({ name: "xen", domid: toDomid(1) }, 51728, sysfs);
  expect(claim.kernelDriver).toBeUndefined();
  const [devices, drivers] = [join(sysfs, "bus/xen/devices/vbd-51728"), join(sysfs, "bus/xen/drivers/vbd")];
  for (const dir of [devices, drivers]) mkdirSync(dir, { recursive: true });
  claim.takeFromKernel();
  symlinkSync(drivers, join(devices, "driver"));
  expect(claim.kernelDriver).toBe("vbd");
  writeFileSync(join(drivers, "unbind"), "");
  claim.takeFromKernel();
  expect(readFileSync(join(drivers, "unbind"), "utf8")).toBe("vbd-51728");
  removeDirectory(sysfs);
});
