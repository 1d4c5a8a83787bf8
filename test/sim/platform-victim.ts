// A process of a simulated domain that a test kills: `bun platform-victim.ts DIR DOMID MODE ARGUMENTS…`. It
// says on stdout, as one JSON line, what it holds, and then goes on until it is killed.
import { openSync } from "node:fs";
import { PAGE_SIZE, toDomid, type Domid, type EvtchnPort } from "../../src/core/types.ts";
import { GrantCopyBatch } from "../../src/native/grant-copy.ts";
import { allocateMemory } from "../../src/native/memory.ts";
import { SimPlatform } from "../../src/platform/sim.ts";

const [dir, domid, mode, ...rest] = process.argv.slice(2) as [string, string, string, ...string[]];
const numbers = rest.map(Number);
const platform = new SimPlatform({ name: "sim", dir, domid: toDomid(Number(domid)) });

function say(what: unknown): void {
  process.stdout.write(`${JSON.stringify(what)}\n`);
}

/** Shares two pages with domain 0, byte 21 to be cleared, the event to come over a port for domain 0. */
function share(): void {
  const port = platform.openEventChannels().bindUnbound(toDomid(0));
  const { mapping, refs } = platform.openGrantShare().share(toDomid(0), 2, "rw", { clearByteAt: 21, port });
  mapping.bytes.fill(0xff);
  say({ port, refs });
}

/** Maps a grant of `peer` and binds to its port, byte 20 to be cleared. */
function map(peer: Domid, ref: number, remotePort: EvtchnPort): void {
  const port = platform.openEventChannels().bindInterdomain(peer, remotePort);
  platform.openGrantTable().map(peer, [ref], "rw", { clearByteAt: 20, port });
  say({ port });
}

/** Notifies over a port bound to `remotePort` of `peer`, with no descriptor left to do it with. */
function notifyWithoutDescriptors(peer: Domid, remotePort: EvtchnPort): void {
  const channels = platform.openEventChannels();
  const port = channels.bindInterdomain(peer, remotePort);
  try {
    for (;;) openSync("/dev/null", "r");
  } catch (error) {
    say({ error: (error as NodeJS.ErrnoException).code, result: channels.notify(port) });
  }
}

/** Copies to and from a grant of `peer`, as fast as it can: nearly always within the granter's lock. */
function copy(peer: Domid, ref: number): never {
  const table = platform.openGrantTable();
  const local = allocateMemory(PAGE_SIZE);
  const batch = new GrantCopyBatch(64);
  while (!batch.full) {
    batch.fromGrant(peer, ref, 0, PAGE_SIZE, local.address);
    if (!batch.full) batch.toGrant(peer, ref, 0, PAGE_SIZE, local.address);
  }
  say({});
  for (;;) table.copy(batch);
}

/** Shares, maps, binds and lets go, as fast as it can: it dies in the middle of changing every table. */
function churn(peer: Domid, ref: number, remotePort: EvtchnPort): never {
  const table = platform.openGrantTable();
  const sharer = platform.openGrantShare();
  say({});
  for (;;) {
    const channels = platform.openEventChannels();
    const port = channels.bindInterdomain(peer, remotePort);
    const mapping = table.map(peer, [ref], "rw", { clearByteAt: 20, port });
    const shared = sharer.share(peer, 4, "rw");
    channels.notify(port);
    channels.close();
    shared.mapping.close();
    mapping.close();
  }
}

const peer = toDomid(numbers[0] ?? 0);
if (mode === "share") share();
else if (mode === "map") map(peer, numbers[1], numbers[2] as EvtchnPort);
else if (mode === "notify-without-descriptors") notifyWithoutDescriptors(peer, numbers[1] as EvtchnPort);
else if (mode === "copy") copy(peer, numbers[1]);
else if (mode === "churn") churn(peer, numbers[1], numbers[2] as EvtchnPort);
else throw new Error(`no such mode: ${mode}`);
setInterval(() => {}, 60_000);
