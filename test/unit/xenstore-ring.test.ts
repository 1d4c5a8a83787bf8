// Ring connections: our client and server over one page; closing, overrun and lying guests, as each real
// server takes them.
import { afterEach, describe, expect, test } from "bun:test";
import fc from "fast-check";
import * as layout from "../../src/protocol/xs-ring.ts";
import {
  decodeText,
  encodePacket,
  encodeStrings,
  XS_READ,
  XS_WATCH,
  XS_WRITE,
  XsPacketParser,
} from "../../src/protocol/xs-wire.ts";
import { Xenstore } from "../../src/xenstore/client.ts";
import { RingTransport } from "../../src/xenstore/transports/ring.ts";
import { PERSONALITY_NAMES, type PersonalityName } from "../../src/xenstore/server/personality.ts";
import { XenstoreServer } from "../../src/xenstore/server/server.ts";
import { TestRing } from "./xenstore-ring-page.ts";
import { chosenSeed } from "../support/random.ts";

const { loadRingWord: load, storeRingWord: store } = layout;
const INDICES = [
  layout.XS_RING_REQ_CONS,
  layout.XS_RING_REQ_PROD,
  layout.XS_RING_RSP_CONS,
  layout.XS_RING_RSP_PROD,
];
const seed = chosenSeed();

let server: XenstoreServer;
let ring: TestRing;

/** Time stands still: how long a request takes ends no turn in the tests that look without waiting. */
const now = (): number => 0;

/** A server whose domain 1 has a ring; `before` sees the page first. */
function start(personality: PersonalityName, before: (ring: TestRing) => void = () => {}): void {
  ring = new TestRing();
  before(ring);
  server = new XenstoreServer({ personality, now });
  server.createDomain(1, "guest");
  ring.channel = server.introduce(1, ring.server());
}

async function connect(): Promise<Xenstore> {
  return new Xenstore(await RingTransport.connect(ring.client(), 1000));
}

/** What the guest sends, without any client. */
function put(bytes: Uint8Array): number | undefined {
  return layout.XsRingStream.requests(ring.page).write(bytes);
}

/** The replies and events in the ring, each as `type payload`. */
function take(): string[] {
  const parser = new XsPacketParser();
  parser.push(layout.XsRingStream.responses(ring.page).read() ?? new Uint8Array(0));
  const texts: string[] = [];
  for (let packet = parser.next(); packet !== undefined; packet = parser.next())
    texts.push(`${packet.type} ${decodeText(packet.payload).replaceAll("\0", "|")}`);
  return texts;
}

const read = (path: string): Uint8Array => encodePacket(XS_READ, 1, 0, encodeStrings(path));

afterEach(() => {
  server.close();
  const { connections, watches, transactions } = server.statistics;
  expect({ connections, watches, transactions }).toEqual({ connections: 0, watches: 0, transactions: 0 });
  expect(ring.serverClosed).toBe(true);
  expect(ring.listeners).toBe(0);
});

describe("the byte streams", () => {
  test(`carry any bytes in any pieces across the wrap of the indices (SEED=${seed})`, () => {
    start("oxenstored");
    const chunks = fc.array(fc.uint8Array({ minLength: 1, maxLength: 1500 }), { maxLength: 30 });
    fc.assert(
      fc.property(fc.constantFrom(0, 5, 1020, 0xffff_fff0), chunks, (first, pieces) => {
        store(ring.page, layout.XS_RING_RSP_CONS, first);
        store(ring.page, layout.XS_RING_RSP_PROD, first);
        const stream = layout.XsRingStream.responses(ring.page);
        const got: Uint8Array[] = [];
        for (const piece of pieces)
          for (let at = 0; at < piece.length;) {
            at += stream.write(piece.subarray(at)) as number;
            expect(stream.usedBytes).toBeLessThanOrEqual(1024);
            got.push(stream.read() as Uint8Array);
          }
        expect(Buffer.concat(got).equals(Buffer.concat(pieces))).toBe(true);
      }),
      { seed },
    );
  });

  test("report indices that cannot be", () => {
    start("oxenstored");
    store(ring.page, layout.XS_RING_RSP_PROD, 1025);
    const stream = layout.XsRingStream.responses(ring.page);
    expect([stream.usedBytes, stream.read(), stream.write(new Uint8Array(1))]).toEqual([
      undefined,
      undefined,
      undefined,
    ]);
  });
});

describe.each([...PERSONALITY_NAMES])("a guest on the ring (%s)", (personality) => {
  test("reads, writes and watches, with packets larger than the ring", async () => {
    start(personality);
    const xs = await connect();
    const large = "x".repeat(2000);
    await xs.write("data/large", large);
    expect(await xs.read("data/large")).toBe(large);
    const events: string[] = [];
    const done = Promise.withResolvers<void>();
    const unwatch = await xs.watch("data", (path) => {
      if (events.push(path) === 2) done.resolve();
    });
    await xs.write("data/x", "1");
    await done.promise;
    expect(events).toEqual(["data", "data/x"]);
    await Promise.all(Array.from({ length: 200 }, (_, i) => xs.write(`data/${i % 20}`, `${i}`)));
    expect(await xs.read("data/19")).toBe("199");
    await unwatch();
    xs.close();
  });

  test("finds the server's features before anything else", () => {
    start(personality);
    const expected = { "xenstored-4.17": 0, "xenstored-4.22": 14, oxenstored: 1, "rfc-2014": 1 };
    expect(load(ring.page, layout.XS_RING_SERVER_FEATURES)).toBe(expected[personality]);
  });

  test("is served what it sent before the server came", () => {
    start(personality, (early) => layout.XsRingStream.requests(early.page).write(read("name")));
    expect(take()).toEqual(["2 guest"]);
  });

  test("that does not read its replies is not read either, and goes on when it does", async () => {
    start(personality);
    const request = read("domid");
    let sentBytes = 0;
    for (let stuck = 0; stuck < 3; stuck++) {
      for (let count = 1; count > 0; sentBytes += count) {
        count = put(request.subarray(sentBytes % request.length)) ?? 0;
        ring.channel?.pump();
      }
      await new Promise(setImmediate); // the next turn
      ring.channel?.pump();
    }
    // A ring of replies, one of requests, one that was read, and what the server lets a guest leave unread.
    expect(sentBytes / request.length).toBeLessThan(3 * 64 + server.quotas.outstanding);
    layout.XsRingStream.requests(ring.page).skip();
    expect(take().length).toBeGreaterThan(50);
  });

  test("that lies about an index is ignored from then on", () => {
    start(personality);
    put(encodePacket(XS_WATCH, 1, 0, encodeStrings("data", "t")));
    ring.channel?.pump();
    expect(server.statistics.watches).toBe(1);
    store(ring.page, layout.XS_RING_REQ_PROD, load(ring.page, layout.XS_RING_REQ_CONS) + 1025);
    ring.channel?.pump();
    expect(ring.channel?.ignored).toBe(true);
    expect(server.statistics.watches).toBe(0);
    const writesError = personality.startsWith("xenstored");
    expect(load(ring.page, layout.XS_RING_ERROR)).toBe(writesError ? layout.XENSTORE_ERROR_RINGIDX : 0);
    for (const index of INDICES) store(ring.page, index, 0);
    put(read("name"));
    ring.channel?.pump();
    expect(take()).toEqual([]);
  });

  test("that announces too much is ignored, or loses its place as with oxenstored", () => {
    start(personality);
    const packet = read("name");
    new DataView(packet.buffer).setUint32(12, 4097, true);
    put(packet);
    ring.channel?.pump();
    const strict = personality.startsWith("xenstored");
    expect(ring.channel?.ignored).toBe(strict);
    expect(load(ring.page, layout.XS_RING_ERROR)).toBe(strict ? layout.XENSTORE_ERROR_PROTO : 0);
  });

  test("that dies takes its connection along", () => {
    start(personality);
    put(encodePacket(XS_WATCH, 1, 0, encodeStrings("data", "t")));
    ring.channel?.pump();
    server.release(1);
    expect(server.statistics).toMatchObject({ connections: 0, watches: 0, domains: 1 });
    expect(ring.serverClosed).toBe(true);
    ring.channel?.pump();
  });
});

describe("closing a ring", () => {
  test.each<[PersonalityName, string]>([
    ["oxenstored", "\xff".repeat(1024)],
    ["rfc-2014", "deadbeef".repeat(128)],
  ])("%s forgets everything, poisons both streams and answers", (personality, poison) => {
    start(personality);
    put(encodePacket(XS_WATCH, 1, 0, encodeStrings("data", "t")));
    put(encodePacket(XS_WRITE, 2, 0, encodeStrings("data/x")).subarray(0, 20));
    ring.channel?.pump();
    const before = ring.guestEvents;
    store(ring.page, layout.XS_RING_CONNECTION, layout.XENSTORE_RECONNECT);
    ring.channel?.pump();
    expect(load(ring.page, layout.XS_RING_CONNECTION)).toBe(layout.XENSTORE_CONNECTED);
    expect(INDICES.map((index) => load(ring.page, index))).toEqual([0, 0, 0, 0]);
    expect(Buffer.from(ring.page.bytes.subarray(0, 1024)).toString("latin1")).toBe(poison);
    expect(Buffer.from(ring.page.bytes.subarray(1024, 2048)).toString("latin1")).toBe(poison);
    expect(ring.guestEvents).toBeGreaterThan(before);
    expect(server.statistics.watches).toBe(0);
    put(read("name"));
    ring.channel?.pump();
    expect(take()).toEqual(["2 guest"]);
  });

  test("oxenstored answers without an event, when it has something to say to the guest", async () => {
    start("oxenstored");
    put(encodePacket(XS_WATCH, 1, 0, encodeStrings("data", "t")));
    ring.channel?.pump();
    store(ring.page, layout.XS_RING_CONNECTION, layout.XENSTORE_RECONNECT);
    const dom0 = new Xenstore(server.connectDirectly(0));
    await dom0.write("/local/domain/1/data/x", "1");
    expect(load(ring.page, layout.XS_RING_CONNECTION)).toBe(layout.XENSTORE_CONNECTED);
    expect(INDICES.map((index) => load(ring.page, index))).toEqual([0, 0, 0, 0]);
    expect(server.statistics.watches).toBe(0);
    dom0.close();
  });

  test("C xenstored does not answer", () => {
    start("xenstored-4.22");
    store(ring.page, layout.XS_RING_CONNECTION, layout.XENSTORE_RECONNECT);
    put(read("name"));
    ring.channel?.pump();
    expect(load(ring.page, layout.XS_RING_CONNECTION)).toBe(layout.XENSTORE_RECONNECT);
    expect(take()).toEqual(["2 guest"]);
  });

  test.each([...PERSONALITY_NAMES])("a new client takes a used ring over (%s)", async (personality) => {
    start(personality);
    const first = await connect();
    await first.write("data/x", "1");
    first.close();
    put(read("data/x"));
    ring.channel?.pump(); // a reply that nobody reads
    const second = await connect();
    expect(await second.read("data/x")).toBe("1");
    expect(second.failure).toBeUndefined();
    second.close();
  });

  test.each([...PERSONALITY_NAMES])(
    "a new client has nothing of a killed one's (%s)",
    async (personality) => {
      start(personality);
      const first = await connect();
      await first.watch("data", () => {});
      first.close(); // the server is not told
      // Replies that nobody reads, the last of them larger than the ring: the server waits in the middle of it.
      put(encodePacket(XS_WRITE, 7, 0, encodeStrings(`data/large\0${"x".repeat(900)}`)));
      ring.channel?.pump();
      take();
      for (let i = 0; i < 30; i++) {
        put(read("data/large"));
        ring.channel?.pump();
      }
      const second = await connect();
      const { promise, resolve } = Promise.withResolvers<string>();
      await second.watch("data", resolve);
      expect(await promise).toBe("data");
      const seen: string[] = [];
      await second.watch("data/other", (path) => void seen.push(path));
      await second.write("data/x", "1");
      expect(await second.read("data/x")).toBe("1");
      expect(seen).toEqual(["data/other"]);
      expect(server.statistics.watches).toBe(2);
      second.close();
    },
  );

  test("a client does not touch a ring that it has given up", async () => {
    start("xenstored-4.17");
    const xs = await connect();
    const end = ring.client();
    let isClosed = false;
    let touched = 0;
    const notify = (): number => {
      if (isClosed) touched++;
      return end.events.notify(end.port);
    };
    const guarded = { ...end, events: { notify }, close: () => void (isClosed = true) };
    xs.close();
    const client = new Xenstore(await RingTransport.connect(guarded, 1000));
    const lost = Promise.withResolvers<unknown>();
    client.onClose(lost.resolve);
    ring.channel = undefined;
    const reading = client.read("name").catch((error: unknown) => error);
    layout.XsRingStream.responses(ring.page).write(read("name"));
    store(ring.page, layout.XS_RING_ERROR, layout.XENSTORE_ERROR_PROTO);
    ring.server().events.notify(end.port);
    expect(await lost.promise).toMatchObject({ kind: "protocol" });
    expect(await reading).toMatchObject({ kind: "protocol" });
    expect([isClosed, touched]).toEqual([true, 0]);
  });

  test("a client gives up when nobody answers", async () => {
    start("oxenstored");
    put(read("name"));
    ring.channel = undefined;
    const failure = await RingTransport.connect(ring.client(), 20).catch((error: unknown) => error);
    expect(failure).toMatchObject({ kind: "timeout" });
  });

  test("a client stops at a ring that cannot be", async () => {
    start("oxenstored");
    const xs = await connect();
    const lost = Promise.withResolvers<unknown>();
    xs.onClose(lost.resolve);
    store(ring.page, layout.XS_RING_RSP_PROD, 5000);
    const reading = xs.read("name").catch((error: unknown) => error);
    expect(await lost.promise).toMatchObject({ kind: "protocol" });
    expect(await reading).toMatchObject({ kind: "protocol" });
  });
});

describe("INTRODUCE of a domain that has a ring", () => {
  const introduce = (gfn: number, port: number): string => {
    try {
      server.introduceByRequest(1, gfn, port);
      return "OK";
    } catch (error) {
      return String((error as Error).message);
    }
  };

  test("is compared by oxenstored", () => {
    start("oxenstored");
    expect([introduce(1, 2), introduce(1, 3), introduce(2, 2)]).toEqual(["OK", "EINVAL", "EINVAL"]);
  });

  test("starts anew with C xenstored, and ends the close that a guest waits for", () => {
    ring = new TestRing();
    server = new XenstoreServer({
      personality: "xenstored-4.17",
      now,
      openRing: (_domid, gfn, port) => ring.server(gfn, port),
    });
    server.createDomain(1, "guest");
    ring.channel = server.introduce(1, ring.server());
    put(encodePacket(XS_WATCH, 1, 0, encodeStrings("data", "t")));
    ring.channel.pump();
    store(ring.page, layout.XS_RING_CONNECTION, layout.XENSTORE_RECONNECT);
    expect(introduce(1, 7)).toBe("OK");
    expect(server.statistics.watches).toBe(0);
    expect(load(ring.page, layout.XS_RING_CONNECTION)).toBe(layout.XENSTORE_CONNECTED);
    expect(INDICES.map((index) => load(ring.page, index))).toEqual([0, 0, 0, 0]);
    expect(ring.channel.ring.remotePort).toBe(7);
    put(read("name"));
    ring.channel.pump();
    expect(take()).toEqual(["2 guest"]);
  });
});
