// Following a ring from outside, against a model: a writer and a reader that obey the protocol, and looks that
// come often, rarely or in between. What is shown must be what was sent, in order, and every byte that is not
// shown must be counted.
import { describe, expect, test } from "bun:test";
import fc from "fast-check";
import { bytesToText } from "../../src/protocol/xs-content.ts";
import * as layout from "../../src/protocol/xs-ring.ts";
import { copyRing, type RingCopy } from "../../src/protocol/xs-ring-view.ts";
import {
  encodePacket,
  encodeStrings,
  encodeText,
  XS_ERROR,
  XS_READ,
  XS_WATCH_EVENT,
  XS_WRITE,
} from "../../src/protocol/xs-wire.ts";
import { RingFollower, type TraceRecord } from "../../src/xsring/ring-follower.ts";
import { TraceEvents, type TraceEvent, type TraceFilter } from "../../src/xsring/trace-events.ts";
import { encodeTraceRecord, readTrace, traceFileHeader } from "../../src/xsring/trace-file.ts";
import { eventAsJson, eventText } from "../../src/xsring/trace-text.ts";
import { chosenSeed } from "../support/random.ts";

const seed = chosenSeed();

class Ring {
  readonly page: layout.XsRingPage;
  readonly requests: layout.XsRingStream;
  readonly responses: layout.XsRingStream;

  constructor(start = 0) {
    const buffer = new ArrayBuffer(4096);
    this.page = { bytes: new Uint8Array(buffer), words: new Uint32Array(buffer) };
    for (let word = 512; word < 516; word++) this.page.words[word] = start;
    this.requests = layout.XsRingStream.requests(this.page);
    this.responses = layout.XsRingStream.responses(this.page);
  }

  /** Everything goes through; the reader takes it at once. */
  pass(stream: layout.XsRingStream, bytes: Uint8Array): void {
    for (let at = 0; at < bytes.length;) {
      at += stream.write(bytes.subarray(at)) ?? 0;
      stream.read();
    }
  }

  reset(poison: Uint8Array): void {
    this.requests.reset(poison);
    this.responses.reset(poison);
  }
}

interface Sent {
  readonly id: number;
  readonly value: string;
}

const packetOf = ({ id, value }: Sent): Uint8Array =>
  encodePacket(XS_WRITE, id, 0, encodeText(`data/x\0${value}`));

const steps = fc.array(
  fc.record({ bytes: fc.nat(3000), look: fc.integer({ min: 0, max: 3 }).map((it) => it === 0) }),
  { minLength: 1, maxLength: 60 },
);

test(`what is shown was sent, what is not is counted (SEED=${seed})`, () => {
  fc.assert(
    fc.property(steps, fc.constantFrom(0, 7, 5000, 0xffff_fe00), (all, start) => {
      const ring = new Ring(start);
      const follower = new RingFollower(copyRing(ring.page), 0);
      const records: TraceRecord[] = [];
      const sent: Sent[] = [];
      let total = 0;
      for (const { bytes, look } of all) {
        const value = `${sent.length}`.padEnd(bytes % 7 === 0 ? bytes : bytes % 60, "v");
        sent.push({ id: sent.length, value });
        const packet = packetOf(sent.at(-1) as Sent);
        total += packet.length;
        ring.pass(ring.requests, packet);
        if (look) records.push(...follower.look(copyRing(ring.page), 1));
      }
      records.push(...follower.look(copyRing(ring.page), 2));
      // A last small packet, seen by itself: after it nothing is undecided.
      ring.pass(ring.requests, packetOf({ id: 99, value: "" }));
      records.push(...follower.look(copyRing(ring.page), 3));
      total += packetOf({ id: 99, value: "" }).length;
      let next = 0;
      let seen = 0;
      for (const record of records) {
        if (record.kind === "lost") seen += record.bytes;
        if (record.kind !== "packet") continue;
        seen += 16 + record.payload.length;
        if (record.header.reqId === 99 && bytesToText(record.payload) === "data/x\0") continue;
        // In order, and byte for byte one of those that were sent.
        next = Math.max(next, record.header.reqId);
        expect(record.header.reqId).toBe(next++);
        expect(bytesToText(record.payload)).toBe(`data/x\0${sent[record.header.reqId]?.value}`);
      }
      expect(seen).toBe(total);
    }),
    { seed, numRuns: 300 },
  );
});

test("looked at often enough, nothing is lost", () => {
  const ring = new Ring();
  const follower = new RingFollower(copyRing(ring.page), 0);
  const kinds = new Map<string, number>();
  for (let id = 0; id < 2000; id++) {
    ring.pass(ring.requests, packetOf({ id, value: "v".repeat(id % 900) }));
    ring.pass(ring.responses, encodePacket(XS_WRITE, id, 0, encodeStrings("OK")));
    for (const { kind } of follower.look(copyRing(ring.page), id))
      kinds.set(kind, (kinds.get(kind) ?? 0) + 1);
  }
  expect([...kinds]).toEqual([["packet", 4000]]);
});

describe("a ring that begins anew", () => {
  test.each([
    ["0xff", layout.XS_RING_POISON],
    ["deadbeef", encodeText("deadbeef")],
  ])("is noticed, whatever it is filled with (%s)", (_name, poison) => {
    const ring = new Ring();
    const follower = new RingFollower(copyRing(ring.page), 0);
    ring.pass(ring.requests, packetOf({ id: 1, value: "old" }));
    expect(follower.look(copyRing(ring.page), 1).map(({ kind }) => kind)).toEqual(["packet"]);
    ring.pass(ring.requests, packetOf({ id: 2, value: "half" }).subarray(0, 20));
    follower.look(copyRing(ring.page), 2);
    ring.reset(poison);
    expect(follower.look(copyRing(ring.page), 3)).toEqual([
      { timeUs: 3, kind: "reset", bytes: 20, unseenUs: 1 },
    ]);
    ring.pass(ring.requests, packetOf({ id: 3, value: "new" }));
    expect(follower.look(copyRing(ring.page), 4)).toMatchObject([{ kind: "packet", header: { reqId: 3 } }]);
  });

  // What the server does one after the other, and every place in it that a look's three reads can fall on.
  const STEPS: readonly ((ring: Ring) => void)[] = [
    ({ page }) => layout.storeRingWord(page, layout.XS_RING_REQ_CONS, 0),
    ({ page }) => layout.storeRingWord(page, layout.XS_RING_REQ_PROD, 0),
    ({ requests }) => requests.fill(layout.XS_RING_POISON),
    ({ page }) => layout.storeRingWord(page, layout.XS_RING_RSP_CONS, 0),
    ({ page }) => layout.storeRingWord(page, layout.XS_RING_RSP_PROD, 0),
    ({ responses }) => responses.fill(layout.XS_RING_POISON),
  ];

  /** A copy of the page for each number of steps done. */
  function stages(ring: Ring, steps: typeof STEPS): RingCopy[] {
    return [copyRing(ring.page), ...steps.map((step) => (step(ring), copyRing(ring.page)))];
  }

  test.each([
    ["requests first", STEPS],
    ["responses first", [3, 4, 5, 0, 1, 2].map((nth) => STEPS[nth])],
    ["poison first, as hvmloader does", [2, 5, 0, 1, 3, 4].map((nth) => STEPS[nth])],
  ])("is one reset and nothing twice, wherever looks fall into it: %s", (_name, steps) => {
    const nth = [...Array(steps.length + 1).keys()];
    for (const [from, mid, to] of nth.flatMap((a) =>
      nth.flatMap((b) => nth.map((c) => [a, b, c] as const)),
    )) {
      if (from > mid || mid > to) continue;
      const ring = new Ring();
      const follower = new RingFollower(copyRing(ring.page), 0);
      const exchange = (id: number): void => {
        ring.pass(ring.requests, packetOf({ id, value: "value" }));
        ring.pass(ring.responses, encodePacket(XS_WRITE, id, 0, encodeStrings("OK")));
      };
      const records: TraceRecord[] = [];
      exchange(1);
      exchange(2);
      records.push(...follower.look(copyRing(ring.page), 1));
      const copies = stages(ring, steps);
      const at = (index: number): RingCopy => copies[index];
      const { requests, responses } = at(mid);
      records.push(...follower.look({ words: at(from).words, requests, responses, after: at(to).words }, 2));
      for (const copy of copies.slice(to)) records.push(...follower.look(copy, 3));
      exchange(3);
      records.push(...follower.look(copyRing(ring.page), 4));
      const shown = records.map((it) =>
        it.kind === "packet" ? `${it.direction} ${it.header.reqId}` : it.kind,
      );
      expect({ from, mid, to, shown }).toEqual({
        from,
        mid,
        to,
        shown: ["request 1", "request 2", "response 1", "response 2", "reset", "request 3", "response 3"],
      });
    }
  });

  test("is not waited for when one stream stays as it is", () => {
    const ring = new Ring();
    const follower = new RingFollower(copyRing(ring.page), 0);
    ring.pass(ring.requests, packetOf({ id: 1, value: "value" }));
    ring.pass(ring.responses, encodePacket(XS_WRITE, 1, 0, encodeStrings("OK")));
    follower.look(copyRing(ring.page), 1);
    ring.requests.reset(layout.XS_RING_POISON);
    expect(follower.look(copyRing(ring.page), 2)).toEqual([]);
    expect(follower.look(copyRing(ring.page), 100_001)).toEqual([]);
    expect(follower.look(copyRing(ring.page), 100_002)).toMatchObject([
      { kind: "reset" },
      { kind: "packet", direction: "response" }, // as good as new
    ]);
  });

  test("changes of the other words are told", () => {
    const ring = new Ring();
    const follower = new RingFollower(copyRing(ring.page), 0);
    layout.storeRingWord(ring.page, layout.XS_RING_CONNECTION, 1);
    layout.storeRingWord(ring.page, layout.XS_RING_ERROR, 2);
    const words = { serverFeatures: 0, connection: 1, error: 2 };
    expect(follower.look(copyRing(ring.page), 1)).toEqual([{ timeUs: 1, kind: "state", words }]);
    expect(follower.look(copyRing(ring.page), 2)).toEqual([]);
  });
});

/** A record of a packet. */
function seen(
  timeUs: number,
  direction: "request" | "response",
  type: number,
  reqId: number,
  text: string,
): TraceRecord {
  const payload = encodeText(text);
  return {
    timeUs,
    kind: "packet",
    direction,
    header: { type, reqId, txId: 0, length: payload.length },
    payload,
  };
}

const CONVERSATION: TraceRecord[] = [
  { timeUs: 0, kind: "state", words: { serverFeatures: 1, connection: 0, error: 0 } },
  seen(100, "request", XS_READ, 1, "name\0"),
  seen(350, "response", XS_READ, 1, "guest\x1b[31m"),
  seen(400, "request", XS_WRITE, 2, 'data/x\0"value"'),
  seen(410, "request", XS_READ, 3, "none\0"),
  seen(500, "response", XS_WATCH_EVENT, 0, "data/x\0token\0"),
  seen(200_000, "response", XS_WRITE, 2, "OK\0"),
  seen(200_100, "response", XS_ERROR, 3, "ENOENT\0"),
  seen(200_200, "response", XS_READ, 77, "?"),
  { timeUs: 300_000, kind: "lost", direction: "request", bytes: 12 },
  { timeUs: 300_000, kind: "violation", direction: "request", reason: "length" },
  seen(300_100, "request", XS_READ, 4, "last\0"),
  { timeUs: 300_200, kind: "reset", bytes: 5, unseenUs: 100 },
];

function lines(filter: TraceFilter, asJson = false): string[] {
  const out: string[] = [];
  const events = new TraceEvents(filter, (event: TraceEvent) => {
    const line = asJson ? eventAsJson(event) : eventText(event, 64);
    if (line === undefined) return;
    out.push(typeof line === "string" ? line : [line["event"], line["latencyUs"] ?? ""].join(" "));
  });
  for (const record of CONVERSATION) events.push(record);
  events.end(400_000);
  return out;
}

test("text as of strace, each request with its reply", () => {
  expect(lines({ types: undefined, path: undefined })).toEqual([
    "-- server_features 1 (RECONNECTION), connection 0 (CONNECTED), error 0 (none)",
    '#1 READ("name") = "guest\\x1b[31m" <0.000250>',
    '-- WATCH_EVENT("data/x", "token")',
    '#2 WRITE("data/x", "\\"value\\"") <unfinished ...>',
    '#3 READ("none") <unfinished ...>',
    "#2 <... WRITE resumed> = OK <0.199600>",
    "#3 <... READ resumed> = ENOENT <0.199690>",
    '#77 READ = "?" <request not seen>',
    "-- 12 bytes of requests passed unseen",
    "-- requests are no packets any more: length",
    "-- the ring began anew; 5 bytes of unfinished packets went with it; what passed in the 0.000100 s before is not known",
    '#4 READ("last") = ? <dropped by the reset>',
  ]);
});

test("whatever a packet or a file holds, its line is printable ASCII and bounded", () => {
  const text = "\x9b31m\u20ac$".repeat(400);
  const shown: string[] = [];
  const events = new TraceEvents({ types: undefined, path: undefined }, (event) => {
    shown.push(eventText(event, 64) ?? "");
  });
  for (const type of [XS_READ, XS_WRITE, XS_ERROR, XS_WATCH_EVENT, 99]) {
    events.push(seen(1, "request", type, type, text));
    events.push(seen(2, "response", type, type, text));
  }
  events.push({ timeUs: 3, kind: "violation", direction: "request", reason: text });
  expect(shown.length).toBeGreaterThan(5);
  for (const line of shown) {
    expect(line).toMatch(/^[\x20-\x7e]*$/);
    expect(line.length).toBeLessThan(1000);
  }
});

test("events for scripts, with latencies", () => {
  expect(lines({ types: undefined, path: undefined }, true)).toEqual([
    "state ",
    "request ",
    "reply 250",
    "request ",
    "request ",
    "watch-event ",
    "reply 199600",
    "reply 199690",
    "reply ",
    "lost ",
    "violation ",
    "request ",
    "reset ",
    "dropped ",
  ]);
});

test("a relative path finds nodes that a client names from the root, too; an absolute one only itself", () => {
  const shown = (path: string, node: string): number => {
    let count = 0;
    const events = new TraceEvents({ types: undefined, path }, () => count++);
    events.push(seen(1, "request", XS_READ, 1, `${node}\0`));
    return count;
  };
  expect(shown("device/*", "device/vbd/51712/state")).toBe(1);
  expect(shown("device/*", "/local/domain/5/device/vbd/51712/state")).toBe(1);
  expect(shown("device/*", "/local/domain/5/x/device/vbd")).toBe(0);
  expect(shown("/local/domain/5/*", "/local/domain/5/device")).toBe(1);
  expect(shown("/device", "/local/domain/5/device")).toBe(0);
});

test.each<[TraceFilter, string[]]>([
  [
    { types: new Set(["WRITE"]), path: undefined },
    ['#2 WRITE("data/x", "\\"value\\"") <unfinished ...>', "#2 <... WRITE resumed> = OK <0.199600>"],
  ],
  [{ types: new Set(["WATCH_EVENT"]), path: undefined }, ['-- WATCH_EVENT("data/x", "token")']],
  [{ types: undefined, path: "na*e" }, ['#1 READ("name") = "guest\\x1b[31m" <0.000250>']],
  [{ types: new Set(["READ"]), path: "data/*" }, []],
  [
    { types: new Set(["WRITE", "WATCH_EVENT"]), path: "*/x" },
    [
      '-- WATCH_EVENT("data/x", "token")',
      '#2 WRITE("data/x", "\\"value\\"") <unfinished ...>',
      "#2 <... WRITE resumed> = OK <0.199600>",
    ],
  ],
])("filter %o", (filter, wanted) => {
  // What is about the ring as a whole is always shown.
  const general = /^-- (server_features|12 bytes|requests are|the ring)/;
  expect(lines(filter).filter((line) => !general.test(line))).toEqual(wanted);
});

describe("a trace in a file", () => {
  const bytes = Buffer.concat([
    traceFileHeader(),
    ...CONVERSATION.map((record) => encodeTraceRecord(record, 5)),
  ]);

  async function* inPieces(data: Uint8Array, size: number): AsyncGenerator<Uint8Array> {
    for (let at = 0; at < data.length; at += size) yield data.subarray(at, at + size);
  }

  test.each([1, 7, 100_000])("comes back as it was, in pieces of %d bytes", async (size) => {
    const read = await Array.fromAsync(readTrace(inPieces(bytes, size)));
    expect(read.map(({ record }) => record)).toEqual(CONVERSATION);
    expect(read.every(({ domid }) => domid === 5)).toBe(true);
  });

  test("is a pcap of link type 147, packets whole", () => {
    expect(bytes.subarray(0, 24).toString("hex")).toBe(
      "d4c3b2a102000400000000000000000018100000" + "93000000",
    );
    const second = bytes.subarray(24 + 16 + 8 + 12);
    // Time 0.000100, 29 bytes; version 1, a request, domain 5; then the packet as on the ring.
    const packet = Buffer.from(encodePacket(XS_READ, 1, 0, encodeStrings("name"))).toString("hex");
    expect(second.subarray(0, 16 + 29).toString("hex")).toBe(
      `00000000640000001d0000001d000000${"0101050000000000"}${packet}`,
    );
  });

  test.each<[string, Uint8Array, string]>([
    ["nothing", new Uint8Array(0), "usage"],
    ["another file", Buffer.from("#!/bin/sh\necho hello, hello, hello\n"), "usage"],
    ["a cut one", bytes.subarray(0, -3), "io"],
    [
      "a packet that lies about its length",
      Buffer.from(bytes).fill(0xee, 24 + 16 + 8 + 12 + 16 + 8 + 12, 24 + 16 + 8 + 12 + 16 + 8 + 16),
      "usage",
    ],
  ])("is refused when it is %s", async (_name, data, kind) => {
    const failure = await Array.fromAsync(readTrace(inPieces(data, 64))).catch((error: unknown) => error);
    expect(failure).toMatchObject({ kind });
  });
});
