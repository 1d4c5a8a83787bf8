// The client where the server is slow, wrong or gone: connecting, losing the connection, broken replies,
// floods of watch events, listings in parts, and the kernel's character device.
import { afterEach, beforeEach, describe, expect, test } from "bun:test";
import { execFileSync } from "node:child_process";
import { readdirSync, rmSync } from "node:fs";
import { join } from "node:path";
import * as xs from "../../src/protocol/xs-wire.ts";
import { Xenstore } from "../../src/xenstore/client.ts";
import { errnoOf } from "../../src/xenstore/errors.ts";
import { XenstoreServer } from "../../src/xenstore/server/server.ts";
import { openTransport } from "../../src/xenstore/open.ts";
import type { XenstoreTransport } from "../../src/xenstore/transport.ts";
import { DeviceTransport, type DeviceFile } from "../../src/xenstore/transports/device.ts";
import { WatchEvents } from "../../src/xenstore/watch-events.ts";
import { removeDirectory, temporaryDirectory } from "../support/temporary.ts";
import { openDescriptors } from "../support/descriptors.ts";

let dir: string;
beforeEach(() => {
  dir = temporaryDirectory();
});
afterEach(() => {
  expect(readdirSync(dir)).toEqual([]);
  removeDirectory(dir);
});

const failure = (promise: Promise<unknown>): Promise<unknown> =>
  promise.then(
    () => "no failure",
    (error: unknown) => error,
  );

/** A client whose server is the function `answer`: it gets each request and may send any bytes. */
function scripted(
  answer: (request: xs.XsPacket, send: (bytes: Uint8Array) => void) => void,
  oneAtATime = false,
): Xenstore & { closed: boolean } {
  const parser = new xs.XsPacketParser();
  const transport: XenstoreTransport = {
    name: "a script",
    payloadBytesMax: 100,
    oneAtATime,
    onData: () => {},
    onClose: () => {},
    write: (packet) => {
      parser.push(packet);
      const request = parser.next() as xs.XsPacket;
      queueMicrotask(() => answer(request, (bytes) => transport.onData(bytes)));
    },
    close: () => {
      client.closed = true;
    },
  };
  const client = Object.assign(new Xenstore(transport), { closed: false });
  return client;
}

describe("connecting", () => {
  test("nothing there is an environment error", async () => {
    const error = await failure(Xenstore.connect({ kind: "socket", path: join(dir, "none") }));
    expect(error).toMatchObject({ kind: "environment" });
    expect(String(error)).toContain(join(dir, "none"));
    expect(await failure(Xenstore.connect({ kind: "device", path: join(dir, "none") }))).toMatchObject({
      kind: "environment",
    });
  });

  test("a server that does not answer is a timeout", async () => {
    const path = join(dir, "silent");
    const silent = Bun.listen({ unix: path, socket: { data: () => {} } });
    expect(await failure(Xenstore.connect({ kind: "socket", path }, { timeoutMs: 30 }))).toMatchObject({
      kind: "timeout",
    });
    silent.stop(true);
    rmSync(path, { force: true });
  });
});

test("a transport that carries one request at a time gets the next when the last is answered", async () => {
  const log: string[] = [];
  const client = scripted((request, send) => {
    const name = xs.decodeText(request.payload).replace(/\0.*$/s, "");
    log.push(`asked ${name}`);
    setTimeout(() => {
      log.push(`told ${name}`);
      const kind = name === "/c" ? xs.XS_ERROR : request.type;
      send(xs.encodePacket(kind, request.reqId, 0, xs.encodeStrings(name === "/c" ? "EINVAL" : name)));
    }, 1);
  }, true);
  const names = ["/a", "/b", "/c", "/d"];
  const results = await Promise.allSettled(names.map((name) => client.tryRead(name)));
  expect(log).toEqual(names.flatMap((name) => [`asked ${name}`, `told ${name}`]));
  expect(results.map(({ status }) => status)).toEqual(["fulfilled", "fulfilled", "rejected", "fulfilled"]);
  expect(client.statistics.pendingRequests).toBe(0);
  client.close();
});

describe("a server that goes away", () => {
  test("fails everything that waits, says so, and fails everything after", async () => {
    const path = join(dir, "socket");
    const server = new XenstoreServer({ personality: "oxenstored" });
    await server.listen(path, 0);
    const client = await Xenstore.connect({ kind: "socket", path });
    const reported: unknown[] = [];
    const lost = new Promise<void>((resolve) => {
      client.onClose((error) => {
        reported.push(error);
        resolve();
      });
    });
    await client.watch("/a", () => {});
    server.handle = () => {};
    const waiting = failure(client.waitFor("/b", () => false, { timeoutMs: 10_000 }));
    const reading = failure(client.read("/a"));
    while (client.statistics.pendingRequests < 2) await new Promise(setImmediate);
    server.close();
    await lost;
    const error = client.failure;
    expect(error?.kind).toBe("io");
    expect(error?.message).toContain("went away");
    expect(reported).toEqual([error]);
    expect(await reading).toBe(error);
    expect(await waiting).toBe(error);
    expect(await failure(client.read("/a"))).toBe(client.failure);
    expect(client.statistics.pendingRequests).toBe(0);
    client.close();
    expect(reported).toHaveLength(1);
  });

  test("closing on purpose cancels what waits and is not reported", async () => {
    const server = new XenstoreServer({ personality: "oxenstored" });
    const client = new Xenstore(server.connectDirectly(0));
    let reports = 0;
    client.onClose(() => reports++);
    const reading = failure(client.read("/tool"));
    client.close();
    expect(await reading).toMatchObject({ kind: "cancelled" });
    expect(reports).toBe(0);
    expect(server.statistics.connections).toBe(0);
    server.close();
  });
});

test.each(["oxenstored", "xenstored-4.17"] as const)(
  "%s: more transactions at a time than a domain may have wait for each other",
  async (personality) => {
    const server = new XenstoreServer({ personality });
    server.introduce(1);
    const [toolstack, client] = [0, 1].map((domid) => new Xenstore(server.connectDirectly(domid)));
    await toolstack.write("/d", "x");
    await toolstack.setPerms("/d", [{ domid: 0, access: "read" }]);
    const work = Array.from({ length: 40 }, () => client.transaction((tx) => tx.read("/d")));
    expect(new Set(await Promise.all(work))).toEqual(new Set(["x"]));
    for (const it of [client, toolstack]) it.close();
    server.close();
  },
);

describe("a server that is wrong", () => {
  const reply = (request: xs.XsPacket, type: number, payload: Uint8Array): Uint8Array =>
    xs.encodePacket(type, request.reqId, request.txId, payload);

  test.each<[string, (request: xs.XsPacket) => Uint8Array]>([
    ["another type", (request) => reply(request, xs.XS_WRITE, xs.encodeStrings("OK"))],
    [
      "another id",
      (request) => reply({ ...request, reqId: request.reqId ^ 1 }, request.type, xs.encodeStrings("x")),
    ],
    ["an overlong header", () => Uint8Array.from([2, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0x10, 0, 0])],
    ["a watch event of one string", () => xs.encodePacket(xs.XS_WATCH_EVENT, 0, 0, xs.encodeStrings("/a"))],
  ])("%s ends the connection with a protocol error", async (_name, wrong) => {
    const client = scripted((request, send) => send(wrong(request)));
    expect(await failure(client.read("/a"))).toMatchObject({ kind: "protocol" });
    expect(client.failure).toMatchObject({ kind: "protocol" });
    expect(client.closed).toBe(true);
  });

  test("an error that nobody knows keeps its name, made harmless", async () => {
    const client = scripted((request, send) =>
      send(reply(request, xs.XS_ERROR, xs.encodeStrings("E\u001bWEIRD"))),
    );
    const error = await failure(client.read("/a"));
    expect(errnoOf(error)).toBe("E\\x1bWEIRD");
    client.close();
  });

  test("permissions, transaction ids and listings are checked", async () => {
    const answers: Record<number, Uint8Array> = {
      [xs.XS_GET_PERMS]: xs.encodeStrings("z9"),
      [xs.XS_TRANSACTION_START]: xs.encodeStrings("no number"),
      [xs.XS_DIRECTORY_PART]: xs.encodeText("no separator"),
    };
    const client = scripted((request, send) => {
      const answer = answers[request.type];
      send(
        answer === undefined
          ? reply(request, xs.XS_ERROR, xs.encodeStrings("E2BIG"))
          : reply(request, request.type, answer),
      );
    });
    expect(await failure(client.getPerms("/a"))).toMatchObject({ kind: "protocol" });
    expect(await failure(client.transaction(async () => {}))).toMatchObject({ kind: "protocol" });
    expect(await failure(client.directory("/a"))).toMatchObject({ kind: "protocol" });
    client.close();
  });

  test("permission denied is an environment error", async () => {
    const client = scripted((request, send) => send(reply(request, xs.XS_ERROR, xs.encodeStrings("EACCES"))));
    const error = await failure(client.read("/a\u001b[2J"));
    expect(error).toMatchObject({ kind: "environment", context: { errno: "EACCES", operation: "READ" } });
    expect(String(error)).not.toContain("\u001b");
    client.close();
  });

  test("a directory that changes between its parts is read again, but not for ever", async () => {
    let parts = 0;
    const changing = scripted((request, send) => {
      if (request.type === xs.XS_DIRECTORY)
        return send(reply(request, xs.XS_ERROR, xs.encodeStrings("E2BIG")));
      const offset = xs.decodeStrings(request.payload)?.[1];
      const generation = ++parts < 4 ? parts : 4;
      const names = offset === "0" ? ["a", "b"] : ["c", ""];
      send(reply(request, request.type, xs.encodeStrings(String(generation), ...names)));
    });
    expect(await changing.directory("/d")).toEqual(["a", "b", "c"]);
    changing.close();
    let generation = 0;
    const never = scripted((request, send) => {
      if (request.type === xs.XS_DIRECTORY)
        return send(reply(request, xs.XS_ERROR, xs.encodeStrings("E2BIG")));
      send(reply(request, request.type, xs.encodeStrings(String(++generation), "a")));
    });
    expect(await failure(never.directory("/d"))).toMatchObject({ kind: "io" });
    never.close();
  });

  test("what the transport cannot carry is not sent", async () => {
    const client = scripted((request, send) => send(reply(request, request.type, xs.encodeStrings("OK"))));
    await client.write("/a", "x".repeat(97));
    expect(errnoOf(await failure(client.write("/a", "x".repeat(98))))).toBe("E2BIG");
    client.close();
  });

  test("a transaction that is always too late ends with EAGAIN", async () => {
    let starts = 0;
    const client = scripted((request, send) => {
      if (request.type === xs.XS_TRANSACTION_START)
        send(reply(request, request.type, xs.encodeStrings(String(++starts))));
      else send(reply(request, xs.XS_ERROR, xs.encodeStrings("EAGAIN")));
    });
    expect(errnoOf(await failure(client.transaction(async () => {})))).toBe("EAGAIN");
    expect(starts).toBe(64);
    client.close();
  });

  test("a transaction is not used after its end", async () => {
    const server = new XenstoreServer({ personality: "oxenstored" });
    const client = new Xenstore(server.connectDirectly(0));
    const kept = await client.transaction(async (tx) => tx);
    expect(await failure(kept.read("/tool"))).toMatchObject({ kind: "bug" });
    client.close();
    server.close();
  });
});

describe("watch events", () => {
  test("of one path that wait are one, and the callback runs once at a time", async () => {
    const seen: string[] = [];
    const gate = Promise.withResolvers<void>();
    const done = Promise.withResolvers<void>();
    const events = new WatchEvents("/w", async (path) => {
      seen.push(path);
      await gate.promise;
      if (seen.length === 3) done.resolve();
    });
    for (let i = 0; i < 100; i++) events.add("/w/a");
    await Promise.resolve();
    await Promise.resolve();
    for (let i = 0; i < 100; i++) {
      events.add("/w/a");
      events.add("/w/b");
    }
    expect([seen, events.pendingCount]).toEqual([["/w/a"], 2]);
    gate.resolve();
    await done.promise;
    expect(seen).toEqual(["/w/a", "/w/a", "/w/b"]);
  });

  test("of a flood of paths become one for the watched path", () => {
    const events = new WatchEvents("/w", () => {});
    let most = 0;
    for (let i = 0; i < 100_000; i++) {
      events.add(`/w/${i}`);
      most = Math.max(most, events.pendingCount);
    }
    expect(most).toBe(1024);
    events.stop();
    events.add("/w/late");
    expect(events.pendingCount).toBe(0);
  });

  test("go on after a callback that throws", async () => {
    const seen: string[] = [];
    const done = Promise.withResolvers<void>();
    const events = new WatchEvents("/w", (path) => {
      seen.push(path);
      if (seen.length === 2) done.resolve();
      throw new Error("no");
    });
    events.add("/w/a");
    events.add("/w/b");
    await done.promise;
    expect(seen).toEqual(["/w/a", "/w/b"]);
  });
});

/**
 * The kernel's device, to which xenstored is `answer`. It says which error the write ends with, and what is received
 * before; `receive` is for what comes later.
 */
class FakeDevice implements DeviceFile {
  isClosed = false;
  #waiting: ((bytes: Uint8Array) => void) | undefined;
  #bytes: Uint8Array[] = [];

  constructor(readonly answer: (request: xs.XsPacket, device: FakeDevice) => string | undefined) {}

  receive(bytes: Uint8Array): void {
    this.#bytes.push(bytes);
    const waiting = this.#waiting;
    this.#waiting = undefined;
    if (waiting !== undefined) waiting(this.#bytes.shift() as Uint8Array);
  }

  read(into: Uint8Array, done: (error: NodeJS.ErrnoException | null, count: number) => void): void {
    this.#waiting = (bytes) =>
      setImmediate(() => {
        into.set(bytes);
        done(null, bytes.length);
      });
    const next = this.#bytes.shift();
    if (next === undefined) return;
    this.#waiting(next);
    this.#waiting = undefined;
  }

  write(packet: Uint8Array, done: (error: NodeJS.ErrnoException | null) => void): void {
    const parser = new xs.XsPacketParser();
    parser.push(packet);
    const code = this.answer(parser.next() as xs.XsPacket, this);
    setImmediate(done, code === undefined ? null : Object.assign(new Error(code), { code }));
  }

  close(): void {
    this.isClosed = true;
  }
}

describe("the character device", () => {
  test("refuses a watch above the quota alone, even amid a packet, and other requests go on", async () => {
    const event = xs.encodePacket(xs.XS_WATCH_EVENT, 0, 0, xs.encodeStrings("/a", "xentool-1"));
    let watches = 0;
    const file = new FakeDevice(({ type, reqId, txId, payload }, device) => {
      if (type === xs.XS_WATCH && ++watches === 2) {
        device.receive(event.subarray(0, 20));
        setTimeout(() => device.receive(event.subarray(20)), 5);
        return "E2BIG";
      }
      device.receive(xs.encodePacket(type, reqId, txId, type === xs.XS_READ ? payload : xs.encodeText("OK")));
      return undefined;
    });
    const client = new Xenstore(new DeviceTransport("a device", file));
    const { promise, resolve } = Promise.withResolvers<string>();
    await client.watch("/a", resolve);
    const refused = await failure(client.watch("/b", () => {}));
    expect(refused).toMatchObject({ kind: "io", context: { errno: "E2BIG", path: "/b" } });
    expect(await promise).toBe("/a");
    expect(await client.read("/c")).toBe("/c\0");
    expect(client.failure).toBe(undefined);
    expect(client.statistics).toEqual({ pendingRequests: 0, watches: 1 });
    client.close();
    while (!file.isClosed) await new Promise(setImmediate);
  });

  test("is given up when it does not work any more", async () => {
    const client = new Xenstore(new DeviceTransport("a device", new FakeDevice(() => "EIO")));
    expect(String(await failure(client.read("/a")))).toContain("went away");
  });

  test("is read without blocking anything, and closing it ends the read that waits", async () => {
    // A FIFO opened for both directions blocks a read as the device does, and gives back what is written.
    const path = join(dir, "fifo");
    execFileSync("mkfifo", [path]);
    const before = openDescriptors().length;
    const transport = await openTransport({ kind: "device", path }, 1000);
    const got: Uint8Array[] = [];
    const three = Promise.withResolvers<void>();
    transport.onData = (bytes) => {
      got.push(bytes);
      if (Buffer.concat(got).length === 3 * 5016) three.resolve();
    };
    let ticks = 0;
    const ticking = setInterval(() => ticks++, 1);
    while (ticks < 5) await new Promise(setImmediate);
    clearInterval(ticking);
    const packet = new Uint8Array(5016).fill(7);
    for (let i = 0; i < 3; i++) transport.write(packet);
    await three.promise;
    transport.close();
    while (openDescriptors().length > before) await new Promise(setImmediate);
    rmSync(path);
  });
});
