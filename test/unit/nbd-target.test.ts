// The NBD client as a block target: against servers that keep the protocol, and that break it in every place.
import { afterEach, describe, expect, test } from "bun:test";
import { parseNbdUri } from "../../src/block/targets/nbd/uri.ts";
import { Coverage } from "../../src/block/targets/nbd/coverage.ts";
import { NbdClientHandshake } from "../../src/block/targets/nbd/handshake.ts";
import { IO_DISCARD, IO_FLUSH, IO_READ, IO_READV, IO_WRITE } from "../../src/native/reactor.ts";
import {
  NBD_CMD_FLAG_DF,
  NBD_CMD_WRITE,
  NBD_FLAG_HAS_FLAGS,
  NBD_FLAG_SEND_DF,
} from "../../src/protocol/nbd.ts";
import { chosenSeed, Random } from "../support/random.ts";
import {
  chunk,
  dataAt,
  holeAt,
  simple,
  TargetAndPeer,
  type PeerOptions,
  type SeenRequest,
} from "./nbd-target-peer.ts";

let fixture: TargetAndPeer | undefined;
afterEach(() => {
  fixture?.close();
  fixture = undefined;
});

function open(reply: PeerOptions["reply"], more: Omit<PeerOptions, "reply"> = {}, silenceMs?: number) {
  fixture = new TargetAndPeer({ reply, ...more }, silenceMs);
  return fixture;
}

const filled = (length: number, value: number) => Buffer.alloc(length, value);

test("URIs", () => {
  expect(parseNbdUri("nbd://host")).toEqual({ address: "host", port: 10809, exportName: "" });
  expect(parseNbdUri("nbd://[::1]:99/a%20b/c")).toEqual({ address: "::1", port: 99, exportName: "a b/c" });
  expect(parseNbdUri("nbd+unix:///?socket=/run/a%3fb")).toEqual({
    address: "/run/a?b",
    port: undefined,
    exportName: "",
  });
  expect(parseNbdUri("nbds://h/a?tls-certificates=/etc/pki/a").tls).toEqual({
    hostname: "h",
    certificates: "/etc/pki/a",
  });
  expect(parseNbdUri("nbds+unix:///?socket=/s&tls-hostname=h").tls).toEqual({ hostname: "h" });
  for (const bad of [
    "nbd:",
    "nbd://",
    "nbd://h:0",
    "nbd://h:70000",
    "nbd://u@h",
    "nbd://h?tls-hostname=h",
    "nbds://h?socket=/s",
    "nbds://h?tls-certificates=a",
    "nbds://h?tls-psk-file=/a",
    "nbds+unix:///?socket=/s",
    "nbds+unix:///?socket=/s&tls-hostname=",
    "nbd+unix:///?socket=/s&socket=/t",
    "nbdx://h",
    "nbd+unix:///a",
    "nbd://h/%ff",
    "nbd+unix:///?socket=/a&b=c",
    "nbd://h/%00",
  ])
    expect(() => parseNbdUri(bad)).toThrow("cannot be served");
});

test("chunks cover a read in any order, without overlap", () => {
  const coverage = new Coverage(2);
  coverage.begin(1);
  for (const [from, to] of [
    [10, 20],
    [0, 5],
    [30, 40],
    [5, 10],
    [20, 30],
  ] as const)
    expect(coverage.add(1, from, to)).toBe(true);
  expect(coverage.covers(1, 40)).toBe(true);
  for (const [from, to] of [
    [0, 1],
    [39, 41],
    [5, 50],
  ] as const)
    expect(coverage.add(1, from, to)).toBe(false);
  expect(coverage.covers(0, 0)).toBe(false);
});

describe.each([
  ["structured", { structured: true }],
  ["simple", { structured: false }],
  ["simple, no GO", { structured: false, go: false }],
] as const)("%s replies", (_, options) => {
  test("reads, writes, flushes and trims", async () => {
    const { target, memory, requests } = open((request) => {
      if (request.command !== 0) return simple(request);
      const data = filled(request.length, 7);
      return options.structured
        ? chunk(request, 1, true, dataAt(request.offset, data))
        : simple(request, 0, data);
    }, options);
    target.start(IO_READ, 1, 4096, 8192, memory.address);
    target.start(IO_WRITE, 2, 0, 512, memory.address);
    target.start(IO_FLUSH, 3, 0, 0, 0);
    target.start(IO_DISCARD, 4, 65536, 4096, 0);
    expect(await fixture?.ended(4)).toEqual([
      [1, 8192],
      [2, 512],
      [3, 0],
      [4, 0],
    ]);
    expect(requests.map(({ command }) => command).sort()).toEqual([0, 1, 3, 4]);
    expect(
      Buffer.from(memory.bytes.subarray(0, 8193)).equals(Buffer.concat([filled(8192, 7), filled(1, 0)])),
    ).toBe(true);
  });

  test("an error fails its own request", async () => {
    const { target, memory } = open((request) => simple(request, request.offset === 0 ? 28 : 4711), options);
    target.start(IO_WRITE, 1, 0, 512, memory.address);
    target.start(IO_WRITE, 2, 512, 512, memory.address);
    expect(await fixture?.ended(2)).toEqual([
      [1, -28],
      [2, -5],
    ]);
    expect(target.failure).toBeUndefined();
  });
});

test("a read in chunks and holes goes to its vectors", async () => {
  const { target, memory } = open((request) =>
    Buffer.concat([
      chunk(request, 2, false, holeAt(request.offset + 1000, 600)),
      chunk(request, 1, false, dataAt(request.offset, filled(1000, 1))),
      chunk(request, 1, false, dataAt(request.offset + 1600, filled(448, 3))),
      chunk(request, 0, true),
    ]),
  );
  memory.bytes.fill(9);
  const vectors = new BigUint64Array(memory.bytes.buffer, 128 * 1024, 4);
  vectors.set([BigInt(memory.address + 4096), 512n, BigInt(memory.address), 1536n]);
  target.start(IO_READV, 5, 4096, 2, memory.address + 128 * 1024);
  expect(await fixture?.ended(1)).toEqual([[5, 2048]]);
  const seen = Buffer.concat([memory.bytes.subarray(4096, 4608), memory.bytes.subarray(0, 1536)]);
  expect(seen.equals(Buffer.concat([filled(1000, 1), filled(600, 0), filled(448, 3)]))).toBe(true);
  expect(memory.bytes[4608]).toBe(9);
  expect(memory.bytes[1536]).toBe(9);
});

test("what is asked for together arrives together, and whole where the socket is too small for it", async () => {
  const peer = open((request) => simple(request, 0, filled(request.command === 0 ? request.length : 0, 7)), {
    structured: false,
  });
  const { target, memory, requests } = peer;
  await peer.until(() => target.isServing);
  const before = peer.arrivals;
  for (let tag = 0; tag < 8; tag++)
    target.start(tag % 2 === 0 ? IO_READ : IO_WRITE, tag, tag * 4096, 512, memory.address);
  expect((await peer.ended(8)).map(([, result]) => result)).toEqual(Array(8).fill(512));
  expect(peer.arrivals).toBe(before + 1);
  requests.length = 0;
  const size = 64 * 1024;
  for (let tag = 0; tag < 16; tag++) {
    memory.bytes.fill(tag + 1, 0, size);
    target.start(IO_WRITE, tag, tag * size, size, memory.address);
  }
  // What finds no room in the log waits, and then takes what is in its memory by then.
  expect(await peer.ended(16)).toHaveLength(16);
  const written = requests.filter(({ command }) => command === NBD_CMD_WRITE);
  expect(written.map(({ offset }) => offset)).toEqual(written.map((_, at) => at * size));
  for (const { data } of written) expect(data.equals(filled(size, data[0] ?? 0))).toBe(true);
  expect(written.slice(0, 3).map(({ data }) => data[0])).toEqual([1, 2, 3]);
});

test("short reads are asked for in one chunk, of a server that can do that", async () => {
  const flags = NBD_FLAG_HAS_FLAGS | NBD_FLAG_SEND_DF;
  for (const structured of [true, false]) {
    const reply = (request: SeenRequest): Buffer => {
      const data = filled(request.command === 0 ? request.length : 0, 7);
      const isChunk = structured && request.command === 0;
      return isChunk ? chunk(request, 1, true, dataAt(request.offset, data)) : simple(request, 0, data);
    };
    const { target, memory, requests } = open(reply, { structured, flags, maxBlockBytes: 128 * 1024 });
    target.start(IO_READ, 1, 0, 64 * 1024, memory.address);
    target.start(IO_READ, 2, 65536, 64 * 1024 + 512, memory.address);
    target.start(IO_WRITE, 3, 0, 512, memory.address);
    await fixture?.ended(3);
    const expected = [structured ? NBD_CMD_FLAG_DF : 0, 0, 0];
    expect(requests.map((it) => it.flags)).toEqual(expected);
    fixture?.close();
    fixture = undefined;
  }
});

test("a transfer above the server's payload is a short one", async () => {
  const { target, memory, requests } = open((request) => simple(request));
  target.start(IO_WRITE, 1, 0, 128 * 1024, memory.address);
  expect(await fixture?.ended(1)).toEqual([[1, 65536]]);
  expect(requests[0].length).toBe(65536);
});

test("what the server does not offer is not sent", async () => {
  const { target, memory, requests } = open((request) => simple(request), { flags: 1 | 2 });
  target.start(IO_WRITE, 1, 0, 512, memory.address);
  target.start(IO_FLUSH, 2, 0, 0, 0);
  target.start(IO_DISCARD, 3, 0, 512, 0);
  expect(await fixture?.ended(3)).toEqual([
    [1, -30],
    [2, 0],
    [3, -30],
  ]);
  expect(requests).toEqual([]);
});

/** A reply that says so, and does not end. */
function oneError(request: SeenRequest): Buffer {
  return chunk(request, 0x8001, false, Buffer.from([0, 0, 0, 5, 0, 0]));
}

const wrong: readonly (readonly [string, (request: SeenRequest) => Uint8Array])[] = [
  ["wrong magic", (request) => Buffer.concat([Buffer.from("nonsense"), simple(request)])],
  ["nothing that was asked", (request) => simple({ ...request, cookie: Buffer.alloc(8, 200) })],
  ["simple reply", (request) => simple(request, 0, filled(request.length, 1))],
  ["outside", (request) => chunk(request, 1, true, dataAt(request.offset + 1, filled(request.length, 1)))],
  ["outside", (request) => chunk(request, 1, true, dataAt(request.offset - 512, filled(request.length, 1)))],
  ["outside", (request) => chunk(request, 2, true, holeAt(request.offset, 0xffff_ffff))],
  ["gaps", (request) => chunk(request, 1, true, dataAt(request.offset, filled(512, 1)))],
  ["gaps", (request) => chunk(request, 0, true)],
  [
    "overlap",
    (request) =>
      Buffer.concat([
        chunk(request, 1, false, dataAt(request.offset, filled(512, 1))),
        chunk(request, 2, true, holeAt(request.offset + 511, 512)),
      ]),
  ],
  ["unknown type", (request) => chunk(request, 77, true)],
  ["has none", (request) => chunk(request, 1, true, Buffer.alloc(8))],
  ["wrong length", (request) => chunk(request, 2, true, Buffer.alloc(8))],
  ["wrong length", (request) => chunk(request, 0x8001, true, Buffer.alloc(5))],
  ["no error", (request) => chunk(request, 0x8001, true, Buffer.alloc(6))],
  ["does not end", (request) => chunk(request, 0, false)],
  ["too many errors", (request) => Buffer.concat(Array.from({ length: 1000 }, () => oneError(request)))],
];

test.each(wrong)(
  "a server with a reply with %s is lost: everything fails from then on",
  async (why, reply) => {
    const { target, memory } = open(reply);
    target.start(IO_READ, 1, 4096, 4096, memory.address);
    target.start(IO_WRITE, 2, 0, 512, memory.address);
    expect(await fixture?.ended(2)).toEqual([
      [1, -5],
      [2, -5],
    ]);
    expect(target.failure).toContain(why);
    target.start(IO_FLUSH, 3, 0, 0, 0);
    expect(await fixture?.ended(1)).toEqual([[3, -5]]);
  },
);

test("a silent server is lost", async () => {
  const { target, memory } = open(() => undefined, {}, 50);
  target.start(IO_READ, 1, 0, 512, memory.address);
  expect(await fixture?.ended(1)).toEqual([[1, -5]]);
  expect(target.failure).toContain("nothing came");
});

test("a server whose silence is limited after it had replied is waited for no longer by what it is asked next", async () => {
  const peer = open((request) =>
    request.command === 0
      ? chunk(request, 1, true, dataAt(request.offset, filled(request.length, 1)))
      : undefined,
  );
  const { target, memory } = peer;
  target.start(IO_READ, 1, 0, 512, memory.address);
  expect(await peer.ended(1)).toEqual([[1, 512]]);
  target.limitSilence(50);
  target.start(IO_FLUSH, 2, 0, 0, 0);
  expect(await peer.ended(1)).toEqual([[2, -5]]);
  expect(target.failure).toContain("nothing came from it for 50 ms");
});

test("a server whose silence is limited, and that sends a byte now and then, is not waited for without end", async () => {
  let trickle: ReturnType<typeof setInterval> | undefined;
  const peer = open((request, connection) => {
    const reply = chunk(request, 1, true, dataAt(request.offset, filled(request.length, 1)));
    let sent = 0;
    trickle = setInterval(() => void connection.write(reply.subarray(sent, ++sent)), 5);
    return undefined;
  });
  const { target, memory } = peer;
  target.start(IO_READ, 1, 0, 65536, memory.address);
  target.limitSilence(500);
  expect(await peer.ended(1)).toEqual([[1, -5]]);
  clearInterval(trickle);
  expect(target.failure).toContain("it has not replied to everything for 6000 ms");
});

describe("a program of ours that is silent", () => {
  /** Its reply to what it was asked first comes with that to the second. */
  function openSlow(holdMs: number) {
    const held: (string | undefined)[] = [];
    let first: SeenRequest | undefined;
    const answer = (request: SeenRequest): Buffer =>
      chunk(request, 1, true, dataAt(request.offset, filled(request.length, 1)));
    const reply = (request: SeenRequest): Buffer | undefined => {
      if (first !== undefined) return Buffer.concat([answer(first), answer(request)]);
      first = request;
      return undefined;
    };
    const how = { isOurs: true, connections: 1, holdMs, onHeld: (why?: string) => void held.push(why) };
    const peer = (fixture = new TargetAndPeer({ reply }, 50, how));
    peer.target.start(IO_READ, 1, 0, 512, peer.memory.address);
    return { peer, held };
  }
  const WHY = "nothing came from it for 50 ms";

  test("is waited for, because nothing that it may still do could be told from what is sent anew", async () => {
    const { peer, held } = openSlow(Infinity);
    await peer.until(() => held.length > 0);
    expect([peer.target.failure, peer.target.isServing]).toEqual([WHY, true]);
    peer.target.start(IO_READ, 2, 512, 512, peer.memory.address + 512);
    expect(await peer.ended(2)).toEqual([
      [1, 512],
      [2, 512],
    ]);
    await peer.until(() => peer.target.failure === undefined);
    expect(held).toEqual([WHY, undefined]);
    expect(peer.opened).toBe(1);
  });

  test("is not waited for longer than the disk is to be held", async () => {
    const { peer, held } = openSlow(50);
    expect(await peer.ended(1)).toEqual([[1, -5]]);
    // Longer than until it would be looked at again.
    const since = performance.now();
    await peer.until(() => performance.now() - since > 1200);
    expect([held, peer.target.failure]).toEqual([[WHY, WHY], WHY]);
  });

  test("is not waited for by a server that is to end", async () => {
    const { peer } = openSlow(Infinity);
    await peer.until(() => peer.target.failure !== undefined);
    peer.target.limitHold(0);
    peer.target.limitEnding(0);
    peer.target.limitSilence(10);
    expect(await peer.ended(1)).toEqual([[1, -5]]);
  });
});

test("a handshake with any byte changed ends, with an answer or an error", () => {
  const greeting = Buffer.from("NBDMAGICIHAVEOPT\0\x03", "latin1");
  for (let at = 0; at < greeting.length; at++) {
    const bytes = Buffer.from(greeting);
    bytes[at] ^= 0xff;
    const handshake = new NbdClientHandshake("a");
    if (at === 16) expect(handshake.step(bytes).consumed).toBe(18);
    else expect(() => handshake.step(bytes)).toThrow("NBD server");
  }
});

test("random replies end every request, and touch no memory but its own", async () => {
  const seed = chosenSeed();
  console.log(`SEED=${seed}`);
  const source = new Random(seed);
  const random = (below: number) => source.below(below);
  for (let round = 0; round < 100; round++) {
    const peer = open(
      (request) => {
        const good = chunk(
          request,
          random(2) + 1,
          random(4) > 0,
          dataAt(request.offset, filled(request.length, 1)),
        );
        const bytes = random(3) === 0 ? simple(request) : good;
        for (let changes = random(4); changes > 0; changes--)
          bytes[random(Math.min(40, bytes.length))] = random(256);
        return bytes.subarray(0, random(5) === 0 ? random(bytes.length) : bytes.length);
      },
      {},
      100,
    );
    for (let tag = 0; tag < 8; tag++)
      peer.target.start(
        tag % 2 ? IO_WRITE : IO_READ,
        tag,
        tag * 4096,
        4096,
        peer.memory.address + tag * 8192,
      );
    const ends = await peer.ended(8);
    expect(ends.map(([tag]) => tag)).toEqual([0, 1, 2, 3, 4, 5, 6, 7]);
    for (const [, result] of ends) expect(result === 4096 || (result < 0 && result >= -95)).toBe(true);
    for (let tag = 0; tag < 8; tag++)
      expect(
        peer.memory.bytes.subarray(tag * 8192 + 4096, (tag + 1) * 8192).every((byte) => byte === 0),
      ).toBe(true);
    peer.close();
    fixture = undefined;
  }
});
