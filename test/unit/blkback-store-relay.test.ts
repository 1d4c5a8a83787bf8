// What the process of a guest gets of xenstore: a client at one end of the relay, a simulated host's server at the
// other. The client asks for what a hostile one would, and floods, and does not read.
import { closeSync } from "node:fs";
import { afterEach, beforeEach, describe, expect, test } from "bun:test";
import { mayAskStore } from "../../src/blkback/guests/store-rules.ts";
import { StoreRelay } from "../../src/blkback/guests/store-relay.ts";
import { toDomid } from "../../src/core/types.ts";
import { socketPair } from "../../src/native/descriptors.ts";
import { shim } from "../../src/native/shim.ts";
import type { SimPlatform } from "../../src/platform/sim.ts";
import { SimHost } from "../../src/sim/host.ts";
import { Xenstore } from "../../src/xenstore/client.ts";
import { encodePacket, encodeStrings, XS_READ } from "../../src/protocol/xs-wire.ts";
import { openInherited } from "../../src/xenstore/transports/socket.ts";
import { openDescriptors } from "../support/descriptors.ts";

const SCOPE = { backend: toDomid(0), kind: "vbd", frontend: toDomid(1) };
const DISKS = "/local/domain/0/backend/vbd/1";
const ERRORS = "/local/domain/0/error/backend/vbd/1";
const REFUSED = "permission denied";
const MUCH_BYTES = 16 << 20;
const [EAGAIN, EPIPE] = [-11, -32];

let host: SimHost;
let platform: SimPlatform;
let dom0: Xenstore;
let before: number;
let relay: StoreRelay;
let client: Xenstore;
let theirs: number;

beforeEach(async () => {
  host = await SimHost.start({ domains: 3 });
  platform = host.platform(0);
  dom0 = await Xenstore.connect(platform);
  for (const [key, value] of Object.entries({ params: "/a.img", mode: "w", state: "1" }))
    await dom0.write(`${DISKS}/51712/${key}`, value);
  await dom0.write("/local/domain/0/backend/vbd/2/51712/params", "/b.img");
  before = openDescriptors().length;
  const pair = socketPair("bytes");
  theirs = pair.theirs;
  relay = await StoreRelay.open(pair.ours, platform.xenstore, (it) => mayAskStore(SCOPE, it));
});

afterEach(async () => {
  relay.close();
  while (openDescriptors().length > before) await Bun.sleep(1);
  dom0.close();
  platform.close();
  const left = await host.settle();
  await host.stop();
  expect(left).toEqual([]);
});

describe("a process", () => {
  beforeEach(async () => {
    client = await Xenstore.connect({ kind: "inherited", path: "the relay", fd: theirs });
  });
  afterEach(() => client.close());

  test("reads and says what a backend does", async () => {
    expect(await client.read(`${DISKS}/51712/params`)).toBe("/a.img");
    expect(await client.directory(DISKS)).toEqual(["51712"]);
    await client.transaction(async (tx) => {
      for (const key of ["state", "feature-flush-cache", "multi-queue-max-queues", "xentool-served-by"])
        await tx.write(`${DISKS}/51712/${key}`, "2");
    });
    expect(await dom0.read(`${DISKS}/51712/state`)).toBe("2");
    await client.write(`${ERRORS}/51712/error`, "why");
    await client.rm(ERRORS);
    await client.rm(`${DISKS}/51712`);
    expect(await dom0.exists(`${DISKS}/51712`)).toBe(false);
  });

  test("hears of its guest's disks", async () => {
    const { promise, resolve } = Promise.withResolvers<void>();
    const stop = await client.watch(DISKS, (path) => (path.endsWith("online") ? resolve() : undefined));
    await dom0.write(`${DISKS}/51712/online`, "0");
    await promise;
    await stop();
    await (
      await client.watch("@releaseDomain", () => {})
    )();
  });

  test.each([
    ["params", `${DISKS}/51712/params`],
    ["the mode", `${DISKS}/51712/mode`],
    ["what libxl hands to QEMU", `${DISKS}/51712/physical-device-path`],
    ["another guest's disk", "/local/domain/0/backend/vbd/2/51712/state"],
    ["another kind of backend", "/local/domain/0/backend/vif/1/0/state"],
    ["a whole disk", `${DISKS}/51728`],
    ["below a key", `${DISKS}/51712/state/x`],
    ["a guest whose number begins alike", "/local/domain/0/backend/vbd/11/51712/state"],
    ["its guest", "/local/domain/1/device/vbd/51712/state"],
    ["another place by a relative path", "backend/vbd/2/51712/state"],
    ["libxl's records", "/libxl/1/device/vbd/51712/params"],
    ["the tool's own place", "/tool/xenstored"],
  ])("cannot write %s", async (_what, path) => {
    expect(client.write(path, "x")).rejects.toThrow(REFUSED);
    expect(client.transaction((tx) => tx.write(path, "x"))).rejects.toThrow(REFUSED);
  });

  test("cannot remove, read or watch what is not its guest's", async () => {
    for (const path of [`${DISKS}/51712/params`, "/local/domain/0/backend/vbd/2", "/local", "/vm"])
      expect(client.rm(path)).rejects.toThrow(REFUSED);
    for (const path of ["/local/domain/0/backend/vbd/2/51712/params", "/local/domain/2/name", "/vm", "/"]) {
      expect(client.read(path)).rejects.toThrow(REFUSED);
      expect(client.directory(path)).rejects.toThrow(REFUSED);
      expect(client.watch(path, () => {})).rejects.toThrow(REFUSED);
    }
    expect(client.introduce(3, 1, 1)).rejects.toThrow(REFUSED);
    expect(client.release(2)).rejects.toThrow(REFUSED);
    expect(client.setPerms(`${DISKS}/51712`, [{ domid: 2, access: "both" }])).rejects.toThrow(REFUSED);
    expect(await client.read(`${DISKS}/51712/params`)).toBe("/a.img");
  });

  test("has an answer to each of many questions at once", async () => {
    const asked = Array.from({ length: 1000 }, (_, index) =>
      client.tryRead(index % 2 === 0 ? `${DISKS}/51712/mode` : "/vm").catch(() => REFUSED),
    );
    expect((await Promise.all(asked)).filter((it) => it === "w")).toHaveLength(500);
  });

  test("sees the end of xenstore", async () => {
    const { promise, resolve } = Promise.withResolvers<unknown>();
    client.onClose(resolve);
    relay.close();
    expect(await promise).toBeDefined();
  });
});

test("what is asked before xenstore is connected to is answered", async () => {
  const pair = socketPair("bytes");
  const early = await openInherited(pair.theirs, "the relay");
  const { promise, resolve } = Promise.withResolvers<Uint8Array>();
  early.onData = resolve;
  early.write(encodePacket(XS_READ, 7, 0, encodeStrings(`${DISKS}/51712/mode`)));
  await Bun.sleep(0);
  const other = await StoreRelay.open(pair.ours, platform.xenstore, (it) => mayAskStore(SCOPE, it));
  expect(await promise).toEqual(encodePacket(XS_READ, 7, 0, Buffer.from("w")));
  other.close();
  closeSync(theirs);
});

test("one that asks and does not read is waited for, or given up; one that is no client is ended", async () => {
  const reader = await openInherited(theirs, "the relay");
  const { promise, resolve } = Promise.withResolvers<void>();
  reader.onClose = () => resolve();
  reader.setReading(false);
  await dom0.write(`${DISKS}/51712/info`, "x".repeat(2000));
  for (let id = 0; id < 5000; id++)
    reader.write(encodePacket(XS_READ, id, 0, encodeStrings(`${DISKS}/51712/info`)));
  expect(await dom0.read(`${DISKS}/51712/mode`)).toBe("w");
  reader.setReading(true);
  reader.write(new Uint8Array(64).fill(0xff));
  await promise;
});

test("one that asks for what it may not have, and does not read, is given up", async () => {
  const refused = Buffer.concat(
    Array.from({ length: 4096 }, (_, id) => encodePacket(XS_READ, id, 0, encodeStrings("/vm"))),
  );
  let asked = 0;
  for (let sent = 0; sent !== EPIPE && asked < MUCH_BYTES; asked += Math.max(0, sent)) {
    const rest = refused.subarray(asked % refused.length);
    sent = shim.xt_socket_send(theirs, rest, rest.length, null, 0);
    if (sent === EAGAIN) await Bun.sleep(1);
  }
  closeSync(theirs);
  // The answers to all of it would be more than three times what may be unread.
  expect(asked).toBeLessThan(MUCH_BYTES);
}, 60_000);
