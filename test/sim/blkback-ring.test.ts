// The backend's ring, seen from a frontend that writes its own bytes: every operation done right, every
// rule of the protocol broken once. Expected each time: the right response, and a device that goes on.
import { afterEach, describe, expect, test } from "bun:test";
import { ABI_X86_32, ABI_X86_64 } from "../../src/protocol/blkif.ts";
import { STAT } from "../../src/blkback/stats/stats.ts";
import { pattern, RingHarness, type HarnessOptions } from "./blk-harness.ts";

const READ = 0;
const WRITE = 1;
const BARRIER = 2;
const FLUSH = 3;
const OKAY = 0;
const ERROR = -1;
const EOPNOTSUPP = -2;

let harness: RingHarness | undefined;

async function start(options: HarnessOptions = {}): Promise<RingHarness> {
  harness = await RingHarness.start(options);
  return harness;
}

afterEach(async () => {
  await harness?.close();
  harness = undefined;
});

/** A read of one page answers rightly: the device still works. */
function expectAlive(h: RingHarness): void {
  h.page(31).fill(0);
  h.put({ op: READ, id: 4242n, sector: 8, segments: [{ gref: h.ref(31) }] });
  expect(h.serve()).toEqual([{ id: 4242n, op: READ, status: OKAY }]);
  expect(Buffer.compare(h.page(31), h.readImage(4096, 4096))).toBe(0);
}

describe.each([
  ["x86_64, copy", { abi: ABI_X86_64, grantMode: "copy" }],
  ["x86_32, copy", { abi: ABI_X86_32, grantMode: "copy" }],
  ["x86_64, map", { abi: ABI_X86_64, grantMode: "map" }],
  ["x86_64, persistent", { abi: ABI_X86_64, grantMode: "persistent" }],
  ["x86_64, pread/pwrite", { abi: ABI_X86_64, engine: "sync" }],
  ["x86_32, 4 pages", { abi: ABI_X86_32, ringPages: 4 }],
  ["x86_64, 16 pages", { abi: ABI_X86_64, ringPages: 16 }],
] as [string, HarnessOptions][])("data: %s", (_name, options) => {
  test("reads and writes land where they belong, ids come back whole", async () => {
    const h = await start(options);
    h.put({ op: READ, id: 0xffff_ffff_ffff_fffen, sector: 16, segments: h.pages(0, 11) });
    expect(h.serve()).toEqual([{ id: 0xffff_ffff_ffff_fffen, op: READ, status: OKAY }]);
    expect(Buffer.compare(h.data.mapping.bytes.subarray(0, 11 * 4096), h.readImage(8192, 11 * 4096))).toBe(0);

    h.data.mapping.bytes.subarray(0, 11 * 4096).fill(0x5a);
    h.put({ op: WRITE, id: 1n, sector: 800, segments: h.pages(0, 11) });
    expect(h.serve()).toEqual([{ id: 1n, op: WRITE, status: OKAY }]);
    expect(h.readImage(800 * 512, 11 * 4096).every((byte) => byte === 0x5a)).toBe(true);
    expect(
      Buffer.compare(h.readImage(0, 800 * 512), Buffer.from(pattern(1 << 20)).subarray(0, 800 * 512)),
    ).toBe(0);
  });

  test("parts of pages, in any order of pages", async () => {
    const h = await start(options);
    const segments = [
      { gref: h.ref(5), first: 3, last: 3 },
      { gref: h.ref(2), first: 0, last: 6 },
      { gref: h.ref(5), first: 7, last: 7 },
    ];
    h.put({ op: READ, sector: 101, segments });
    expect(h.serve()[0]?.status).toBe(OKAY);
    const image = h.readImage(101 * 512, 9 * 512);
    expect(Buffer.compare(h.page(5).subarray(3 * 512, 4 * 512), image.subarray(0, 512))).toBe(0);
    expect(Buffer.compare(h.page(2).subarray(0, 7 * 512), image.subarray(512, 8 * 512))).toBe(0);
    expect(Buffer.compare(h.page(5).subarray(7 * 512), image.subarray(8 * 512))).toBe(0);
    expect(
      h
        .page(5)
        .subarray(0, 3 * 512)
        .every((byte) => byte === 0),
    ).toBe(true);
  });

  test("a full ring at once, more than once around", async () => {
    const h = await start(options);
    for (let round = 0; round < 3; round++) {
      for (let i = 0; i < h.slots; i++)
        h.put({
          op: READ,
          id: BigInt(i),
          sector: i % 2000,
          segments: [{ gref: h.ref(i % 32), first: 0, last: 0 }],
        });
      const responses = h.serve();
      expect(responses.length).toBe(h.slots);
      expect(new Set(responses.map((it) => it.id)).size).toBe(h.slots);
      expect(responses.every((it) => it.status === OKAY)).toBe(true);
    }
  });

  test("adjacent requests are merged, and each gets its own bytes", async () => {
    const h = await start(options);
    for (let i = 0; i < 16; i++) {
      h.page(i).fill(i + 1);
      h.put({ op: WRITE, id: BigInt(i), sector: 64 + i * 8, segments: [{ gref: h.ref(i) }] });
    }
    expect(h.serve().every((it) => it.status === OKAY)).toBe(true);
    for (let i = 0; i < 16; i++)
      expect(h.readImage((64 + i * 8) * 512, 4096).every((byte) => byte === i + 1)).toBe(true);
    for (let i = 0; i < 16; i++)
      h.put({ op: READ, id: BigInt(i), sector: 64 + i * 8, segments: [{ gref: h.ref(16 + i) }] });
    expect(h.serve().every((it) => it.status === OKAY)).toBe(true);
    for (let i = 0; i < 16; i++) expect(h.page(16 + i).every((byte) => byte === i + 1)).toBe(true);
    if (options.grantMode !== "map") expect(h.counters[STAT.merged]).toBe(30);
  });

  test("overlapping requests keep their order", async () => {
    const h = await start(options);
    for (let i = 0; i < 12; i++) {
      h.page(i).fill(100 + i);
      h.put({ op: WRITE, id: BigInt(i), sector: 200 + (i % 3), segments: [{ gref: h.ref(i) }] });
      h.put({ op: READ, id: BigInt(100 + i), sector: 200 + (i % 3), segments: [{ gref: h.ref(16 + i) }] });
    }
    expect(h.serve().length).toBe(24);
    for (let i = 0; i < 12; i++) expect(h.page(16 + i).every((byte) => byte === 100 + i)).toBe(true);
  });

  test("flush, barrier with and without data", async () => {
    const h = await start(options);
    h.page(0).fill(7);
    h.put({ op: WRITE, id: 1n, sector: 0, segments: h.pages(0, 1) });
    h.put({ op: FLUSH, id: 2n });
    h.put({ op: BARRIER, id: 3n, sector: 8, segments: h.pages(0, 1) });
    h.put({ op: BARRIER, id: 4n });
    h.put({ op: FLUSH, id: 5n, sector: 16, segments: h.pages(0, 1) });
    h.put({ op: READ, id: 6n, sector: 16, segments: h.pages(1, 1) });
    const responses = h.serve();
    expect(responses.map((it) => it.status)).toEqual([OKAY, OKAY, OKAY, OKAY, OKAY, OKAY]);
    expect(responses.map((it) => it.op).toSorted()).toEqual(
      [READ, WRITE, BARRIER, BARRIER, FLUSH, FLUSH].toSorted(),
    );
    expect(responses.map((it) => it.id)).toEqual([1n, 2n, 3n, 4n, 5n, 6n]);
    expect(h.page(1).every((byte) => byte === 7)).toBe(true);
    expect(h.readImage(0, 3 * 4096).every((byte) => byte === 7)).toBe(true);
  });

  test("indirect requests on several pages", async () => {
    const h = await start({ ...options, maxIndirectSegments: 1024, imageBytes: 8 << 20 });
    const segments = Array.from({ length: 1024 }, (_, i) => ({ gref: h.ref(i % 28) }));
    h.fillIndirectPage(28, segments.slice(0, 512));
    h.fillIndirectPage(29, segments.slice(512));
    h.putIndirect(READ, 1024, 8, [h.ref(28), h.ref(29)], 9n);
    expect(h.serve()).toEqual([{ id: 9n, op: READ, status: OKAY }]);
    // Pages were reused: each holds what was read into it last.
    for (let page = 0; page < 28; page++) {
      const last = Math.floor((1023 - page) / 28) * 28 + page;
      expect(Buffer.compare(h.page(page), h.readImage(4096 + last * 4096, 4096))).toBe(0);
    }
    for (let page = 0; page < 28; page++) h.page(page).fill(page);
    h.putIndirect(WRITE, 520, 16, [h.ref(28), h.ref(29)], 10n);
    expect(h.serve()).toEqual([{ id: 10n, op: WRITE, status: OKAY }]);
    for (let i = 0; i < 520; i++)
      expect(h.readImage(8192 + i * 4096, 4096).every((byte) => byte === i % 28)).toBe(true);
  });

  test("discard punches a hole", async () => {
    const h = await start(options);
    h.putDiscard(8, 16, 3n);
    expect(h.serve()).toEqual([{ id: 3n, op: 5, status: OKAY }]);
    expect(h.readImage(4096, 8192).every((byte) => byte === 0)).toBe(true);
    expect(Buffer.compare(h.readImage(0, 4096), Buffer.from(pattern(1 << 20)).subarray(0, 4096))).toBe(0);
    h.putDiscard(8, 0);
    h.putDiscard(8, 8, 4n, 1);
    expect(h.serve().map((it) => it.status)).toEqual([OKAY, EOPNOTSUPP]);
  });
});

describe("bad requests are answered, one by one", () => {
  const disk = (1 << 20) / 512;
  const cases: [string, (h: RingHarness) => void, number][] = [
    ["an operation nobody knows", (h) => h.put({ op: 77, segments: h.pages(0, 1) }), EOPNOTSUPP],
    ["the reserved operation", (h) => h.put({ op: 4 }), EOPNOTSUPP],
    ["no segments", (h) => h.put({ op: READ }), ERROR],
    ["twelve segments", (h) => h.put({ op: READ, count: 12, segments: h.pages(0, 11) }), ERROR],
    ["255 segments", (h) => h.put({ op: WRITE, count: 255, segments: h.pages(0, 11) }), ERROR],
    [
      "first after last",
      (h) => h.put({ op: READ, segments: [{ gref: h.ref(0), first: 5, last: 4 }] }),
      ERROR,
    ],
    [
      "last beyond the page",
      (h) => h.put({ op: READ, segments: [{ gref: h.ref(0), first: 0, last: 8 }] }),
      ERROR,
    ],
    [
      "a sector whose byte overflows",
      (h) => h.put({ op: READ, sector: 1n << 63n, segments: h.pages(0, 1) }),
      ERROR,
    ],
    [
      "the last sector there is",
      (h) => h.put({ op: WRITE, sector: (1n << 64n) - 1n, segments: h.pages(0, 1) }),
      ERROR,
    ],
    [
      "2^55, whose bytes wrap 64 bits",
      (h) => h.put({ op: WRITE, sector: 1n << 55n, segments: h.pages(0, 1) }),
      ERROR,
    ],
    ["an end beyond the disk", (h) => h.put({ op: READ, sector: disk - 7, segments: h.pages(0, 1) }), ERROR],
    ["a grant that is none", (h) => h.put({ op: READ, segments: [{ gref: 9999 }] }), ERROR],
    ["a grant beyond any table", (h) => h.put({ op: WRITE, segments: [{ gref: 0xffff_ffff }] }), ERROR],
    [
      "one bad grant among good ones",
      (h) => h.put({ op: WRITE, segments: [...h.pages(0, 3), { gref: 9999 }] }),
      ERROR,
    ],
    ["an indirect request in an indirect one", (h) => h.putIndirect(6, 20, 0, [h.ref(0)]), ERROR],
    ["an indirect flush", (h) => h.putIndirect(FLUSH, 20, 0, [h.ref(0)]), ERROR],
    ["indirect without segments", (h) => h.putIndirect(READ, 0, 0, [h.ref(0)]), ERROR],
    ["more indirect segments than offered", (h) => h.putIndirect(READ, 257, 0, [h.ref(0)]), ERROR],
    ["65535 indirect segments", (h) => h.putIndirect(READ, 65535, 0, [h.ref(0)]), ERROR],
    ["an indirect page that is no grant", (h) => h.putIndirect(READ, 20, 0, [7777]), ERROR],
    [
      "a bad segment on an indirect page",
      (h) => {
        h.fillIndirectPage(
          0,
          Array.from({ length: 20 }, (_, i) => ({ gref: h.ref(1), last: i === 19 ? 200 : 7 })),
        );
        h.putIndirect(READ, 20, 0, [h.ref(0)]);
      },
      ERROR,
    ],
    ["a discard beyond the disk", (h) => h.putDiscard(disk - 1, 2), ERROR],
    ["a discard whose count overflows", (h) => h.putDiscard(1, (1n << 64n) - 1n), ERROR],
    ["a discard at 2^63", (h) => h.putDiscard(1n << 63n, 8), ERROR],
    [
      "a barrier beyond the disk",
      (h) => h.put({ op: BARRIER, sector: disk, segments: h.pages(0, 1) }),
      ERROR,
    ],
    ["a slot of 0xff", (h) => h.putRaw(new Uint8Array(112).fill(0xff)), EOPNOTSUPP],
    ["a slot of zeroes", (h) => h.putRaw(new Uint8Array(112)), ERROR],
  ];
  for (const grantMode of ["copy", "map", "persistent"] as const)
    test.each(cases)(`${grantMode}: %s`, async (_name, put, status) => {
      const h = await start({ grantMode });
      put(h);
      expect(h.serve().map((it) => it.status)).toEqual([status]);
      expectAlive(h);
      expect(Buffer.compare(h.readImage(0, 1 << 20), Buffer.from(pattern(1 << 20)))).toBe(0);
    });

  test("writes, discards and barriers to a read-only disk", async () => {
    const h = await start({ readOnly: true });
    h.put({ op: WRITE, segments: h.pages(0, 1) });
    h.put({ op: BARRIER, segments: h.pages(0, 1) });
    h.putDiscard(0, 8);
    h.putIndirect(WRITE, 1, 0, [h.ref(0)]);
    h.fillIndirectPage(0, h.pages(1, 1));
    expect(h.serve().map((it) => it.status)).toEqual([ERROR, ERROR, ERROR, ERROR]);
    expectAlive(h);
  });

  test("requests that are not whole sectors of a 4096-byte disk", async () => {
    const h = await start({ sectorBytes: 4096 });
    h.put({ op: READ, sector: 4, segments: h.pages(0, 1) });
    h.put({ op: READ, sector: 8, segments: [{ gref: h.ref(0), first: 0, last: 3 }] });
    h.put({
      op: READ,
      sector: 8,
      segments: [
        { gref: h.ref(0), first: 0, last: 3 },
        { gref: h.ref(1), first: 4, last: 7 },
      ],
    });
    h.putDiscard(4, 8);
    expect(
      h
        .serve()
        .map((it) => it.status)
        .toSorted(),
    ).toEqual([ERROR, ERROR, ERROR, OKAY].toSorted());
    expectAlive(h);
  });

  test("a read-only grant cannot be read into, a grant for another domain is none", async () => {
    const h = await start();
    const readOnly = h.front.share.share(h.backPlatform.domid, 1, "r");
    const others = h.front.share.share(2 as typeof h.backPlatform.domid, 1, "rw");
    h.put({ op: READ, id: 1n, segments: [{ gref: readOnly.refs[0] }] });
    h.put({ op: WRITE, id: 2n, sector: 32, segments: [{ gref: readOnly.refs[0] }] });
    h.put({ op: WRITE, id: 3n, segments: [{ gref: others.refs[0] }] });
    const status = new Map(h.serve().map((it) => [it.id, it.status]));
    expect([status.get(1n), status.get(2n), status.get(3n)]).toEqual([ERROR, OKAY, ERROR]);
    readOnly.mapping.close();
    others.mapping.close();
    h.writeImage(32 * 512, pattern(1 << 20).subarray(32 * 512, 40 * 512));
    expectAlive(h);
  });

  test("a revoked grant fails, and its neighbours in the same merged write do not", async () => {
    const h = await start();
    const gone = h.front.share.share(h.backPlatform.domid, 1, "rw");
    gone.mapping.close();
    for (let i = 0; i < 3; i++) h.page(i).fill(i + 1);
    h.put({ op: WRITE, id: 0n, sector: 0, segments: [{ gref: h.ref(0) }] });
    h.put({ op: WRITE, id: 1n, sector: 8, segments: [{ gref: gone.refs[0] }] });
    h.put({ op: WRITE, id: 2n, sector: 16, segments: [{ gref: h.ref(2) }] });
    const status = new Map(h.serve().map((it) => [it.id, it.status]));
    expect([status.get(0n), status.get(1n), status.get(2n)]).toEqual([OKAY, ERROR, OKAY]);
    expect(h.readImage(0, 4096).every((byte) => byte === 1)).toBe(true);
    expect(h.readImage(16 * 512, 4096).every((byte) => byte === 3)).toBe(true);
  });

  test("ids that repeat come back as often as they were sent", async () => {
    const h = await start();
    for (let i = 0; i < 8; i++) h.put({ op: READ, id: 5n, sector: i * 8, segments: h.pages(i, 1) });
    expect(h.serve()).toEqual(Array.from({ length: 8 }, () => ({ id: 5n, op: READ, status: OKAY })));
  });
});

describe("a ring that lies stops the device, and only it", () => {
  test.each([1, 2, 1000, 0x8000_0000, 0xffff_ffff])("req_prod %i beyond what fits", async (beyond) => {
    const h = await start();
    h.put({ op: READ, segments: h.pages(0, 1) });
    h.serve();
    h.setIndex(0, (h.reqProd + (beyond < 0x8000_0000 ? h.slots : 0) + beyond) >>> 0);
    h.plane.step();
    expect(h.plane.failure?.message).toContain("indices cannot be true");
    h.plane.step();
    expect(h.takeResponses()).toEqual([]);
  });
});

describe("a target in trouble", () => {
  test("EIO on everything: error responses, and the device goes on", async () => {
    const h = await start({ filters: ["error:rate=100%"] });
    for (let i = 0; i < 8; i++) h.put({ op: i % 2, id: BigInt(i), sector: i * 8, segments: h.pages(i, 1) });
    h.put({ op: FLUSH, id: 8n });
    h.putDiscard(0, 8, 9n);
    expect(h.serve().map((it) => it.status)).toEqual(Array.from({ length: 10 }, () => ERROR));
  });

  test("a merged write that fails is tried piece by piece", async () => {
    const h = await start({ filters: ["error:rate=30%,seed=3,op=write"] });
    let failed = 0;
    for (let round = 0; round < 20; round++) {
      for (let i = 0; i < 8; i++) {
        h.page(i).fill(round + i);
        h.put({ op: WRITE, id: BigInt(i), sector: i * 8, segments: h.pages(i, 1) });
      }
      for (const response of h.serve()) {
        if (response.status === ERROR) failed++;
        else {
          const at = Number(response.id);
          expect(h.readImage(at * 4096, 4096).every((byte) => byte === round + at)).toBe(true);
        }
      }
    }
    expect(failed).toBeGreaterThan(0);
    expect(failed).toBeLessThan(160);
  });

  test("operations the target cannot do: EOPNOTSUPP, as the protocol has it", async () => {
    const h = await start({ filters: ["error:errno=EOPNOTSUPP,op=flush+discard"] });
    h.put({ op: FLUSH, id: 1n });
    h.putDiscard(0, 8, 2n);
    expect(h.serve().map((it) => it.status)).toEqual([EOPNOTSUPP, EOPNOTSUPP]);
    expectAlive(h);
  });

  test("an image cut short while it is served", async () => {
    const h = await start();
    const { truncateSync } = await import("node:fs");
    truncateSync(h.imagePath, 64 * 1024);
    h.put({ op: READ, id: 1n, sector: 256, segments: h.pages(0, 1) });
    h.put({ op: READ, id: 2n, sector: 124, segments: h.pages(1, 1) });
    h.put({ op: READ, id: 3n, sector: 0, segments: h.pages(2, 1) });
    const status = new Map(h.serve().map((it) => [it.id, it.status]));
    expect([status.get(1n), status.get(2n), status.get(3n)]).toEqual([ERROR, ERROR, OKAY]);
    expectAlive(h);
  });

  test("delays hold requests back without holding up others", async () => {
    const h = await start({ filters: ["delay:ms=20,op=write", "log:op=flush"] });
    h.page(0).fill(9);
    h.put({ op: WRITE, id: 1n, sector: 0, segments: h.pages(0, 1) });
    h.put({ op: READ, id: 2n, sector: 800, segments: h.pages(1, 1) });
    expect(h.serve().map((it) => it.id)).toEqual([2n, 1n]);
    expect(h.readImage(0, 4096).every((byte) => byte === 9)).toBe(true);
  });
});

describe.each(["copy", "map", "persistent"] as const)("told to stop, data by %s", (grantMode) => {
  test("what was started is completed, what was not is left", async () => {
    const h = await start({ grantMode, ringPages: 16, imageBytes: 1 << 20, dataPages: 32 });
    // Each waits for the one before it.
    for (let id = 0n; id < 512n; id++) h.put({ op: WRITE, id, sector: 8, segments: h.pages(0, 11) });
    h.push();
    let looks = 0;
    h.plane.run(() => looks++ > 0);
    expect(h.takeResponses()).toEqual([{ id: 0n, op: WRITE, status: OKAY }]);
    expect(h.plane.unanswered).toBe(511);
  });

  test("memory bounds what can have been started", async () => {
    const h = await start({ grantMode, ringPages: 16, imageBytes: 1 << 20, maxIndirectSegments: 4096 });
    const sector = { gref: h.ref(9), first: 0, last: 0 };
    for (let page = 0; page < 4; page++) h.fillIndirectPage(page, Array<typeof sector>(512).fill(sector));
    const pages = [0, 1, 2, 3].map((page) => h.ref(page));
    for (let id = 0n; id < 100n; id++) h.putIndirect(READ, 2048, 0, pages, id);
    h.push();
    let looks = 0;
    h.plane.run(() => looks++ > 0);
    const answered = h.takeResponses().length;
    expect(answered).toBeGreaterThan(0);
    expect(answered + h.plane.unanswered).toBe(100);
    expect(h.plane.unanswered).toBeGreaterThan(0);
  });
});
