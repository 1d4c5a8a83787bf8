// `xentool xsring trace` and `inspect` on rings in use: against what the client of the ring really sent and
// got, live and from a file, with filters, across a close, and until the domain is gone.
import { afterEach, beforeEach, expect, setDefaultTimeout, test } from "bun:test";
import { readFileSync } from "node:fs";
import { join } from "node:path";
import { XENSTORE_RECONNECT, XS_RING_CONNECTION } from "../../src/protocol/xs-ring.ts";
import {
  decodeText,
  encodePacket,
  encodeStrings,
  XS_READ,
  XsPacketParser,
  xsTypeName,
} from "../../src/protocol/xs-wire.ts";
import { SimHost } from "../../src/sim/host.ts";
import { toDomid } from "../../src/core/types.ts";
import { Xenstore } from "../../src/xenstore/client.ts";
import { RingTransport } from "../../src/xenstore/transports/ring.ts";
import type { XenstoreTransport } from "../../src/xenstore/transport.ts";
import { inspectSettled } from "../../src/xsring/report.ts";
import type { TraceRecord } from "../../src/xsring/ring-follower.ts";
import { openDomainRing } from "../../src/xsring/source.ts";
import { traceRing } from "../../src/xsring/trace.ts";
import { GuestRing, startXsring, testProgram, xsring } from "./xsring-harness.ts";
import { removeDirectory, temporaryDirectory } from "../support/temporary.ts";

setDefaultTimeout(60_000); // each case starts several processes, perhaps on a busy machine

const ringPages = testProgram("ring_pages");

let host: SimHost;
let dir: string;

beforeEach(async () => {
  host = await SimHost.start({ domains: 2 });
  dir = temporaryDirectory();
});

afterEach(async () => {
  removeDirectory(dir);
  expect(await host.settle()).toEqual([]);
  await host.stop();
});

/** Everything that goes over a transport, each packet as `type id payload`. */
class Recorder implements XenstoreTransport {
  readonly name = "a recorded ring";
  readonly payloadBytesMax: number;
  readonly sent: string[] = [];
  readonly received: string[] = [];
  onData: (bytes: Uint8Array) => void = () => {};
  onClose: XenstoreTransport["onClose"] = () => {};
  readonly #inner: XenstoreTransport;

  constructor(inner: XenstoreTransport) {
    this.#inner = inner;
    this.payloadBytesMax = inner.payloadBytesMax;
    const parser = new XsPacketParser();
    inner.onData = (bytes) => {
      note(parser, bytes, this.received);
      this.onData(bytes);
    };
    inner.onClose = (error) => this.onClose(error);
  }

  write(packet: Uint8Array): void {
    note(new XsPacketParser(), packet, this.sent);
    this.#inner.write(packet);
  }

  close(): void {
    this.#inner.close();
  }
}

function note(parser: XsPacketParser, bytes: Uint8Array, into: string[]): void {
  parser.push(bytes);
  for (let packet = parser.next(); packet !== undefined; packet = parser.next())
    into.push(describe(packet.type, packet.reqId, packet.payload));
}

const describe = (type: number, id: number, payload: Uint8Array): string =>
  `${xsTypeName(type)} ${id} ${decodeText(payload)}`;

/** A guest that reads, writes, watches and lists, some of it at the same time. */
async function work(xs: Xenstore): Promise<void> {
  const unwatch = await xs.watch("data", () => {});
  for (let round = 0; round < 100; round++) {
    await xs.write("data/x", "v".repeat(round * 7));
    await Promise.all([xs.read("data/x"), xs.directory("data"), xs.tryRead("none"), xs.read("domid")]);
  }
  await xs.write("data/large", "x".repeat(1900));
  await unwatch();
}

test("a live trace is exactly what was sent and received", async () => {
  const guest = new GuestRing(host, 1);
  const recorder = new Recorder(await RingTransport.connect(guest.client(), 1000));
  const dom0 = host.platform(0);
  const ring = openDomainRing(dom0, toDomid(1), "r");
  const records: TraceRecord[] = [];
  const done = new AbortController();
  const tracing = traceRing(ring.page, {
    intervalMs: 1,
    signal: done.signal,
    onRecord: (record) => void records.push(record),
    onLook: () => {},
  });
  const xs = new Xenstore(recorder);
  await work(xs);
  // The last reply is out of the ring only when it has been looked at.
  const last = (): number =>
    records.filter((it) => it.kind === "packet" && it.direction === "response").length;
  while (last() < recorder.received.length) await new Promise(setImmediate);
  done.abort();
  await tracing;
  const shown = (direction: string): string[] =>
    records.flatMap((it) =>
      it.kind === "packet" && it.direction === direction
        ? [describe(it.header.type, it.header.reqId, it.payload)]
        : [],
    );
  expect(shown("request")).toEqual(recorder.sent);
  expect(shown("response")).toEqual(recorder.received);
  expect(records.filter(({ kind }) => kind === "lost")).toEqual([]);
  xs.close();
  ring.close();
  dom0.close();
  await guest.close();
});

test("a busy ring is healthy, a stuck one is not", async () => {
  const guest = new GuestRing(host, 1);
  const xs = new Xenstore(await RingTransport.connect(guest.client(), 1000));
  const dom0 = host.platform(0);
  const ring = openDomainRing(dom0, toDomid(1), "r");
  const working = work(xs);
  for (let look = 0; look < 50; look++)
    expect((await inspectSettled(ring.page, 2000)).verdict.code).toBe("healthy");
  await working;
  xs.close();
  await guest.send(new Uint8Array([2, 0, 0, 0, 1]));
  while ((await inspectSettled(ring.page, 0)).requests.usedBytes !== 0) await new Promise(setImmediate);
  expect((await inspectSettled(ring.page, 20)).verdict.code).toBe("server-waits");
  ring.close();
  dom0.close();
  await guest.close();
  await host.destroyDomain(1);
});

test("on the command line: requests, a close, and the end of the domain; again from the file", async () => {
  const file = join(dir, "boot.pcap");
  const tracing = startXsring(host, ["trace", "--domid", "1", "--write", file]);
  await tracing.line(/server_features/);
  const guest = new GuestRing(host, 1);
  const read = async (path: string): Promise<void> => {
    await guest.send(encodePacket(XS_READ, 5, 0, encodeStrings(path)));
    await guest.receive();
    await tracing.line(new RegExp(`"${path}"\\) =`));
  };
  await read("domid");
  await read("name");
  await read("platform/acpi");
  guest.store(XS_RING_CONNECTION, XENSTORE_RECONNECT);
  guest.notify();
  await tracing.line(/began anew/);
  guest.forget();
  await read("vm");
  await guest.close();
  await host.destroyDomain(1);

  const live = await tracing.finished;
  expect(live.status).toBe(0);
  expect(live.stdout).toMatch(
    /^ +0\.000000 -- server_features 1 \(RECONNECTION\), connection 0 \(CONNECTED\)/,
  );
  expect(live.stdout).toMatch(/ #5 READ\("domid"\) = "1" <\d\.\d{6}>\n/);
  expect(live.stdout).toMatch(/ #5 READ\("name"\) = "domain-1" <\d\.\d{6}>\n/);
  expect(live.stdout).toMatch(/ #5 READ\("platform\/acpi"\) = ENOENT <\d\.\d{6}>\n/);
  expect(live.stdout).toMatch(/ -- the ring began anew; what passed in the 0\.\d{6} s before is not known\n/);
  expect(live.stderr).toMatch(/4 requests, 4 replies, 0 watch events; nothing lost\n$/);

  expect((await xsring(host, ["trace", "--read", file])).stdout).toBe(live.stdout);
  const filtered = await xsring(host, ["trace", "--read", file, "--path", "dom*", "--json", "--count", "3"]);
  const events = filtered.stdout
    .trim()
    .split("\n")
    .map((line) => JSON.parse(line) as Record<string, unknown>);
  expect(events.map(({ event, path, values }) => [event, path, values])).toEqual([
    ["state", undefined, undefined],
    ["request", "domid", []],
    ["reply", undefined, ["1"]],
  ]);
  expect(events[2]).toMatchObject({ type: "READ", request: { path: "domid" } });

  const timed = await xsring(host, ["trace", "--read", file, "-t"]);
  expect(timed.stdout).toMatch(/^\d\d:\d\d:\d\d\.\d{6} #5 READ\("domid"\) = "1"/m);
  const output = `${file}.txt`;
  const silent = await xsring(host, ["trace", "--read", file, "-o", output]);
  expect(silent.stdout).toBe("");
  expect(readFileSync(output, "utf8")).toBe(live.stdout);
  const counted = await xsring(host, ["trace", "--read", file, "-c"]);
  expect(counted.stdout).toMatch(/^type +calls +errors +total +mean +longest\nREAD +4 +[12] /);
  const { types } = JSON.parse((await xsring(host, ["trace", "--read", file, "-c", "--json"])).stdout) as {
    types: { type: string; calls: number }[];
  };
  expect(types.map(({ type, calls }) => [type, calls])).toEqual([["READ", 4]]);
});

test("inspect --watch tells of each change, until it is interrupted", async () => {
  const guest = new GuestRing(host, 1);
  const args = ["inspect", "--domid", "1", "--watch", "--interval", "0.01", "--settle", "0.01"];
  const watching = startXsring(host, args);
  await watching.line(/^domain 1: healthy: not used yet; req 0\/0, rsp 0\/0$/m);
  await guest.send(new Uint8Array([2, 0, 0, 0, 1]));
  await watching.line(/^domain 1: server waits for the guest: .*; req 5\/5, rsp 0\/0$/m);
  watching.interrupt();
  const { status, stdout } = await watching.finished;
  expect(status).toBe(130);
  expect(stdout).not.toMatch(/[^\n\x20-\x7e]/);
  await guest.close();
  await host.destroyDomain(1);
});

test("inspect --watch ends with the domain, and does not mind the end of xenstored", async () => {
  const args = ["inspect", "--domid", "1", "--watch", "--interval", "0.01", "--settle", "0.01"];
  const [watching, orphan] = [startXsring(host, args), startXsring(host, args)];
  await watching.line(/not used yet/);
  await orphan.line(/not used yet/);
  await watchesAre(2);
  const connection = [...(host.server.domains.get(0)?.connections ?? [])].at(-1);
  connection?.close();
  await host.destroyDomain(1);
  const first = await Promise.race([watching.finished, orphan.finished]);
  expect(first).toMatchObject({ status: 0, stderr: "" });
  for (const each of [watching, orphan]) each.interrupt();
  const both = await Promise.all([watching.finished, orphan.finished]);
  expect(both.map(({ status }) => status).toSorted()).toEqual([0, 130]);
});

test("a trace ends with an error when xenstored goes, who would have told of the domain's end", async () => {
  const tracing = startXsring(host, ["trace", "--domid", "1"]);
  await tracing.line(/server_features/);
  await watchesAre(1);
  for (const connection of host.server.domains.get(0)?.connections ?? []) connection.close();
  const { status, stderr } = await tracing.finished;
  expect(stderr).toMatch(/^xentool: xenstored at .* went away/m);
  expect(status).toBe(5);
});

test("a file of --write stays as it is when there is no such domain", async () => {
  const file = join(dir, "precious.pcap");
  await Bun.write(file, "precious");
  expect((await xsring(host, ["trace", "--domid", "9", "--write", file])).status).toBe(3);
  expect(await Bun.file(file).text()).toBe("precious");
});

async function watchesAre(count: number): Promise<void> {
  while (host.server.statistics.watches < count) await Bun.sleep(1);
}

test.each([
  ["idle", 0],
  ["too-long", 4],
  ["guest-waits", 10],
  ["server-waits", 11],
  ["reconnect", 12],
])("inspect of a page that is %s ends with status %d", async (state, wanted) => {
  const file = join(dir, "page");
  await Bun.write(file, Bun.spawnSync([ringPages, state]).stdout);
  const { status, stdout, stderr } = await xsring(host, ["inspect", "--file", file, "--json"]);
  expect(stderr).toBe("");
  expect(JSON.parse(stdout)).toHaveProperty("verdict");
  expect(status).toBe(wanted);
});
