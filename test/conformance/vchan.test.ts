// The vchan on the simulated platform, with the endpoints of two domains: every pair of orders across the
// wrap of the counters, what the platform must do at the end of either side, limits, a hostile domain, and a
// full-duplex stream that lasts VCHAN_SECONDS (60 for the whole minute).
import { afterAll, beforeAll, describe, expect, test } from "bun:test";
import { XentoolError } from "../../src/core/errors.ts";
import { toDomid } from "../../src/core/types.ts";
import type { SimPlatform } from "../../src/platform/sim.ts";
import { VCHAN_END_CUT, VCHAN_END_REACHED, VCHAN_END_SPOKEN } from "../../src/protocol/vchan.ts";
import { SimHost } from "../../src/sim/host.ts";
import { openVchanClient } from "../../src/vchan/client.ts";
import { READ, WRITTEN, type VchanEndpoint } from "../../src/vchan/endpoint.ts";
import { openVchanServer, type VchanServerOptions } from "../../src/vchan/server.ts";
import { ALMOST_WRAPPED, ORDER_PAIRS } from "../unit/vchan-pair.ts";
import { chosenSeed } from "../support/random.ts";

const seed = chosenSeed();
const seconds = Number(process.env["VCHAN_SECONDS"] ?? 2);
/** With rings of order 12 and above. */
const END_WORDS_AT = 4088;
const END_WORDS = [0, VCHAN_END_SPOKEN, VCHAN_END_REACHED, VCHAN_END_CUT, 0xffff_ffff];
const SERVER = toDomid(1);
const CLIENT = toDomid(2);

let host: SimHost;
beforeAll(async () => {
  host = await SimHost.start({ domains: 3 });
});
afterAll(async () => {
  const leaks = await host.settle();
  await host.stop();
  expect(leaks).toEqual([]);
});

class SimPair implements Disposable {
  readonly serverPlatform: SimPlatform = host.platform(SERVER);
  readonly clientPlatform: SimPlatform = host.platform(CLIENT);
  readonly server: VchanEndpoint;
  readonly client: VchanEndpoint;

  constructor(options: Partial<VchanServerOptions> = {}) {
    const opened = openVchanServer(this.serverPlatform, {
      peer: CLIENT,
      orders: { left: 12, right: 12 },
      ...options,
    });
    this.server = opened.endpoint;
    const { ringRef, port } = opened;
    this.client = openVchanClient(this.clientPlatform, { peer: SERVER, ringRef, port });
  }

  [Symbol.dispose](): void {
    this.client.close();
    this.server.close();
    this.clientPlatform.close();
    this.serverPlatform.close();
  }
}

/** A generator of bytes (xorshift32) and its mirror, which says where a stream differs. */
class Stream {
  #state: number;
  position = 0;

  constructor(start: number) {
    this.#state = (start | 1) >>> 0;
  }

  next(): number {
    let x = this.#state;
    x ^= x << 13;
    x ^= x >>> 17;
    x ^= x << 5;
    this.#state = x >>> 0;
    this.position++;
    return this.#state & 0xff;
  }

  fill(into: Uint8Array): void {
    for (let i = 0; i < into.length; i++) into[i] = this.next();
  }

  check(bytes: Uint8Array): void {
    for (const byte of bytes)
      if (byte !== this.next()) throw new Error(`byte ${this.position - 1} of the stream arrived changed`);
  }
}

describe("every pair of orders", () => {
  for (const orders of ORDER_PAIRS)
    test(`left ${orders.left}, right ${orders.right}`, () => {
      using pair = new SimPair({ orders, leftCounter: ALMOST_WRAPPED, rightCounter: ALMOST_WRAPPED });
      const ends = [pair.server, pair.client] as const;
      for (const [from, to] of [ends, [...ends].reverse()] as [VchanEndpoint, VchanEndpoint][]) {
        const sent = Buffer.alloc(from.writeSize + 1);
        new Stream(seed + from.writeSize).fill(sent);
        expect(from.write(sent)).toBe(from.writeSize);
        expect(from.write(sent)).toBe(0);
        const half = to.readSize / 2;
        const got = Buffer.alloc(from.writeSize + half);
        expect(to.recv(got.subarray(0, half))).toBe(true);
        expect(from.write(sent.subarray(0, half + 1))).toBe(half);
        expect(to.read(got.subarray(half))).toBe(from.writeSize);
        const expected = Buffer.concat([sent.subarray(0, from.writeSize), sent.subarray(0, half)]);
        expect(Buffer.compare(got, expected)).toBe(0);
      }
    });
});

test("every size up to the ring's and one more, each way, across the wrap", () => {
  using pair = new SimPair({
    orders: { left: 10, right: 11 },
    leftCounter: ALMOST_WRAPPED,
    rightCounter: ALMOST_WRAPPED,
  });
  for (const [from, to] of [
    [pair.server, pair.client],
    [pair.client, pair.server],
  ] as const) {
    const out = new Stream(seed);
    const back = new Stream(seed);
    const got = new Uint8Array(from.writeSize);
    for (let size = 1; size <= from.writeSize; size++) {
      const sent = new Uint8Array(size);
      out.fill(sent);
      expect(from.send(sent)).toBe(true);
      expect(to.recv(got.subarray(0, size))).toBe(true);
      back.check(got.subarray(0, size));
    }
    const more = new Uint8Array(from.writeSize + 1);
    expect(() => from.send(more)).toThrow(XentoolError);
    expect(from.write(more)).toBe(from.writeSize);
    expect(to.read(more)).toBe(from.writeSize);
  }
});

describe("the end", () => {
  for (const crash of [false, true])
    for (const victim of ["server", "client"] as const)
      test(`the ${victim} ${crash ? "dies" : "closes"}: the other is woken, reads what is left, and sees it`, async () => {
        const pair = new SimPair({ looks: false });
        const [dying, other] = victim === "server" ? [pair.server, pair.client] : [pair.client, pair.server];
        do other.sample();
        while (other.wait(WRITTEN, 0));
        dying.write(Buffer.from("last words"));
        if (crash) (victim === "server" ? pair.serverPlatform : pair.clientPlatform).crash();
        else dying.close();
        // The host, which plays the kernel, runs in this very thread.
        const deadline = performance.now() + 20_000;
        while (!other.peerClosed) {
          expect(performance.now()).toBeLessThan(deadline);
          await Bun.sleep(1);
          other.wait(WRITTEN, 0);
          other.sample();
        }
        expect(other.atEnd).toBe(false);
        const words = Buffer.alloc(10);
        expect(other.recv(words)).toBe(true);
        expect([words.toString(), other.atEnd]).toEqual(["last words", true]);
        other.close();
        // Of the dead one's handles only the memory is left to be given back, and that it says.
        if (crash) expect(() => dying.close()).toThrow();
        pair.serverPlatform.close();
        pair.clientPlatform.close();
      });
});

test("gntalloc's limit: refused as a whole, and nothing is left of it", () => {
  using platform = host.platform(SERVER);
  const open = [];
  const orders = { left: 20, right: 20 };
  let thrown: unknown;
  try {
    for (;;) open.push(openVchanServer(platform, { peer: CLIENT, orders }).endpoint);
  } catch (error) {
    thrown = error;
  }
  expect(open).toHaveLength(1);
  expect((thrown as XentoolError).message).toContain("may grant");
  for (const endpoint of open) endpoint.close();
});

test(`full duplex for ${seconds} s with small and large pieces, seed ${seed}`, () => {
  for (const orders of [
    { left: 10, right: 11 },
    { left: 16, right: 13 },
  ]) {
    using pair = new SimPair({
      orders,
      leftCounter: ALMOST_WRAPPED,
      rightCounter: ALMOST_WRAPPED,
      looks: false,
    });
    const lengths = new Stream(seed);
    const pieces = [pair.server, pair.client].map((end, i) => ({
      end,
      out: new Stream(seed + 100 + i),
      back: new Stream(seed + 101 - i),
      piece: new Uint8Array(0),
    }));
    const deadline = performance.now() + (seconds * 1000) / 2;
    while (performance.now() < deadline) {
      for (const side of pieces) {
        if (side.piece.length === 0) {
          side.piece = new Uint8Array(1 + lengths.next() * (1 + (lengths.next() & 0x1f)));
          side.out.fill(side.piece);
        }
        side.piece = side.piece.subarray(side.end.write(side.piece));
        const into = new Uint8Array(1 + lengths.next() * 16);
        side.back.check(into.subarray(0, side.end.read(into)));
        side.end.wait(WRITTEN | READ, 0);
      }
    }
    for (const { back } of pieces) expect(back.position).toBeGreaterThan(10_000);
  }
}, 70_000);

test(`a hostile domain scribbles over the page at any moment, seed ${seed}`, () => {
  const random = new Stream(seed);
  const number = (): number =>
    random.next() | (random.next() << 8) | (random.next() << 16) | (random.next() << 24);
  for (let round = 0; round < 200; round++) {
    using pair = new SimPair();
    const [victim, liar] = round % 2 === 0 ? [pair.server, pair.client] : [pair.client, pair.server];
    const view = new DataView(liar.page.bytes.buffer);
    const kinds = new Set<string>();
    for (let step = 0; step < 20; step++) {
      const at = random.next() % 32;
      if (at < 16) view.setUint32(at & ~3, number(), true);
      else if (at < 24) view.setUint8(at, random.next());
      else view.setUint32(END_WORDS_AT + (at & 4), END_WORDS[random.next() % END_WORDS.length], true);
      for (const action of [
        () => victim.read(new Uint8Array(100)),
        () => victim.write(new Uint8Array(random.next())),
        () => victim.wait(WRITTEN | READ, 0),
      ])
        try {
          action();
        } catch (error) {
          kinds.add(error instanceof XentoolError ? error.kind : String(error));
        }
    }
    for (const kind of kinds) expect(["protocol", "io"]).toContain(kind);
  }
});
