// A ring client that closes in the middle of everything, ten thousand times, while another domain and domain 0
// keep the server busy: the new connection always begins on the boundary of a packet and knows nothing of the
// old one, the other domain notices nothing. And a server that dies at any step of its answer.
import { expect, setDefaultTimeout, test } from "bun:test";
import * as layout from "../../src/protocol/xs-ring.ts";
import {
  decodeText,
  encodePacket,
  encodeStrings,
  XS_READ,
  XS_TRANSACTION_START,
  XS_WATCH,
  XS_WRITE,
} from "../../src/protocol/xs-wire.ts";
import { SimHost } from "../../src/sim/host.ts";
import { Xenstore } from "../../src/xenstore/client.ts";
import { RingTransport } from "../../src/xenstore/transports/ring.ts";
import { PERSONALITIES } from "../../src/xenstore/server/personality.ts";
import { RingChannel } from "../../src/xenstore/server/ring-channel.ts";
import { XenstoreServer } from "../../src/xenstore/server/server.ts";
import { TestRing } from "../unit/xenstore-ring-page.ts";
import { GuestRing } from "./xsring-harness.ts";
import { chosenSeed, wholeNumbers, type WholeNumbers } from "../support/random.ts";

setDefaultTimeout(60_000); // thousands of rounds, perhaps on a busy machine

const seed = chosenSeed();
const INDICES = [
  layout.XS_RING_REQ_CONS,
  layout.XS_RING_REQ_PROD,
  layout.XS_RING_RSP_CONS,
  layout.XS_RING_RSP_PROD,
];

/** Leaves a mess of a random kind on the ring, at a random point of it. */
async function makeMess(ring: GuestRing, random: WholeNumbers): Promise<void> {
  const large = encodePacket(XS_WRITE, 901, 0, encodeStrings(`data/large\0${"x".repeat(4000)}`));
  const start = encodePacket(XS_TRANSACTION_START, 902, 0, encodeStrings(""));
  const watch = encodePacket(XS_WATCH, 903, 0, encodeStrings("data", `token-${random(1000)}`));
  const read = encodePacket(XS_READ, 904, 0, encodeStrings("name"));
  const kinds = [[large], [start, large], [watch], [watch, read, read, large], [start, watch, read], []];
  const bytes = Buffer.concat(kinds[random(kinds.length)]);
  // As much as fits at once, often ending within a packet or a header; nobody reads the replies.
  const cut = bytes.subarray(0, random(3) === 0 ? bytes.length : random(bytes.length + 1));
  if (random(2) === 0) layout.XsRingStream.requests(ring.page).write(cut);
  else await ring.send(cut.subarray(0, 1024));
}

async function closeRing(ring: GuestRing): Promise<void> {
  ring.store(layout.XS_RING_CONNECTION, layout.XENSTORE_RECONNECT);
  ring.notify();
  while (ring.load(layout.XS_RING_CONNECTION) !== layout.XENSTORE_CONNECTED) await ring.event();
  ring.forget();
}

/** Reads and writes of its own, over its own ring, until stopped: every answer must be right. */
async function keepBusy(host: SimHost, domid: number, signal: AbortSignal): Promise<number> {
  const ring = new GuestRing(host, domid);
  const xs = new Xenstore(await RingTransport.connect(ring.client(), 5000));
  let events = 0;
  const unwatch = await xs.watch("data/own", () => void events++);
  let count = 0;
  for (; !signal.aborted; count++) {
    await xs.write("data/own", String(count));
    expect(await xs.read("data/own")).toBe(String(count));
  }
  expect(xs.failure).toBeUndefined();
  expect(events).toBeGreaterThan(0);
  await unwatch();
  xs.close();
  await ring.close();
  return count;
}

/** Changes what the closing guest watches, so that events of old watches would show. */
async function touch(host: SimHost, signal: AbortSignal): Promise<void> {
  const platform = host.platform(0);
  const xs = await Xenstore.connect(platform);
  for (let count = 0; !signal.aborted; count++) await xs.write("/local/domain/1/data/x", String(count));
  xs.close();
  platform.close();
}

test.each([
  ["oxenstored", 8000],
  ["rfc-2014", 2000],
] as const)(`%s: %d closes and new starts (SEED=${seed})`, async (personality, rounds) => {
  const host = await SimHost.start({ domains: 3, personality });
  const random = wholeNumbers(seed);
  const ring = new GuestRing(host, 1);
  const done = new AbortController();
  const load = [keepBusy(host, 2, done.signal), touch(host, done.signal)] as const;
  for (let round = 0; round < rounds; round++) {
    await makeMess(ring, random);
    await closeRing(ring);
    expect(INDICES.map((index) => ring.load(index))).toEqual([0, 0, 0, 0]);
    await ring.send(encodePacket(XS_READ, round, 0, encodeStrings("domid")));
    const reply = await ring.receive();
    expect([reply.reqId, reply.type, decodeText(reply.payload)]).toEqual([round, XS_READ, "1"]);
    expect(ring.leftoverBytes).toBe(0);
    if (round % 500 === 0) expect(host.server.statistics.transactions).toBe(0);
  }
  done.abort();
  expect(await load[0]).toBeGreaterThan(rounds / 10);
  await load[1];
  await closeRing(ring);
  await ring.close();
  expect(await host.settle()).toEqual([]);
  await host.stop();
});

/** The words and bytes that a server writes when it answers a close, in its order. */
function steps(poison: Uint8Array): ((page: layout.XsRingPage) => void)[] {
  const zero = (index: number) => (page: layout.XsRingPage) => layout.storeRingWord(page, index, 0);
  const fill = (at: number, count: number) => (page: layout.XsRingPage) => {
    for (let byte = at; byte < at + count; byte++) page.bytes[byte] = poison[byte % poison.length];
  };
  return [...INDICES.map(zero), fill(0, 500), fill(500, 524), fill(1024, 1), fill(1025, 1023)];
}

test.each(["oxenstored", "rfc-2014"] as const)(
  "%s dies at any step of its answer; the next one ends it",
  async (name) => {
    const poison = PERSONALITIES[name].ringPoison as Uint8Array;
    const all = steps(poison);
    for (let done = 0; done <= all.length; done++) {
      const ring = new TestRing();
      const first = new XenstoreServer({ personality: name });
      first.createDomain(1, "guest");
      const channel = first.introduce(1, ring.server());
      layout.XsRingStream.requests(ring.page).write(encodePacket(XS_READ, 1, 0, encodeStrings("name")));
      channel.pump();
      layout.XsRingStream.requests(ring.page).write(
        encodePacket(XS_READ, 2, 0, encodeStrings("name")).subarray(0, 9),
      );
      layout.storeRingWord(ring.page, layout.XS_RING_CONNECTION, layout.XENSTORE_RECONNECT);
      for (const step of all.slice(0, done)) step(ring.page);
      first.close();

      const second = new XenstoreServer({ personality: name });
      second.createDomain(1, "guest");
      ring.channel = second.introduce(1, ring.server());
      expect(layout.loadRingWord(ring.page, layout.XS_RING_CONNECTION)).toBe(layout.XENSTORE_CONNECTED);
      expect(INDICES.map((index) => layout.loadRingWord(ring.page, index))).toEqual([0, 0, 0, 0]);
      expect(ring.page.bytes.subarray(0, 2048).every((byte, at) => byte === poison[at % poison.length])).toBe(
        true,
      );
      const xs = new Xenstore(await RingTransport.connect(ring.client(), 1000));
      expect(await xs.read("name")).toBe("guest");
      xs.close();
      second.close();
    }
  },
);

test("a ring whose event was lost is served at oxenstored's next scan", async () => {
  const channel = new RingChannel(new TestRing().server(), { ...PERSONALITIES.oxenstored, ringScanMs: 5 }, 1);
  const { promise, resolve } = Promise.withResolvers<void>();
  channel.pump = resolve;
  const alive = setInterval(() => {}, 1000); // the scan itself keeps no process alive
  await promise;
  clearInterval(alive);
  channel.close();
  expect(PERSONALITIES.oxenstored.ringScanMs).toBe(20_000);
  expect(PERSONALITIES["xenstored-4.22"].ringScanMs).toBeUndefined();
});
