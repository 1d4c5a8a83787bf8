// A disk used through several queues, by both of our halves: the keys, the spread of the load, and its bytes.
// Nothing of it stays. (test/e2e/kill-queues.test.ts kills the server meanwhile.)
import { afterEach, describe, expect, test } from "bun:test";
import { join } from "node:path";
import { frontendDir } from "../../src/blkback/address.ts";
import { readStats } from "../../src/blkback/stats/stats.ts";
import { compareUnderLoad } from "./block-load.ts";
import { ServedDisk, type DiskOptions } from "./blkfront-harness.ts";
import { FLUSH, RawClient, WRITE } from "./nbd-raw-client.ts";
import { Random } from "../support/random.ts";

const IMAGE_BYTES = 2 << 20;
const DEVID = 51728;
/** What the toolstack writes into a frontend's directory. */
const TOOLSTACK_KEYS = ["backend", "backend-id", "device-type", "state", "virtual-device"];

let served: ServedDisk;

async function serve(maxQueues: number, options: DiskOptions = {}): Promise<ServedDisk> {
  served = await ServedDisk.start({ imageBytes: IMAGE_BYTES, offer: { maxQueues }, ...options });
  return served;
}

afterEach(() => served.close());

const frontKey = (key: string): Promise<string | null> =>
  served.xenstore.tryRead(`${frontendDir(served.address)}/${key}`);

const COMMON_KEYS = ["feature-persistent", "protocol", "ring-page-order"];

/** What a frontend wrote, besides its state. */
async function ringKeys(): Promise<string[]> {
  const keys = await served.xenstore.directory(frontendDir(served.address));
  return keys.filter((key) => !TOOLSTACK_KEYS.includes(key)).toSorted();
}

describe.each([1, 2, 4])("%i queues", (queues) => {
  test("are written as Linux does, carry a part of the load each, and leave no key", async () => {
    await serve(4);
    const frontend = await served.connect({ queues, ringPageOrder: 1 });
    const ring = ["event-channel", "ring-ref0", "ring-ref1"];
    if (queues === 1) expect(await ringKeys()).toEqual([...COMMON_KEYS, ...ring].toSorted());
    else {
      const names = Array.from({ length: queues }, (_, queue) => `queue-${queue}`);
      expect(await ringKeys()).toEqual(["multi-queue-num-queues", ...COMMON_KEYS, ...names].toSorted());
      expect(await frontKey("multi-queue-num-queues")).toBe(String(queues));
      for (const name of names) {
        const keys = await served.xenstore.directory(`${frontendDir(served.address)}/${name}`);
        expect(keys.toSorted()).toEqual(ring);
      }
    }
    const copy = served.image();
    let rounds = 0;
    await compareUnderLoad(frontend, copy, new Random(queues), () => rounds++ > 200);
    expect(Buffer.compare(served.image(), copy)).toBe(0);
    const stats = readStats(join(served.dir, "stats"), 1, DEVID);
    expect(stats.queues).toHaveLength(queues);
    for (const { requests } of stats.queues) expect(requests).toBeGreaterThan(0);
    await frontend.close();
    expect(await ringKeys()).toEqual([]);
    expect(await frontKey("state")).toBe("6");
  });
});

test.each([
  [4, 2],
  [1, 4],
])("with %i offered, %i asked for: as many as there are", async (offered, asked) => {
  await serve(offered);
  const frontend = await served.connect({ queues: asked });
  expect(frontend.queues).toBe(Math.min(offered, asked));
  const copy = served.image();
  await compareUnderLoad(frontend, copy, new Random(1), () => true);
  expect(Buffer.compare(served.image(), copy)).toBe(0);
});

test("keys that a kernel with four queues left are gone once we have one", async () => {
  await serve(4);
  for (let queue = 0; queue < 4; queue++)
    for (const key of ["ring-ref", "event-channel"])
      await served.xenstore.write(`${frontendDir(served.address)}/queue-${queue}/${key}`, "99");
  await served.xenstore.write(`${frontendDir(served.address)}/multi-queue-num-queues`, "4");
  const frontend = await served.connect();
  expect(await ringKeys()).toEqual([...COMMON_KEYS, "event-channel", ...pages(16)].toSorted());
  expect(Buffer.compare(await frontend.read(0, 4096), served.image().subarray(0, 4096))).toBe(0);
});

const pages = (count: number): string[] => Array.from({ length: count }, (_, page) => `ring-ref${page}`);

test("an NBD client's requests go to all queues, and its flush covers them all", async () => {
  await serve(4);
  const server = await served.nbd({ queues: 4 });
  const client = await RawClient.open(server.path, true);
  try {
    const data = Buffer.alloc(64 << 10);
    for (let number = 0; number < 16; number++) {
      client.request(WRITE, BigInt(number), number * data.length, data.length, 0, data.fill(number));
      expect((await client.reply()).error).toBe(0);
    }
    client.request(FLUSH, 99n, 0, 0);
    expect((await client.reply()).error).toBe(0);
    const image = served.image();
    for (let number = 0; number < 16; number++) expect(image[(number + 1) * data.length - 1]).toBe(number);
    const { queues } = readStats(join(served.dir, "stats"), 1, DEVID);
    expect(queues.map(({ writes }) => writes)).toEqual([4, 4, 4, 4]);
  } finally {
    client.close();
  }
});
