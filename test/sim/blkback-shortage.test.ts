// What the host lacks is waited out: no device is closed, no journal removed and no key changed because of it, it is
// said once, and a guest is served as soon as there is what was missing. Whether it connects or has a ring in use.
import { afterEach, beforeEach, describe, expect, spyOn, test, type Mock } from "bun:test";
import { mkdirSync, readdirSync, readFileSync, rmdirSync, rmSync } from "node:fs";
import { join } from "node:path";
import { backendDir, errorDir } from "../../src/blkback/address.ts";
import type { BlkbackDevice } from "../../src/blkback/device/device.ts";
import { type DeviceOptions } from "../../src/blkback/device/device.ts";
import { configureLogging } from "../../src/core/log.ts";
import { toDomid, type EvtchnPort } from "../../src/core/types.ts";
import type { BlkbackOrder } from "../../src/blkback/data-plane/blkback-orders.ts";
import type { OrderMessage, PlaneMessage } from "../../src/plane/protocol.ts";
import type { SimPlatform } from "../../src/platform/sim.ts";
import type { SimHost } from "../../src/sim/host.ts";
import type { Xenstore } from "../../src/xenstore/client.ts";
import type { HandmadeGuest } from "./blk-guest.ts";
import { openDescriptors } from "../support/descriptors.ts";
import { DiskWorld, diskAddress, expectPage, spawnWorker } from "./disk-world.ts";

const PORTS = 12;
const MAPTRACK = 8;
const at = diskAddress(1);

let world: DiskWorld;
let host: SimHost;
let dom0: SimPlatform;
let xenstore: Xenstore;
let options: DeviceOptions;
let guest: HandmadeGuest;
let stderr: Mock<typeof process.stderr.write>;

beforeEach(async () => {
  stderr = spyOn(process.stderr, "write").mockImplementation(() => true);
  configureLogging(0);
  world = await DiskWorld.start({ domains: 2, limits: { ports: PORTS, maptrack: MAPTRACK } });
  ({ host, dom0, xenstore, options } = world);
  await world.create(at);
  guest = await world.guest(at);
});

afterEach(async () => {
  await world.close();
  stderr.mockRestore();
});

const serve = (spawn = spawnWorker): Promise<BlkbackDevice> => world.serve(at, {}, spawn);

function file(ending: string): string {
  return join(options.statsDir, `1-51728.${ending}`);
}

/** Until the device's error node says so, or is gone. */
async function untilError(matches: RegExp | null): Promise<void> {
  const says = (text: string | null): boolean =>
    matches === null ? text === null : text !== null && matches.test(text);
  await xenstore.waitFor(`${errorDir(at)}/error`, says, { timeoutMs: 10_000 });
}

/** The device's keys in xenstore. */
async function keys(): Promise<Record<string, string | null>> {
  const names = await xenstore.directory(backendDir(at));
  const values = names.map(
    async (name) => [name, await xenstore.tryRead(`${backendDir(at)}/${name}`)] as const,
  );
  const { "xentool-served-by": _, ...all } = Object.fromEntries(await Promise.all(values));
  return all;
}

function said(): string[] {
  return stderr.mock.calls.map(([text]) => String(text)).filter((text) => text.includes("tried again"));
}

/** A place where a file is to be made, and cannot be. */
function occupy(path: string): () => void {
  mkdirSync(path, { recursive: true });
  return () => rmdirSync(path);
}

/** As if all event channels of this domain were in use. */
function usePorts(): () => void {
  const channels = dom0.openEventChannels();
  const ports: EvtchnPort[] = [];
  expect(() => {
    for (;;) ports.push(channels.bindUnbound(toDomid(1)));
  }).toThrow("ENOSPC");
  return () => channels.close();
}

/** As if this domain could map no more. */
function useMaptrack(): () => void {
  const front = host.platform(1);
  const grants = dom0.openGrantTable();
  const share = front.openGrantShare();
  const pages = share.share(toDomid(0), MAPTRACK, "rw");
  const mapped = pages.refs.map((ref) => {
    try {
      return grants.map(toDomid(1), [ref], "rw");
    } catch {
      return undefined;
    }
  });
  return () => {
    for (const mapping of mapped) mapping?.close();
    pages.mapping.close();
    for (const it of [grants, share, front]) it.close();
  };
}

const SHORTAGES: [string, () => () => void][] = [
  ["room for its journal", () => occupy(`${file("journal")}.new`)],
  ["event channels", usePorts],
  ["grants that it may map", useMaptrack],
];

describe.each(SHORTAGES)("without %s", (_name, use) => {
  test("a guest that connects waits at Initialised, and is served then", async () => {
    await serve();
    await guest.untilBackend(2);
    const release = use();
    await guest.offerRing();
    await untilError(/./);
    expect(await guest.backendKey("state")).toBe("2");
    release();
    await guest.untilBackend(4);
    expectPage(await guest.read(8), 8);
    await untilError(null);
    expect(said().length).toBe(1);
  });

  test.each([
    ["destroyed, and its device removed", () => xenstore.rm(backendDir(at)), "removed"],
    [
      "destroyed, and its device asked to close",
      () => xenstore.write(`${backendDir(at)}/online`, "0"),
      "closed",
    ],
  ] as const)("a guest that waits and is %s leaves no error behind", async (_how, go, end) => {
    const device = await serve();
    await guest.untilBackend(2);
    const release = use();
    await guest.offerRing();
    await untilError(/./);
    await go();
    if (end === "closed") await guest.setState(6);
    expect(await device.ended).toBe(end);
    expect(await xenstore.exists("/local/domain/0/error/backend/qdisk/1")).toBe(false);
    release();
  });

  test("a guest that has a ring keeps it, and is served then", async () => {
    const first = await serve();
    await guest.connect();
    expectPage(await guest.read(8), 8);
    await first.abandon();
    const [journal, before] = [readFileSync(file("journal")), await keys()];
    const release = use();
    const pending = guest.read(16);
    await serve();
    await untilError(/./);
    expect(await keys()).toEqual(before);
    expect(readFileSync(file("journal")).equals(journal)).toBe(true);
    release();
    expectPage(await pending, 16);
    expect(await keys()).toEqual(before);
  });
});

describe("a guest that has a ring", () => {
  test("waits while there is no room for statistics", async () => {
    const first = await serve();
    await guest.connect();
    await first.abandon();
    const release = occupy(file("stats"));
    const pending = guest.read(16);
    await serve();
    await untilError(/EISDIR/);
    expect(await guest.backendKey("state")).toBe("4");
    release();
    expectPage(await pending, 16);
  });

  test("waits for its journal, or begins anew, whatever its new ring holds", async () => {
    const first = await serve();
    await guest.connect();
    expectPage(await guest.read(8), 8);
    await first.abandon();
    for (const name of readdirSync(options.statsDir)) rmSync(join(options.statsDir, name));
    guest.lie(2);
    await serve();
    await untilError(/left no journal/);
    expect(await guest.backendKey("state")).toBe("4");
    await guest.setState(1);
    await guest.untilBackend(2);
    await guest.offerRing({}, 1);
    await guest.untilBackend(4);
  });

  test("can let go while it waits, and nothing is left of it", async () => {
    const first = await serve();
    await guest.connect();
    await first.abandon();
    const release = occupy(`${file("journal")}.new`);
    const next = await serve();
    await untilError(/./);
    release();
    expect(await Promise.all([next.detach(10_000), guest.setState(6)])).toEqual([true, undefined]);
    expect(await next.ended).toBe("closed");
    expect(readdirSync(options.statsDir)).toEqual([]);
  });

  test.each(["4", "5"])("is served on by another data plane when one fails, at %s", async (state) => {
    let count = 0;
    let fail = (): void => {};
    await serve(() => (++count > 1 ? spawnWorker() : brokenWorker((report) => (fail = report))));
    await guest.connect();
    await guest.setState(state);
    await guest.untilBackend(Number(state));
    const pending = guest.read(16);
    fail();
    expectPage(await pending, 16);
    expect([count, await guest.backendKey("state")]).toEqual([2, state]);
    expect(said()).toEqual([expect.stringContaining("no more of it")]);
  });
});

test("no thread for the data plane: the guest waits, and nothing stays open", async () => {
  const open: number[] = [];
  await serve(() => {
    open.push(openDescriptors().length);
    if (open.length > 4) return spawnWorker();
    throw new Error("no more threads");
  });
  await guest.connect();
  expectPage(await guest.read(8), 8);
  // Fewer, when the worker of an earlier test was still closing its own.
  expect(open.at(-1)).toBeLessThanOrEqual(open[0]);
});

/** A data plane that says it serves, and, once `fail` is called, that its host lacks something. */
function brokenWorker(onReady: (fail: () => void) => void): Worker {
  const worker = new Worker(
    URL.createObjectURL(new Blob(["self.onmessage = ({ data }) => postMessage(data)"])),
  );
  const post = (message: PlaneMessage): void => Worker.prototype.postMessage.call(worker, message);
  worker.postMessage = ({ id }: OrderMessage) => {
    post({ type: "report", id, report: { type: "connected" } satisfies BlkbackOrder["report"] });
    const failure = { kind: "environment", message: "no more of it", context: {} } as const;
    const result: BlkbackOrder["result"] = { failure, lost: undefined };
    onReady(() => post({ type: "done", id, result }));
  };
  return worker;
}
