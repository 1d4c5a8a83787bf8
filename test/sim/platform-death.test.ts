// Processes of a simulated host that die at any point: the host does for them what a kernel does, and
// nothing they held stays held.
import { afterEach, beforeEach, expect, test } from "bun:test";
import { PAGE_SIZE, toDomid, type EvtchnPort, type GrantRef } from "../../src/core/types.ts";
import { GrantCopyBatch } from "../../src/native/grant-copy.ts";
import { allocateMemory } from "../../src/native/memory.ts";
import { SimHost } from "../../src/sim/host.ts";
import { Xenstore } from "../../src/xenstore/client.ts";
import { mapGrants, nextPorts, sharePages, startVictim } from "./platform-harness.ts";

const DOM0 = toDomid(0);
const DOM1 = toDomid(1);

let host: SimHost;
beforeEach(async () => {
  host = await SimHost.start({ domains: 3 });
});
afterEach(async () => {
  const leaks = await host.settle();
  await host.stop();
  expect(leaks).toEqual([]);
});

test("a killed process that shares: byte cleared, event sent, and the grant ends with the last mapping", async () => {
  const back = host.platform(0);
  const channels = back.openEventChannels();
  const victim = await startVictim<{ port: EvtchnPort; refs: GrantRef[] }>(host.dir, 1, "share");
  const port = channels.bindInterdomain(DOM1, victim.said.port);
  expect(await nextPorts(channels)).toEqual([port]);
  channels.unmask(port);
  const mapping = mapGrants(back, DOM1, victim.said.refs, "rw");
  expect(mapping.bytes[21]).toBe(0xff);

  await victim.kill();
  expect(await nextPorts(channels)).toEqual([port]);
  expect(mapping.bytes[21]).toBe(0);
  expect(mapping.bytes[20]).toBe(0xff);
  expect(mapping.bytes[PAGE_SIZE + 21]).toBe(0xff);
  expect(channels.notify(port)).toBe(0);

  const orphans = (): number => host.usage().filter((item) => item.kind === "orphan").length;
  while (orphans() === 0) await Bun.sleep(1);
  expect(orphans()).toBe(2);
  mapping.close();
  expect(orphans()).toBe(0);
  expect(() => mapGrants(back, DOM1, victim.said.refs, "rw")).toThrow();
  channels.close();
  back.close();
});

test("a killed process that maps: the byte is cleared, the event comes, the page is free again", async () => {
  const front = host.platform(1);
  const channels = front.openEventChannels();
  const port = channels.bindUnbound(DOM0);
  const { mapping, refs } = sharePages(front, DOM0, 1, "rw");
  mapping.bytes.fill(0xff);
  const victim = await startVictim(host.dir, 0, "map", 1, refs[0] as number, port);

  await victim.kill();
  expect(await nextPorts(channels)).toEqual([port]);
  expect(mapping.bytes[20]).toBe(0);
  expect(mapping.bytes[21]).toBe(0xff);
  while (host.usage().some((item) => item.kind === "map" && item.slot !== 0 && item.id === refs[0]))
    await Bun.sleep(1);
  mapping.close();
  const again = sharePages(front, DOM0, 1, "rw");
  expect(again.refs).toEqual(refs);
  again.mapping.close();

  const back = host.platform(0);
  const others = back.openEventChannels();
  expect(others.bindInterdomain(DOM1, port)).toBeGreaterThan(0);
  for (const each of [others, channels, back, front]) each.close();
});

test("processes killed in the middle of copies, and of changing the tables", async () => {
  const front = host.platform(1);
  const channels = front.openEventChannels();
  const { mapping, refs } = sharePages(front, DOM0, 1, "rw");
  const ref = refs[0] as number;
  const rounds = Array.from({ length: 4 }, async () => {
    const port = channels.bindUnbound(DOM0);
    const copying = await startVictim(host.dir, 0, "copy", 1, ref);
    const churning = await startVictim(host.dir, 0, "churn", 1, ref, port);
    await Promise.all([copying.kill(), churning.kill()]);
  });
  await Promise.all(rounds);

  // Whatever lock was held when they died, everything goes on.
  const back = host.platform(0);
  const batch = new GrantCopyBatch(1);
  const local = allocateMemory(PAGE_SIZE);
  mapping.bytes.fill(7);
  batch.fromGrant(1, ref, 0, PAGE_SIZE, local.address);
  const table = back.openGrantTable();
  expect(table.copy(batch)).toBe(0);
  expect(batch.status(0)).toBe(0);
  expect(local.bytes.every((byte) => byte === 7)).toBe(true);
  for (const each of [batch, local, mapping, channels, table, back, front]) each.close();
});

test("an attachment that crashes within this process is reaped, and changes nothing afterwards", async () => {
  const front = host.platform(1);
  const back = host.platform(0);
  const { mapping, refs } = sharePages(front, DOM0, 3, "rw");
  const theirs = mapGrants(back, DOM1, refs, "rw");
  const channels = back.openEventChannels();
  channels.bindUnbound(DOM1);
  back.crash();
  while (host.usage().some((item) => item.kind === "map" && item.domid === 1 && item.id === refs[0]))
    await Bun.sleep(1);
  expect(() => back.openEventChannels()).toThrow("ENODEV");
  expect(() => channels.bindUnbound(DOM1)).toThrow("ENODEV");
  mapping.close();
  for (const each of [theirs, channels, back, front]) each.close();
});

test("a destroyed domain: its pages stay memory for who maps them, all else fails, its number is free", async () => {
  const front = host.platform(1);
  const back = host.platform(0);
  const { mapping, refs } = sharePages(front, DOM0, 2, "rw");
  const frontChannels = front.openEventChannels();
  const backChannels = back.openEventChannels();
  const backPort = backChannels.bindInterdomain(DOM1, frontChannels.bindUnbound(DOM0));
  const table = back.openGrantTable();
  const theirs = table.map(DOM1, refs, "rw");
  theirs.bytes.fill(9);

  await host.destroyDomain(1);
  expect(theirs.bytes.every((byte) => byte === 9)).toBe(true);
  expect(backChannels.notify(backPort)).toBe(0);
  expect(() => table.map(DOM1, refs, "rw")).toThrow("EINVAL");
  expect(() => front.openEventChannels()).toThrow("ENODEV");
  expect(() => host.platform(1)).toThrow("no domain 1");
  theirs.close();
  for (const each of [mapping, frontChannels, front]) each.close();

  expect(await host.createDomain(1, "again")).toBe(DOM1);
  const reborn = host.platform(1);
  const shared = sharePages(reborn, DOM0, 1, "rw");
  const anew = table.map(DOM1, shared.refs, "rw");
  expect(anew.bytes[0]).toBe(0);
  for (const each of [anew, shared.mapping, backChannels, table, reborn, back]) each.close();
});

test("a destroyed domain does not run its unmap-notifies, but what it mapped is free", async () => {
  const front = host.platform(0);
  const channels = front.openEventChannels();
  const port = channels.bindUnbound(DOM1);
  const { mapping, refs } = sharePages(front, DOM1, 1, "rw");
  mapping.bytes.fill(0xff);
  const victim = await startVictim(host.dir, 1, "map", 0, refs[0] as number, port);
  await host.destroyDomain(1);
  expect(mapping.bytes[20]).toBe(0xff);
  expect(channels.pending(new Uint32Array(4))).toBe(0);
  await victim.kill();
  mapping.close();
  const again = sharePages(front, DOM1, 1, "rw");
  expect(again.refs).toEqual(refs);
  for (const each of [again.mapping, channels, front]) each.close();
});

test("a domain that goes away is reported, and its nodes go with it", async () => {
  const platform = host.platform(0);
  const store = await Xenstore.connect(platform);
  const { promise, resolve } = Promise.withResolvers<void>();
  const unwatch = await store.watch("@releaseDomain", async () => {
    if (!(await store.exists("/local/domain/2/data"))) resolve();
  });
  await host.destroyDomain(2);
  await promise;
  await unwatch();
  store.close();
  platform.close();
});
