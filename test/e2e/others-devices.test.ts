// Devices of ours that others could take, and devices of others that we could be told to touch: QEMU, libxl and the
// kernel's blkback on the same host.
import { afterEach, beforeEach, describe, expect, test } from "bun:test";
import { writeFileSync } from "node:fs";
import { join } from "node:path";
import { SimHost } from "../../src/sim/host.ts";
import type { SimPlatform } from "../../src/platform/sim.ts";
import { Xenstore } from "../../src/xenstore/client.ts";
import { runXentool, spawnXentool } from "./executable.ts";
import { readUntil, type Finished } from "../support/process.ts";
import { removeDirectory, temporaryDirectory } from "../support/temporary.ts";

const FRONT = "/local/domain/1/device/vbd/51728";
const BACKENDS = "/local/domain/0/backend";
const BACK = `${BACKENDS}/qdisk/1/51728`;
const RECORD = "/libxl/1/device/vbd/51728";

let dir: string;
let host: SimHost;
let dom0: SimPlatform;
let xenstore: Xenstore;

function blkback(...args: string[]): [string[], { env: Record<string, string> }] {
  return [["blkback", ...args, "--domid", "1", "--vdev", "xvdb"], { env: { XENTOOL_SIM: host.dir } }];
}
const run = (...args: string[]): Promise<Finished> => runXentool(...blkback(...args));

beforeEach(async () => {
  dir = temporaryDirectory();
  writeFileSync(join(dir, "a.img"), new Uint8Array(65_536));
  host = await SimHost.start();
  dom0 = host.platform(0);
  xenstore = await Xenstore.connect(dom0);
});
afterEach(async () => {
  xenstore.close();
  dom0.close();
  const left = await host.settle();
  await host.stop();
  removeDirectory(dir);
  expect(left).toEqual([]);
});

/**
 * Looks on as QEMU does (hw/xen/xen-bus.c, xen_bus_type_enumerate): whenever something changes below backend/, it
 * takes what is online and Initialising, in two reads. The kernels of Linux and FreeBSD look at the state alone
 * (xenbus_probe_node, xenbusb_add_device).
 */
async function lookOnAsQemu(): Promise<{ taken: Set<string>; end: () => Promise<void> }> {
  const taken = new Set<string>();
  const unwatch = await xenstore.watch(BACKENDS, async () => {
    if ((await xenstore.tryRead(`${BACK}/state`)) === "1") taken.add(BACK);
  });
  return { taken, end: unwatch };
}

/** `serve`, until a guest may connect; ended by the function that it resolves to. */
async function serve(): Promise<() => Promise<number>> {
  const server = spawnXentool(...blkback("serve", join(dir, "a.img")));
  await readUntil(server.stderr, "offering");
  return () => {
    server.kill("SIGTERM");
    return server.exited;
  };
}

/** A device as a toolstack makes it for a backend of another kind. */
async function foreignDevice(kind: string): Promise<string> {
  const back = `${BACKENDS}/${kind}/1/51728`;
  await xenstore.write(`${back}/frontend`, FRONT);
  await xenstore.write(`${back}/state`, "4");
  await xenstore.write(`${FRONT}/backend`, back);
  await xenstore.write(`${FRONT}/state`, "4");
  return back;
}

describe("a device of ours", () => {
  test("is never one that QEMU, or a kernel's blkback, would take, whoever makes it", async () => {
    const qemu = await lookOnAsQemu();
    for (let round = 0; round < 5; round++) expect(await (await serve())()).toBe(143);
    expect(await run("create")).toMatchObject({ status: 0, stderr: "" });
    expect(await xenstore.tryRead(`${BACK}/state`)).toBeNull();
    const stop = await serve();
    expect(await xenstore.tryRead(`${BACK}/state`)).toBe("2");
    await xenstore.write(`${FRONT}/state`, "6");
    expect(await stop()).toBe(143);
    await run("destroy");
    expect([...qemu.taken]).toEqual([]);
    // With params it is meant for whoever serves the kind.
    await run("create", "--params", "aio:/a.img");
    await xenstore.waitFor(`${BACK}/online`, (value) => value === "1", { timeoutMs: 10_000 });
    await qemu.end();
    expect([...qemu.taken]).toEqual([BACK]);
    await run("destroy");
  });

  test("is one of libxl's, too, where there is libxl, and goes from there as well", async () => {
    await xenstore.mkdir("/libxl/1");
    const stop = await serve();
    // What libxl__disk_from_xenstore cannot do without.
    for (const key of ["backend", "frontend", "type", "dev", "mode", "removable", "device-type", "params"])
      expect([key, await xenstore.tryRead(`${RECORD}/${key}`)]).toEqual([key, expect.anything()]);
    expect(await xenstore.tryRead(`${RECORD}/backend`)).toBe(BACK);
    expect(await stop()).toBe(143);
    expect(await xenstore.exists(RECORD)).toBe(false);
    await run("create", "--kind", "vbd");
    expect(await xenstore.exists(RECORD)).toBe(false);
    await run("destroy", "--kind", "vbd");
  });
});

describe("a device of others", () => {
  test("is not destroyed", async () => {
    const back = await foreignDevice("vbd");
    await xenstore.write(`${RECORD}/backend`, back);
    await run("destroy", "--kind", "qdisk");
    expect(await xenstore.tryRead(`${FRONT}/state`)).toBe("4");
    expect(await xenstore.tryRead(`${back}/state`)).toBe("4");
    expect(await xenstore.exists(RECORD)).toBe(true);
    await run("destroy", "--kind", "vbd");
    for (const path of [FRONT, back, RECORD])
      expect([path, await xenstore.exists(path)]).toEqual([path, false]);
  });

  test.each([["force-close"], ["serve"]])("is not touched by %s", async (action) => {
    const back = await foreignDevice("vbd");
    await xenstore.write(`${BACK}/frontend`, FRONT);
    await xenstore.write(`${BACK}/state`, "2");
    const image = action === "serve" ? [join(dir, "a.img")] : [];
    const { status, stderr } = await run(action, ...image, "--kind", "qdisk");
    expect([status, stderr]).toEqual([3, expect.stringContaining(`the device of another backend, ${back}`)]);
    expect(await run("destroy")).toMatchObject({
      status: 2,
      stderr: expect.stringContaining("--kind qdisk or vbd"),
    });
    await run("destroy", "--kind", "qdisk");
    expect(await xenstore.tryRead(`${FRONT}/state`)).toBe("4");
    // The only one by now.
    await run("destroy");
    for (const path of [FRONT, back]) expect(await xenstore.exists(path)).toBe(false);
  });

  test.each(["2", "4"])(
    "is not served beside the program that has offered it, as QEMU does, at %s",
    async (state) => {
      await run("create", "--params", "aio:/a.img");
      await xenstore.write(`${BACK}/state`, state);
      await xenstore.write(`${FRONT}/state`, state);
      const { status, stderr } = await run("serve", join(dir, "a.img"));
      expect([status, stderr]).toEqual([3, expect.stringContaining("another program serves it")]);
      expect([await xenstore.tryRead(`${BACK}/state`), await xenstore.tryRead(`${FRONT}/state`)]).toEqual([
        state,
        state,
      ]);
      await run("destroy");
    },
  );

  test("a device that is removed under its server: that is told", async () => {
    const server = spawnXentool(...blkback("serve", join(dir, "a.img")));
    await readUntil(server.stderr, "offering");
    await run("destroy");
    await readUntil(server.stderr, "the device was removed");
    expect(await server.exited).toBe(0);
  });

  test("a guest that names a backend which there is not keeps nothing by that", async () => {
    await run("create");
    await xenstore.write(`${FRONT}/backend`, `${BACKENDS}/vbd/1/51728`);
    await run("destroy");
    for (const path of [FRONT, BACK]) expect(await xenstore.exists(path)).toBe(false);
  });
});
