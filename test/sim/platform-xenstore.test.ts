// A simulated host's xenstore: a socket says who one is, and a domain's ring page is served as xenstored does.
import { afterEach, beforeEach, expect, test } from "bun:test";
import { statSync } from "node:fs";
import { join } from "node:path";
import { toDomid } from "../../src/core/types.ts";
import { openPlatform } from "../../src/platform/open.ts";
import { SimHost } from "../../src/sim/host.ts";
import { Xenstore } from "../../src/xenstore/client.ts";

let host: SimHost;
beforeEach(async () => {
  host = await SimHost.start({ domains: 3 });
});
afterEach(async () => {
  const leaks = await host.settle();
  await host.stop();
  expect(leaks).toEqual([]);
});

test("who may read what depends on the socket", async () => {
  const dom0 = await Xenstore.connect({ kind: "socket", path: join(host.dir, "dom0", "xenstored") });
  const dom1 = await Xenstore.connect({ kind: "socket", path: join(host.dir, "dom1", "xenstored") });
  const dom2 = await Xenstore.connect({ kind: "socket", path: join(host.dir, "dom2", "xenstored") });
  expect(await dom1.read("domid")).toBe("1");
  expect(await dom2.read("domid")).toBe("2");
  await dom1.write("data/secret", "of 1");
  expect(await dom0.read("/local/domain/1/data/secret")).toBe("of 1");
  expect(dom2.read("/local/domain/1/data/secret")).rejects.toThrow("EACCES");
  expect(dom1.write("/local/domain/1/name", "other")).rejects.toThrow("EACCES");
  for (const each of [dom0, dom1, dom2]) each.close();
});

test("the ring of a domain is served, where xenstore says it is", async () => {
  const platform = openPlatform({ name: "sim", dir: host.dir, domid: toDomid(1), xenstore: "ring" });
  const client = await Xenstore.connect(platform);
  expect(await client.read("domid")).toBe("1");
  expect(await client.read("store/ring-ref")).toBe("1");
  expect(await client.read("store/port")).toMatch(/^[1-9][0-9]*$/);
  // Larger than the ring, so that both sides must wait for each other.
  const value = "x".repeat(1500);
  const { promise, resolve } = Promise.withResolvers<void>();
  const unwatch = await client.watch("data/long", async () => {
    if ((await client.tryRead("data/long")) === value) resolve();
  });
  await client.write("data/long", value);
  await promise;
  await unwatch();
  client.close();
  platform.close();
});

test("only one process at a time has the ring's port", () => {
  const [first, second] = [host.platform(1), host.platform(1)];
  const channels = [first.openEventChannels(), second.openEventChannels()] as const;
  const ring = first.openStoreRing(channels[0]);
  expect(() => second.openStoreRing(channels[1])).toThrow("EBUSY");
  ring.page.close();
  channels[0].close();
  second.openStoreRing(channels[1]).page.close();
  for (const each of [channels[1], first, second]) each.close();
});

test("the directory is for its owner and the group of servers in jails, and gone after the host stopped", async () => {
  const { mode, gid } = statSync(host.dir);
  const given = [mode & 0o777, statSync(join(host.dir, "dom1", "memory")).mode & 0o777];
  expect(given).toEqual(gid === 98_304 ? [0o750, 0o666] : [0o700, 0o600]);
  const other = await SimHost.start({ domains: 1 });
  await other.stop();
  await other.stop();
  await other.stopped;
  expect(() => statSync(other.dir)).toThrow("ENOENT");
  expect(() => other.platform(0)).toThrow("no simulated host runs");
});
