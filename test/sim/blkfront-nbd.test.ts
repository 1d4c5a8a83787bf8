// The NBD server against clients that write their own bytes: replies of both kinds, every refusal, and
// clients that are broken or hostile next to one that must not notice.
import { afterEach, beforeEach, describe, expect, test } from "bun:test";
import { truncateSync } from "node:fs";
import { resizeDevice } from "../../src/blkback/device/resize.ts";
import { closeDevice } from "../../src/blkback/toolstack.ts";
import { ServedDisk, type DiskOptions, type RunningNbd } from "./blkfront-harness.ts";
import { cookieFor, DISC, FLUSH, RawClient, READ, TRIM, WRITE, WRITE_ZEROES } from "./nbd-raw-client.ts";

const EPERM = 1;
const EIO = 5;
const EINVAL = 22;
const ENOSPC = 28;
const EOVERFLOW = 75;
const FUA = 1;
const NO_HOLE = 2;
const DF = 4;
const SIZE = 4 << 20;

let disk: ServedDisk;
let server: RunningNbd;
const clients: RawClient[] = [];

async function serve(options: DiskOptions = {}): Promise<void> {
  disk = await ServedDisk.start({ imageBytes: SIZE, ...options });
  server = await disk.nbd();
}

async function open(structured = true): Promise<RawClient> {
  const client = await RawClient.open(server.path, structured);
  clients.push(client);
  return client;
}

/** Reads and compares, on a connection of its own. */
async function expectServed(): Promise<void> {
  const client = await open();
  const cookie = cookieFor(16, 1);
  client.request(READ, cookie, 8192, 65536);
  const { error, data } = await client.reply();
  expect(error).toBe(0);
  expect(Buffer.compare(data, disk.image().subarray(8192, 8192 + 65536))).toBe(0);
  client.close();
}

afterEach(async () => {
  for (const client of clients.splice(0)) client.close();
  await disk.close();
});

describe("replies", () => {
  test.each([
    ["simple", false],
    ["structured", true],
  ] as [string, boolean][])("%s: reads of all sizes at once come back whole", async (_name, structured) => {
    await serve();
    const client = await open(structured);
    const lengths = new Map<bigint, number>();
    const image = disk.image();
    const sizes = [512, 4096, 131072, 131584, 1 << 20, 512, 3 << 20, 65536, 4096, 262144];
    for (const [index, length] of sizes.entries()) {
      const sector = index * 3;
      const cookie = cookieFor(sector, index);
      lengths.set(cookie, length);
      client.request(READ, cookie, sector * 512, length);
    }
    for (let left = sizes.length; left > 0; left--) {
      const { cookie, error, data } = await client.reply();
      expect(error).toBe(0);
      const start = Number(cookie >> 32n) * 512;
      const length = lengths.get(cookie) as number;
      expect(data.length).toBe(length);
      expect(Buffer.compare(data, image.subarray(start, start + length))).toBe(0);
      lengths.delete(cookie);
    }
    expect(lengths.size).toBe(0);
  });

  test("writes, zeroes, trim and flush, with FUA and without", async () => {
    await serve();
    const client = await open();
    const data = Buffer.alloc(300 * 1024, 0x77);
    client.request(WRITE, 1n, 4096, data.length, FUA, data);
    expect(await client.reply()).toMatchObject({ cookie: 1n, error: 0 });
    expect(
      disk
        .image()
        .subarray(4096, 4096 + data.length)
        .equals(data),
    ).toBe(true);
    client.request(WRITE_ZEROES, 2n, 8192, 3 << 20, FUA | NO_HOLE);
    expect(await client.reply()).toMatchObject({ cookie: 2n, error: 0 });
    expect(
      disk
        .image()
        .subarray(8192, 8192 + (3 << 20))
        .every((byte) => byte === 0),
    ).toBe(true);
    client.request(TRIM, 3n, 0, 4096, FUA);
    client.request(FLUSH, 4n, 0, 0);
    expect([await client.reply(), await client.reply()].map((it) => it.error)).toEqual([0, 0]);
  });

  test("what is refused is refused, and the connection goes on", async () => {
    await serve();
    const client = await open();
    const junk = Buffer.alloc(1024, 0xee);
    const refusals: [number, number | bigint, number, number, number, Buffer?][] = [
      [READ, SIZE, 512, 0, EINVAL],
      [READ, SIZE - 512, 1024, 0, EINVAL],
      [READ, 2n ** 64n - 512n, 512, 0, EINVAL],
      [READ, 2n ** 63n, 512, 0, EINVAL],
      [READ, 0, 0, 0, EINVAL],
      [READ, 1, 512, 0, EINVAL],
      [READ, 0, 511, 0, EINVAL],
      [READ, 0, 0xffff_fe00, 0, EINVAL],
      [READ, 0, 512, NO_HOLE, EINVAL],
      [READ, 0, 512, 0x8000, EINVAL],
      [READ, 0, 256 << 10, DF, EOVERFLOW],
      [WRITE, SIZE - 512, 1024, 0, ENOSPC, junk],
      [WRITE, 100, 1024, 0, EINVAL, junk],
      [WRITE, 0, 1024, DF, EINVAL, junk],
      [WRITE_ZEROES, SIZE, 512, 0, ENOSPC],
      [WRITE_ZEROES, 0, 0xffff_fe00, 0, ENOSPC],
      [TRIM, SIZE, 512, 0, EINVAL],
      [5, 0, 512, 0, EINVAL],
      [7, 0, 512, 0, EINVAL],
      [0x100, 0, 512, 0, EINVAL],
      [0xffff, 0, 512, 0, EINVAL],
    ];
    for (const [type, offset, length, flags, , data] of refusals)
      client.request(type, 1n, offset, length, flags, data);
    for (const [type, , , , error] of refusals)
      expect({ type, ...(await client.reply()) }).toMatchObject({ type, error, cookie: 1n });
    client.request(READ, cookieFor(0, 2), 0, 128 << 10, DF);
    expect(await client.reply()).toMatchObject({ error: 0 });
    expect(disk.image().includes(junk.subarray(0, 16))).toBe(false);
  });

  test("a read-only disk", async () => {
    await serve({ readOnly: true });
    const client = await open();
    client.request(WRITE, 1n, 0, 512, 0, Buffer.alloc(512));
    client.request(TRIM, 2n, 0, 512);
    client.request(WRITE_ZEROES, 3n, 0, 512);
    for (let i = 0; i < 3; i++) expect((await client.reply()).error).toBe(EPERM);
    await expectServed();
  });

  test("a disk that fails: large reads and writes end with an error, or their connection", async () => {
    await serve({ filters: ["error:rate=100%,op=read"] });
    const structured = await open(true);
    structured.request(READ, cookieFor(0, 1), 0, 1 << 20);
    expect(await structured.reply()).toMatchObject({ error: EIO });
    const simple = await open(false);
    simple.request(READ, 2n, 0, 1 << 20);
    expect(await simple.reply()).toMatchObject({ error: EIO });
    simple.request(WRITE, 3n, 0, 512, 0, Buffer.alloc(512));
    expect(await simple.reply()).toMatchObject({ error: 0 });
  });

  test("a write that fails in part is read to its end, and is an error", async () => {
    await serve({ filters: ["error:rate=100%,op=write"] });
    const client = await open();
    client.request(WRITE, 1n, 0, 3 << 20, 0, Buffer.alloc(3 << 20));
    client.request(READ, cookieFor(0, 2), 0, 512);
    const replies = [await client.reply(), await client.reply()];
    expect(replies.find((it) => it.cookie === 1n)?.error).toBe(EIO);
    expect(replies.find((it) => it.cookie === 2n)?.error).toBe(0);
  });
});

describe("clients that are no good", () => {
  beforeEach(() => serve());

  test.each([
    ["garbage instead of options", Buffer.from("GET / HTTP/1.1\r\nHost: localhost\r\n\r\n")],
    ["nothing at all", Buffer.alloc(0)],
    ["half an option", Buffer.from("0000000349484156", "hex")],
  ])("%s", async (_name, bytes) => {
    const client = await RawClient.connect(server.path);
    clients.push(client);
    client.send(bytes);
    await expectServed();
    client.close();
    await expectServed();
  });

  test("garbage instead of a request ends the connection", async () => {
    const client = await open();
    client.send(Buffer.alloc(28, 0x41));
    await client.untilEnded();
    await expectServed();
  });

  test("a write beyond any limit ends the connection", async () => {
    const client = await open();
    client.request(WRITE, 1n, 0, 0xffff_fe00);
    await client.untilEnded();
    await expectServed();
  });

  test("clients that stop in the middle of a write hold nothing", async () => {
    for (let index = 0; index < 40; index++)
      (await open()).request(WRITE, 1n, 0, 32 << 20, 0, Buffer.alloc(100_000));
    await expectServed();
    for (const client of clients.splice(0, 20)) client.close();
    await expectServed();
  });

  test("clients that never read hold nothing", async () => {
    for (let index = 0; index < 8; index++) {
      const client = await open();
      client.pause();
      for (let number = 0; number < 300; number++) client.request(READ, BigInt(number), 0, 128 << 10);
    }
    await expectServed();
  });

  test("a slow reader gets everything in the end", async () => {
    const client = await open();
    client.pause();
    for (let number = 0; number < 40; number++)
      client.request(READ, cookieFor(number, number), number * 512, 256 << 10);
    await expectServed();
    client.resume();
    const image = disk.image();
    for (let left = 40; left > 0; left--) {
      const { cookie, data } = await client.reply();
      const start = Number(cookie >> 32n) * 512;
      expect(Buffer.compare(data, image.subarray(start, start + (256 << 10)))).toBe(0);
    }
  });

  test("clients that go away with everything under way", async () => {
    for (let round = 0; round < 10; round++) {
      const client = await open(round % 2 === 0);
      for (let number = 0; number < 100; number++) {
        client.request(READ, BigInt(number), number * 4096, 65536);
        client.request(WRITE, BigInt(1000 + number), 2 << 20, 4096, FUA, Buffer.alloc(4096));
      }
      client.request(READ, 5000n, 0, 3 << 20);
      if (round % 3 === 0) await client.take(1000);
      client.close();
    }
    await expectServed();
  });

  test("a disconnect request lets what came before it end", async () => {
    const client = await open();
    client.request(WRITE, 1n, 0, 1 << 20, 0, Buffer.alloc(1 << 20, 0x33));
    client.request(DISC, 2n, 0, 0);
    expect(await client.reply()).toMatchObject({ cookie: 1n, error: 0 });
    await client.untilEnded();
    expect(
      disk
        .image()
        .subarray(0, 1 << 20)
        .every((byte) => byte === 0x33),
    ).toBe(true);
  });

  test("more clients than there are places: those that do nothing make place", async () => {
    for (let index = 0; index < 100; index++) clients.push(await RawClient.connect(server.path));
    await expectServed();
  });
});

describe("many clients", () => {
  beforeEach(() => serve());

  test("those that have the disk and are idle keep it, and shut nobody out", async () => {
    for (let index = 0; index < 200; index++) await open(index % 2 === 0);
    await expectServed();
    const first = clients[0];
    first.request(READ, cookieFor(16, 1), 8192, 4096);
    expect((await first.reply()).error).toBe(0);
  });
});

describe("the disk's life", () => {
  beforeEach(() => serve());

  test("hot-unplug ends the server, clients or not", async () => {
    const client = await open();
    await closeDevice(disk.xenstore, disk.address);
    expect(await server.ended).toMatchObject({ reason: "closed" });
    await client.untilEnded();
    expect(await disk.device.ended).toBe("closed");
  });

  test("xenstored goes away: the server ends, because nobody would tell it that the backend is gone", async () => {
    await expectServed();
    const connections = [...(disk.host.server.domains.get(1)?.connections ?? [])];
    connections.at(-1)?.close();
    expect(await server.ended.catch((error: unknown) => String(error))).toContain("went away");
  });

  test("growth is offered to the next client, and usable by all", async () => {
    const client = await open();
    truncateSync(disk.imagePath, SIZE + 65536);
    await resizeDevice(disk.xenstore, disk.address);
    for (;;) {
      client.request(READ, cookieFor(SIZE / 512, 1), SIZE, 65536);
      const { error, data } = await client.reply();
      if (error === EINVAL) continue;
      expect(error).toBe(0);
      expect(data.every((byte) => byte === 0)).toBe(true);
      return;
    }
  });

  test("another backend takes over under a client", async () => {
    const client = await open();
    client.request(WRITE, 1n, 0, 512, 0, Buffer.alloc(512, 1));
    expect((await client.reply()).error).toBe(0);
    await disk.replaceBackend();
    client.request(WRITE, 2n, 512, 512, 0, Buffer.alloc(512, 2));
    expect((await client.reply()).error).toBe(0);
    expect(disk.image()[512]).toBe(2);
  });
});
