// How many turns to xenstore and back it takes to serve a ring in use: its guest waits for each of them, and where many
// programs want the processor, so does the turn.
import { beforeEach, expect, test } from "bun:test";
import type { NbdImage } from "../../src/block/image.ts";
import type { DeviceAddress } from "../../src/blkback/address.ts";
import { backendDir, frontendDir } from "../../src/blkback/address.ts";
import { BackendDirectory } from "../../src/blkback/device/backend-directory.ts";
import { DeviceWatches } from "../../src/blkback/device/device-watches.ts";
import { DEFAULT_OFFER } from "../../src/blkback/device/features.ts";
import { expectPromisesKept } from "../../src/blkback/device/promises.ts";
import { readRingParameters } from "../../src/blkback/device/ring-parameters.ts";
import { announceImage } from "../../src/blkback/device/sharing.ts";
import { toDomid } from "../../src/core/types.ts";
import * as xs from "../../src/protocol/xs-wire.ts";
import { Xenstore } from "../../src/xenstore/client.ts";
import type { XenstoreTransport } from "../../src/xenstore/transport.ts";

const ADDRESS: DeviceAddress = { backend: toDomid(0), kind: "vbd", frontend: toDomid(5), devid: 51728 };
const QUEUES = 4;
const PAGES = 4;

/** A xenstore that answers all that was asked at once in one turn. */
class TurnTaking implements XenstoreTransport {
  readonly name = "a counted store";
  readonly payloadBytesMax = 4096;
  readonly nodes = new Map<string, string>();
  turns = 0;
  onData: (bytes: Uint8Array) => void = () => {};
  onClose: XenstoreTransport["onClose"] = () => {};
  #asked: xs.XsPacket[] = [];

  write(packet: Uint8Array): void {
    const parser = new xs.XsPacketParser();
    parser.push(packet);
    if (this.#asked.length === 0) setImmediate(() => this.#answerAll());
    this.#asked.push(parser.next() as xs.XsPacket);
  }

  close(): void {}

  #answerAll(): void {
    this.turns++;
    for (const { type, reqId, txId, payload } of this.#asked.splice(0)) {
      const reply = this.#answer(type, payload);
      const [as, text] = reply === undefined ? [xs.XS_ERROR, "ENOENT\0"] : [type, reply];
      this.onData(xs.encodePacket(as, reqId, txId, xs.encodeText(text)));
    }
  }

  #answer(type: number, payload: Uint8Array): string | undefined {
    const [path = "", value = ""] = xs.decodeText(payload).split("\0");
    if (type === xs.XS_READ) return this.nodes.get(path);
    if (type === xs.XS_TRANSACTION_START) return "1\0";
    if (type === xs.XS_WRITE) this.nodes.set(path, value);
    return "OK\0";
  }
}

let store: TurnTaking;
let xenstore: Xenstore;

beforeEach(() => {
  store = new TurnTaking();
  xenstore = new Xenstore(store);
});

function write(dir: string, keys: Readonly<Record<string, string | number>>): void {
  for (const [key, value] of Object.entries(keys)) store.nodes.set(`${dir}/${key}`, String(value));
}

test("several rings of several pages: two", async () => {
  write(backendDir(ADDRESS), { "multi-queue-max-queues": QUEUES, "max-ring-page-order": 2 });
  write(frontendDir(ADDRESS), { protocol: "x86_64-abi", "ring-page-order": 2 });
  write(frontendDir(ADDRESS), { "multi-queue-num-queues": QUEUES });
  for (let queue = 0; queue < QUEUES; queue++) {
    const dir = `${frontendDir(ADDRESS)}/queue-${queue}`;
    write(dir, { "event-channel": 10 + queue });
    for (let page = 0; page < PAGES; page++) write(dir, { [`ring-ref${page}`]: queue * PAGES + page });
  }
  const { sets } = await readRingParameters(xenstore, ADDRESS);
  expect(sets).toHaveLength(1);
  expect(sets[0]?.map(({ remotePort, refs }) => [Number(remotePort), ...refs])).toEqual([
    [10, 0, 1, 2, 3],
    [11, 4, 5, 6, 7],
    [12, 8, 9, 10, 11],
    [13, 12, 13, 14, 15],
  ]);
  expect(store.turns).toBe(2);
});

test("what the guest was promised: one", async () => {
  write(backendDir(ADDRESS), {
    sectors: 8,
    info: 0,
    "sector-size": 512,
    "feature-max-indirect-segments": 256,
  });
  const info = {
    sizeBytes: 4096,
    readOnly: false,
    canDiscard: false,
    canSecureDiscard: false,
    discardGranularityBytes: 4096,
    physicalSectorBytes: 512,
  };
  await expectPromisesKept(xenstore, ADDRESS, DEFAULT_OFFER, info);
  expect(store.turns).toBe(1);
});

test("an image that is announced already: one, and nothing is written", async () => {
  write(backendDir(ADDRESS), { frontend: frontendDir(ADDRESS), state: 4 });
  const image = { kind: "nbd", path: "nbd://server/disk", device: undefined } as NbdImage;
  await announceImage(xenstore, ADDRESS, image);
  const before = new Map(store.nodes);
  expect(before.get(`${backendDir(ADDRESS)}/xentool-raw`)).toBe(image.path);
  store.turns = 0;
  await announceImage(xenstore, ADDRESS, image);
  expect(store.turns).toBe(1);
  expect(store.nodes).toEqual(before);
});

test("claiming the device: four, with both ends of the transaction", async () => {
  write(backendDir(ADDRESS), { frontend: frontendDir(ADDRESS), "xentool-device": "its-own" });
  const directory = await BackendDirectory.claim(xenstore, ADDRESS);
  expect([directory.deviceId, store.turns]).toEqual(["its-own", 4]);
  expect(await directory.isThere()).toBe(true);
});

test("listening: one, and one to end that", async () => {
  const watches = new DeviceWatches();
  const listener = { onOffer: () => {}, onChange: async () => {}, onLost: () => {} };
  await watches.open(xenstore, ADDRESS, listener);
  expect([store.turns, xenstore.statistics.watches]).toEqual([1, 5]);
  await watches.close();
  expect([store.turns, xenstore.statistics.watches]).toEqual([2, 0]);
});
