// The limits of a simulated host's domains are real, settable, and using them up harms nobody else.
import { afterEach, beforeEach, expect, test } from "bun:test";
import { toDomid, type EvtchnPort } from "../../src/core/types.ts";
import { GrantCopyBatch } from "../../src/native/grant-copy.ts";
import { allocateMemory } from "../../src/native/memory.ts";
import { SimHost } from "../../src/sim/host.ts";
import { DEFAULT_LIMITS } from "../../src/sim/limits.ts";
import { mapGrants, nextPorts, sharePages, startVictim } from "./platform-harness.ts";

const DOM0 = toDomid(0);
const DOM1 = toDomid(1);
const DOM2 = toDomid(2);
const LIMITS = { grantEntries: 32, sharePages: 16, maptrack: 13, ports: 8, handles: 3, slots: 8 };

let host: SimHost;
beforeEach(async () => {
  host = await SimHost.start({ limits: LIMITS });
});
afterEach(async () => {
  const leaks = await host.settle();
  await host.stop();
  expect(leaks).toEqual([]);
});

function closeAll(things: readonly { close(): void }[]): void {
  for (const thing of things) thing.close();
}

test("by default a domain shares 1024 pages, as gntalloc lets it", async () => {
  expect(DEFAULT_LIMITS.sharePages).toBe(1024);
  const usual = await SimHost.start({ domains: 2 });
  const front = usual.platform(1);
  const share = front.openGrantShare();
  expect(() => share.share(DOM0, 1025, "rw")).toThrow("ENOSPC");
  const all = share.share(DOM0, 1024, "rw");
  expect(() => share.share(DOM0, 1, "rw")).toThrow("ENOSPC");
  all.mapping.close();
  share.share(DOM0, 1024, "rw").mapping.close();
  closeAll([share, front]);
  expect(await usual.settle()).toEqual([]);
  await usual.stop();
});

test("shared pages: of all processes of the domain, and of that domain alone", () => {
  const [one, other, elsewhere] = [host.platform(1), host.platform(1), host.platform(2)];
  const first = sharePages(one, DOM0, 10, "rw");
  expect(() => sharePages(other, DOM0, 7, "rw")).toThrow("ENOSPC");
  const second = sharePages(other, DOM0, 6, "rw");
  const third = sharePages(elsewhere, DOM0, 16, "rw");
  closeAll([first.mapping, second.mapping, third.mapping, one, other, elsewhere]);
});

test("grant references: those that the peer still maps count", () => {
  const front = host.platform(1);
  const back = host.platform(0);
  const share = front.openGrantShare();
  const first = share.share(DOM0, 12, "rw");
  const theirs = mapGrants(back, DOM1, first.refs, "r");
  first.mapping.close();
  const second = share.share(DOM0, 12, "rw");
  expect(() => share.share(DOM0, 4, "rw")).toThrow("ENOSPC");
  expect(new Set([...first.refs, ...second.refs]).size).toBe(24);
  theirs.close();
  share.share(DOM0, 4, "rw").mapping.close();
  closeAll([second.mapping, share, front, back]);
});

test("maptrack: a mapping that does not fit leaves nothing behind", () => {
  const front = host.platform(1);
  const back = host.platform(0);
  const { mapping, refs } = sharePages(front, DOM0, 16, "rw");
  const table = back.openGrantTable();
  expect(() => table.map(DOM1, refs, "rw")).toThrow("ENOSPC");
  const first = table.map(DOM1, refs.slice(0, 10), "rw");
  expect(() => table.map(DOM1, refs.slice(10), "rw")).toThrow("ENOSPC");
  first.close();
  table.map(DOM1, refs.slice(5), "rw").close();
  closeAll([mapping, table, front, back]);
});

test("ports and handles", () => {
  const front = host.platform(1);
  const handles = [front.openEventChannels(), front.openEventChannels(), front.openEventChannels()];
  expect(() => front.openEventChannels()).toThrow("EMFILE");
  const [first] = handles as [(typeof handles)[0]];
  const ports = Array.from({ length: 6 }, () => first.bindUnbound(DOM0));
  expect(new Set(ports).size).toBe(6);
  expect(() => first.bindUnbound(DOM0)).toThrow("ENOSPC");
  first.unbind(ports[3]);
  expect(first.bindUnbound(DOM0)).toBe(ports[3]);
  closeAll(handles);
  front.openEventChannels().close();
  front.close();
});

test("processes", () => {
  const many = Array.from({ length: 5 }, () => host.platform(2));
  expect(() => host.platform(2)).toThrow("no slot left");
  closeAll(many);
  host.platform(2).close();
});

test("a third domain can neither map nor copy what was granted to another", () => {
  const front = host.platform(1);
  const stranger = host.platform(2);
  const { mapping, refs } = sharePages(front, DOM0, 1, "rw");
  const table = stranger.openGrantTable();
  expect(() => table.map(DOM1, refs, "r")).toThrow("EINVAL");
  const batch = new GrantCopyBatch(2);
  const local = allocateMemory(4096);
  batch.fromGrant(1, refs[0], 0, 16, local.address);
  batch.fromGrant(7, refs[0], 0, 16, local.address);
  expect(table.copy(batch)).toBe(0);
  expect([batch.status(0), batch.status(1)]).toEqual([-1, -2]);
  closeAll([batch, local, mapping, table, front, stranger]);
});

test("a third domain cannot bind to a port that waits for another, and nobody to a domain that is not", () => {
  const front = host.platform(1);
  const stranger = host.platform(2);
  const ours = front.openEventChannels();
  const theirs = stranger.openEventChannels();
  const port = ours.bindUnbound(DOM0);
  expect(() => theirs.bindInterdomain(DOM1, port)).toThrow("EINVAL");
  expect(() => theirs.bindInterdomain(toDomid(9), port)).toThrow("ESRCH");
  expect(() => theirs.bindUnbound(toDomid(9))).toThrow("ESRCH");
  closeAll([ours, theirs, front, stranger]);
});

test("a restricted handle binds to its one domain only, and as on Linux that is not domain 0", () => {
  const back = host.platform(0);
  const channels = back.openEventChannels();
  expect(channels.restrict(DOM0)).toBe(false);
  expect(channels.restrict(DOM1)).toBe(true);
  expect(channels.restrict(DOM2)).toBe(false);
  expect(() => channels.bindUnbound(DOM2)).toThrow("EACCES");
  expect(() => channels.bindInterdomain(DOM2, 1 as EvtchnPort)).toThrow("EACCES");
  expect(channels.bindUnbound(DOM1)).toBeGreaterThan(0);
  closeAll([channels, back]);
});

test("a closed platform lives until what was opened through it is closed", () => {
  const front = host.platform(1);
  const { mapping } = sharePages(front, DOM0, 1, "rw");
  const channels = front.openEventChannels();
  front.close();
  front.close();
  mapping.bytes[0] = 1;
  expect(channels.bindUnbound(DOM0)).toBeGreaterThan(0);
  channels.close();
  expect(host.usage().some((item) => item.kind === "grant" && item.domid === 1 && item.slot !== 0)).toBe(
    true,
  );
  mapping.close();
});

test("a process without a descriptor to send an event with: the host sends it", async () => {
  const front = host.platform(1);
  const channels = front.openEventChannels();
  const port = channels.bindUnbound(DOM0);
  const victim = await startVictim(host.dir, 0, "notify-without-descriptors", 1, port);
  expect(victim.said).toEqual({ error: "EMFILE", result: 0 });
  expect(await nextPorts(channels)).toEqual([port]);
  await victim.kill();
  closeAll([channels, front]);
});

test("limits that make no sense are refused, and leave no directory", async () => {
  const before = host.dir;
  expect(SimHost.start({ limits: { grantEntries: 0 } })).rejects.toThrow("EINVAL");
  expect(SimHost.start({ domains: 0 })).rejects.toThrow("1 to 250");
  expect(SimHost.start({ dir: before })).rejects.toThrow("not empty");
  expect(host.status().domains.length).toBe(3);
});
