// The endpoint on plain memory: a model (fast-check commands against a plain byte queue), every pair of
// orders and size across the wrap, the end of streams, and a peer that lies.
import { describe, expect, test } from "bun:test";
import { closeSync, openSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import fc from "fast-check";
import { XentoolError } from "../../src/core/errors.ts";
import {
  VCHAN_CLI_LIVE,
  VCHAN_LEFT_CONS,
  VCHAN_LEFT_PROD,
  VCHAN_SRV_LIVE,
} from "../../src/protocol/vchan.ts";
import { READ, WRITTEN, type VchanEndpoint } from "../../src/vchan/endpoint.ts";
import { openVchanClient } from "../../src/vchan/client.ts";
import { openVchanServer } from "../../src/vchan/server.ts";
import { MemoryHost } from "./vchan-memory-platform.ts";
import { ALMOST_WRAPPED, CLIENT, ORDER_PAIRS, SERVER, VchanPair } from "./vchan-pair.ts";
import { chosenSeed } from "../support/random.ts";

const seed = chosenSeed();

/** Bytes that tell their place in a stream. */
function pattern(from: number, length: number): Uint8Array {
  return Uint8Array.from({ length }, (_, i) => ((from + i) * 167 + ((from + i) >> 8)) & 0xff);
}

function kindOf(action: () => unknown): string {
  try {
    action();
  } catch (error) {
    return error instanceof XentoolError ? error.kind : String(error);
  }
  return "nothing thrown";
}

function transfer(from: VchanEndpoint, to: VchanEndpoint, bytes: Uint8Array): Uint8Array {
  const got = new Uint8Array(bytes.length);
  for (let sent = 0, received = 0; received < bytes.length;) {
    sent += from.write(bytes.subarray(sent));
    received += to.read(got.subarray(received));
  }
  return got;
}

/** Takes every event and all news, until waiting finds nothing any more. */
function settle(end: VchanEndpoint, wants: number): void {
  do end.sample();
  while (end.wait(wants, 0));
}

describe("every pair of orders", () => {
  for (const orders of ORDER_PAIRS)
    test(`left ${orders.left}, right ${orders.right}`, () => {
      using pair = new VchanPair({ orders, leftCounter: ALMOST_WRAPPED, rightCounter: ALMOST_WRAPPED });
      const { server, client } = pair;
      expect([server.readSize, server.writeSize]).toEqual([2 ** orders.left, 2 ** orders.right]);
      expect([client.readSize, client.writeSize]).toEqual([2 ** orders.right, 2 ** orders.left]);
      for (const [from, to] of [
        [client, server],
        [server, client],
      ] as const) {
        const size = from.writeSize;
        const bytes = pattern(1, 2 * size + 77);
        expect(Buffer.compare(transfer(from, to, bytes), bytes)).toBe(0);
        expect(from.write(bytes)).toBe(size);
        expect(from.write(bytes)).toBe(0);
        expect(kindOf(() => from.send(new Uint8Array(size + 1)))).toBe("usage");
        const all = new Uint8Array(size);
        expect(to.recv(all)).toBe(true);
        expect(Buffer.compare(all, bytes.subarray(0, size))).toBe(0);
      }
    });
});

test("every size from 1 to the ring's and one more, from every counter near 2^32", () => {
  using pair = new VchanPair({ leftCounter: ALMOST_WRAPPED, rightCounter: ALMOST_WRAPPED });
  const { server, client } = pair;
  for (let size = 1; size <= client.writeSize; size++) {
    const bytes = pattern(size, size);
    const got = new Uint8Array(size);
    expect(server.recv(got)).toBe(false);
    expect(client.send(bytes)).toBe(true);
    expect(server.recv(got)).toBe(true);
    if (Buffer.compare(got, bytes) !== 0) throw new Error(`size ${size} arrived changed`);
  }
  expect(kindOf(() => client.send(new Uint8Array(client.writeSize + 1)))).toBe("usage");
  expect(kindOf(() => server.recv(new Uint8Array(server.readSize + 1)))).toBe("usage");
});

describe("against a plain queue of bytes", () => {
  interface Model {
    readonly queues: [number[], number[]];
    readonly ended: [boolean, boolean];
    readonly closed: [boolean, boolean];
    next: number;
  }
  type Real = { readonly ends: readonly [VchanEndpoint, VchanEndpoint] };
  const side = fc.constantFrom(0, 1);
  const length = fc.oneof(fc.integer({ min: 1, max: 40 }), fc.integer({ min: 1, max: 2100 }));
  const other = (who: 0 | 1): 0 | 1 => (who === 0 ? 1 : 0);
  const isOver = (model: Readonly<Model>, who: 0 | 1): boolean => model.ended[who] || model.closed[who];

  class Write implements fc.Command<Model, Real> {
    constructor(
      readonly who: 0 | 1,
      readonly length: number,
      readonly exact: boolean,
    ) {}
    check = (model: Readonly<Model>): boolean => !isOver(model, this.who);
    run(model: Model, { ends }: Real): void {
      const end = ends[this.who];
      const queue = model.queues[this.who];
      const bytes = pattern(model.next, this.length);
      const room = end.writeSize - queue.length;
      let written = Math.min(room, this.length);
      if (this.exact && this.length > end.writeSize) {
        expect(kindOf(() => end.send(bytes))).toBe("usage");
        written = 0;
      } else if (model.closed[other(this.who)]) {
        expect(kindOf(() => (this.exact ? end.send(bytes) : end.write(bytes)))).toBe("io");
        written = 0;
      } else if (!this.exact) expect(end.write(bytes)).toBe(written);
      else {
        expect(end.send(bytes)).toBe(room >= this.length);
        if (room < this.length) written = 0;
      }
      queue.push(...bytes.subarray(0, written));
      model.next += written;
    }
    toString = (): string => `${this.exact ? "send" : "write"}(${this.who}, ${this.length})`;
  }

  class Read implements fc.Command<Model, Real> {
    constructor(
      readonly who: 0 | 1,
      readonly length: number,
      readonly exact: boolean,
    ) {}
    check = (model: Readonly<Model>): boolean => !model.closed[this.who];
    run(model: Model, { ends }: Real): void {
      const end = ends[this.who];
      const queue = model.queues[other(this.who)];
      const into = new Uint8Array(this.length);
      let count = Math.min(queue.length, this.length);
      if (!this.exact) expect(end.read(into)).toBe(count);
      else if (this.length > end.readSize) {
        expect(kindOf(() => end.recv(into))).toBe("usage");
        return;
      } else if (queue.length < this.length && isOver(model, other(this.who))) {
        expect(kindOf(() => end.recv(into))).toBe("io");
        count = 0;
      } else {
        expect(end.recv(into)).toBe(queue.length >= this.length);
        if (queue.length < this.length) count = 0;
      }
      expect([...into.subarray(0, count)]).toEqual(queue.splice(0, count));
      expect(end.atEnd).toBe(isOver(model, other(this.who)) && queue.length === 0);
    }
    toString = (): string => `${this.exact ? "recv" : "read"}(${this.who}, ${this.length})`;
  }

  class Look implements fc.Command<Model, Real> {
    constructor(readonly who: 0 | 1) {}
    check = (model: Readonly<Model>): boolean => !model.closed[this.who];
    run(model: Model, { ends }: Real): void {
      const end = ends[this.who];
      end.sample();
      expect(end.readable).toBe(model.queues[other(this.who)].length);
      expect(end.unread).toBe(model.queues[this.who].length);
      expect(end.writable + end.unread).toBe(end.writeSize);
    }
    toString = (): string => `look(${this.who})`;
  }

  /** What is there already is never waited for; with nothing there, waiting 0 ms finds nothing. */
  class Wait implements fc.Command<Model, Real> {
    constructor(readonly who: 0 | 1) {}
    check = (model: Readonly<Model>): boolean => !model.closed[this.who];
    run(_model: Model, { ends }: Real): void {
      const end = ends[this.who];
      settle(end, WRITTEN | READ);
      expect(end.wait(WRITTEN | READ, 0)).toBe(false);
    }
    toString = (): string => `wait(${this.who})`;
  }

  class End implements fc.Command<Model, Real> {
    constructor(
      readonly who: 0 | 1,
      readonly isCut: boolean,
    ) {}
    check = (model: Readonly<Model>): boolean => !isOver(model, this.who);
    run(model: Model, { ends }: Real): void {
      if (this.isCut) ends[this.who].cutStream();
      else ends[this.who].endStream();
      model.ended[this.who] = true;
      const peer = ends[other(this.who)];
      if (model.closed[other(this.who)]) return;
      peer.sample();
      expect([peer.peerEnded, peer.peerCut]).toEqual([true, this.isCut]);
    }
    toString = (): string => `${this.isCut ? "cut" : "end"}(${this.who})`;
  }

  /** Only now and then, because not much happens afterwards: what was written is read, and no more comes. */
  class Close implements fc.Command<Model, Real> {
    constructor(
      readonly who: 0 | 1,
      readonly chance: number,
    ) {}
    check = (model: Readonly<Model>): boolean => this.chance === 0 && !model.closed[this.who];
    run(model: Model, { ends }: Real): void {
      ends[this.who].close();
      model.closed[this.who] = true;
    }
    toString = (): string => `close(${this.who})`;
  }

  for (const orders of [
    { left: 10, right: 11 },
    { left: 12, right: 10 },
  ])
    test(`orders ${orders.left} and ${orders.right}, seed ${seed}`, () => {
      const commands = fc.commands(
        [
          fc.tuple(side, length, fc.boolean()).map((args) => new Write(...args)),
          fc.tuple(side, length, fc.boolean()).map((args) => new Read(...args)),
          side.map((who) => new Look(who)),
          side.map((who) => new Wait(who)),
          fc.tuple(side, fc.boolean()).map((args) => new End(...args)),
          fc.tuple(side, fc.nat(15)).map((args) => new Close(...args)),
        ],
        { size: "large", maxCommands: 300 },
      );
      const property = fc.property(commands, fc.nat(4000), fc.nat(4000), (list, back, right) => {
        const leftCounter = 2 ** 32 - 1 - back;
        using pair = new VchanPair({ orders, leftCounter, rightCounter: 2 ** 32 - 1 - right });
        const model: Model = { queues: [[], []], ended: [false, false], closed: [false, false], next: 0 };
        const real: Real = { ends: [pair.server, pair.client] };
        fc.modelRun(() => ({ model, real }), list);
      });
      fc.assert(property, { seed, numRuns: 60 });
    });
});

describe("the end of a vchan", () => {
  test("what was written before closing is read before the end is seen", () => {
    using pair = new VchanPair();
    const { server, client } = pair;
    const bytes = pattern(3, 700);
    server.write(bytes);
    server.close();
    const got = new Uint8Array(1000);
    expect(client.read(got.subarray(0, 300))).toBe(300);
    expect([client.peerClosed, client.atEnd]).toEqual([true, false]);
    expect(client.recv(got.subarray(300, 700))).toBe(true);
    expect([...got.subarray(0, 700)]).toEqual([...bytes]);
    expect([client.read(got), client.atEnd]).toEqual([0, true]);
    expect(kindOf(() => client.write(bytes))).toBe("io");
    expect(kindOf(() => client.send(bytes))).toBe("io");
    expect(kindOf(() => client.recv(got))).toBe("io");
  });

  test("both ends hear of each other's closing at once", () => {
    for (const closer of ["server", "client"] as const) {
      using pair = new VchanPair();
      const [closing, other] = closer === "server" ? [pair.server, pair.client] : [pair.client, pair.server];
      settle(other, WRITTEN);
      closing.close();
      expect(other.wait(WRITTEN, 1000)).toBe(true);
      other.sample();
      expect([other.peerClosed, other.atEnd]).toEqual([true, true]);
    }
  });

  test("a peer that speaks of the end is told of it, and the other direction goes on", () => {
    using pair = new VchanPair();
    const { server, client } = pair;
    server.sample();
    client.sample();
    expect([server.peerSpeaksOfEnd, client.peerSpeaksOfEnd]).toEqual([true, true]);
    client.write(pattern(0, 10));
    client.endStream();
    expect(server.wait(WRITTEN, 1000)).toBe(true);
    server.sample();
    expect([server.peerEnded, server.atEnd, server.peerClosed]).toEqual([true, false, false]);
    expect(server.read(new Uint8Array(100))).toBe(10);
    expect(server.atEnd).toBe(true);
    expect(server.write(pattern(0, 99))).toBe(99);
    expect(client.read(new Uint8Array(100))).toBe(99);
  });

  test("a page that libxenvchan made is that of a peer which does not speak of the end", () => {
    using pair = new VchanPair();
    const { server, client } = pair;
    pair.server.page.bytes.fill(0, 1016, 1024);
    server.sample();
    client.sample();
    expect([server.peerSpeaksOfEnd, client.peerSpeaksOfEnd, client.atEnd]).toEqual([false, false, false]);
  });

  test("a server waits for its client, who may come and go before it looks", () => {
    const host = new MemoryHost();
    using server = openVchanServer(host.platform(SERVER), {
      peer: CLIENT,
      orders: { left: 10, right: 11 },
    }).endpoint;
    server.sample();
    expect([server.connected, server.peerClosed]).toEqual([false, false]);
    server.page.bytes[VCHAN_CLI_LIVE] = 0;
    server.sample();
    expect([server.connected, server.peerClosed]).toEqual([true, true]);
  });
});

describe("opening", () => {
  test("a second client, a closed server and unheard-of references are told apart from a connection", () => {
    using pair = new VchanPair();
    expect(kindOf(() => pair.connect())).toBe("environment");
    pair.client.close();
    pair.server.close();
    expect(kindOf(() => pair.connect())).toBe("environment");
    pair.host.assertNothingLeft();
  });

  test("a server that went while a client looked at its page is stale", () => {
    for (const grant of [0, 1]) {
      const host = new MemoryHost();
      const orders = { left: 12, right: 12 };
      const { endpoint, ringRef, port } = openVchanServer(host.platform(SERVER), { peer: CLIENT, orders });
      endpoint.page.words[6 + grant] = 0;
      const opening = (): unknown => openVchanClient(host.platform(CLIENT), { peer: SERVER, ringRef, port });
      expect(opening).toThrow("nobody answers there any more");
      // A server that is still there must not take this for a client whose stream is complete.
      endpoint.sample();
      expect([endpoint.peerClosed, endpoint.peerLost]).toEqual([true, true]);
      endpoint.close();
      host.assertNothingLeft();
    }
  });

  test("a server that died with its keys in place is stale", () => {
    using pair = new VchanPair();
    pair.client.close();
    pair.server.page.bytes[VCHAN_SRV_LIVE] = 0;
    let thrown: unknown;
    try {
      pair.connect();
    } catch (error) {
      thrown = error;
    }
    expect((thrown as XentoolError).context["reason"]).toBe("no-server");
  });

  test("our server's rings are for one client; libxenvchan's may be for one after another", () => {
    using pair = new VchanPair();
    pair.server.write(pattern(0, 10));
    pair.client.close();
    expect(kindOf(() => pair.connect())).toBe("environment");
    pair.server.page.bytes.fill(0, 1016, 1024);
    using second = pair.connect();
    expect(second.read(new Uint8Array(100))).toBe(10);
  });

  test("orders out of range are a protocol error with the numbers in it", () => {
    for (const [left, right] of [
      [9, 12],
      [12, 21],
      [10, 10],
      [11, 11],
      [10, 20],
      [0, 0],
      [65535, 12],
    ] as const) {
      using pair = new VchanPair();
      pair.client.close();
      const view = new DataView(pair.server.page.bytes.buffer);
      view.setUint16(16, left, true);
      view.setUint16(18, right, true);
      view.setUint8(VCHAN_CLI_LIVE, 2);
      let thrown: unknown;
      try {
        pair.connect();
      } catch (error) {
        thrown = error;
      }
      expect((thrown as XentoolError).kind).toBe("protocol");
      expect((thrown as XentoolError).context).toMatchObject({ left, right });
    }
  });

  test("no pages left: nothing is left behind", () => {
    const host = new MemoryHost();
    host.pagesMax = 20;
    const orders = { left: 16, right: 16 };
    expect(kindOf(() => openVchanServer(host.platform(SERVER), { peer: CLIENT, orders }))).toBe("io");
    host.assertNothingLeft();
  });
});

describe("a peer that lies", () => {
  const lies: [string, number, (honest: number) => number][] = [
    ["prod beyond a full ring", VCHAN_LEFT_PROD, (honest) => honest + 1025],
    ["prod far away", VCHAN_LEFT_PROD, (honest) => honest + 0x8000_0000],
    ["prod back behind our cons", VCHAN_LEFT_PROD, (honest) => honest - 500],
    ["prod back to what was seen", VCHAN_LEFT_PROD, (honest) => honest - 1],
  ];
  for (const [name, offset, lie] of lies)
    test(name, () => {
      using pair = new VchanPair({ leftCounter: ALMOST_WRAPPED });
      const { server, client } = pair;
      client.write(pattern(0, 100));
      server.read(new Uint8Array(50));
      const honest = server.page.words[offset / 4];
      server.page.words[offset / 4] = lie(honest);
      let thrown: unknown;
      try {
        server.sample();
      } catch (error) {
        thrown = error;
      }
      expect((thrown as XentoolError).kind).toBe("protocol");
      expect((thrown as XentoolError).message).toContain(String(lie(honest) >>> 0));
      expect((thrown as XentoolError).message).toContain("1024");
    });

  test("cons beyond what was written, and cons going back", () => {
    for (const lie of [1, 1025, -1, -2000]) {
      using pair = new VchanPair({ leftCounter: ALMOST_WRAPPED });
      const { server, client } = pair;
      client.write(pattern(0, 100));
      server.read(new Uint8Array(100));
      client.sample();
      const words = client.page.words;
      words[VCHAN_LEFT_CONS / 4] = words[VCHAN_LEFT_CONS / 4] + lie;
      expect(kindOf(() => client.sample())).toBe("protocol");
    }
  });

  test(`our own words changed by the peer change nothing, seed ${seed}`, () => {
    const bytes = fc.uint8Array({ minLength: 24, maxLength: 24 });
    fc.assert(
      fc.property(fc.array(bytes, { minLength: 1, maxLength: 30 }), (pages) => {
        using pair = new VchanPair({ orders: { left: 12, right: 10 } });
        const { server, client } = pair;
        let sent = 0;
        let received = 0;
        for (const page of pages) {
          sent += client.write(pattern(sent, 600));
          // Everything that belongs to the server is scribbled over: its counters, orders and live byte.
          const words = server.page.words;
          const kept = [words[VCHAN_LEFT_PROD / 4], words[2], server.page.bytes[VCHAN_CLI_LIVE]] as number[];
          server.page.bytes.set(page);
          words[VCHAN_LEFT_PROD / 4] = kept[0];
          words[2] = kept[1];
          server.page.bytes[VCHAN_CLI_LIVE] = kept[2];
          const into = new Uint8Array(900);
          const count = server.read(into);
          expect([...into.subarray(0, count)]).toEqual([...pattern(received, count)]);
          received += count;
          // The client's view of the server's counters is honest again after this.
          words[0] = received;
          words[3] = 0;
          server.page.bytes[VCHAN_SRV_LIVE] = 1;
        }
      }),
      { seed, numRuns: 50 },
    );
  });

  test(`any bytes at any moment end in an error or in silence, never in a crash, seed ${seed}`, () => {
    const scribble = fc.tuple(
      fc.integer({ min: 0, max: 1023 }),
      fc.uint8Array({ minLength: 1, maxLength: 8 }),
    );
    fc.assert(
      fc.property(fc.array(scribble, { maxLength: 40 }), (scribbles) => {
        using pair = new VchanPair({ orders: { left: 12, right: 10 } });
        const { server } = pair;
        const kinds = new Set<string>();
        for (const [at, bytes] of scribbles) {
          server.page.bytes.set(bytes, Math.min(at, 1024 - bytes.length));
          kinds.add(kindOf(() => server.read(new Uint8Array(5000))));
          kinds.add(kindOf(() => server.write(new Uint8Array(5000))));
          kinds.add(kindOf(() => server.wait(WRITTEN | READ, 0)));
        }
        for (const kind of kinds) expect(["protocol", "io", "nothing thrown"]).toContain(kind);
      }),
      { seed, numRuns: 200 },
    );
  });
});

describe("notifications", () => {
  test("only who asked is told, once, and the request is taken back", () => {
    using pair = new VchanPair();
    const { server, client } = pair;
    client.write(pattern(0, 1));
    const before = client.counts.eventsSent;
    client.write(pattern(0, 1));
    client.write(pattern(0, 1));
    expect(client.counts.eventsSent).toBe(before);
    settle(server, WRITTEN);
    client.write(pattern(0, 1));
    client.write(pattern(0, 1));
    expect(client.counts.eventsSent).toBe(before + 1);
    const received = server.counts.eventsReceived;
    server.sample();
    expect(server.wait(WRITTEN, 1000)).toBe(true);
    expect(server.counts.eventsReceived).toBe(received + 1);
  });

  test("a full ring asks to be told of reading", () => {
    using pair = new VchanPair();
    const { server, client } = pair;
    client.write(pattern(0, 2000));
    settle(client, READ);
    const before = server.counts.eventsSent;
    server.read(new Uint8Array(10));
    expect(server.counts.eventsSent).toBe(before + 1);
    client.sample();
    const received = client.counts.eventsReceived;
    expect(client.wait(READ, 1000)).toBe(true);
    expect(client.counts.eventsReceived).toBe(received + 1);
    expect(client.writable).toBe(10);
  });
});

test("files go into the ring and come out of it", () => {
  const source = join(tmpdir(), `xentool-vchan-${process.pid}-in`);
  const target = join(tmpdir(), `xentool-vchan-${process.pid}-out`);
  const bytes = pattern(5, 5000);
  writeFileSync(source, bytes);
  const from = openSync(source, "r");
  const to = openSync(target, "w");
  try {
    using pair = new VchanPair({ leftCounter: ALMOST_WRAPPED });
    const { server, client } = pair;
    for (let ended = false; !ended || server.readable > 0;) {
      client.sample();
      const filled = client.fill(from, false, 700);
      if (filled === 0) ended = true;
      server.sample();
      server.drain(to, false, 900);
    }
    expect(readFileSync(target)).toEqual(Buffer.from(bytes));
  } finally {
    closeSync(from);
    closeSync(to);
    rmSync(source);
    rmSync(target);
  }
});
