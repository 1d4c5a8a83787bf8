// A guest that agreed to kept grants and then takes them back, gives their numbers to other pages, or writes to them in
// the middle of I/O: it harms its own data only, and nothing stays behind.
import { afterEach, expect, test } from "bun:test";
import { STAT } from "../../src/blkback/stats/stats.ts";
import type { SharedPages } from "../../src/platform/platform.ts";
import { BACK, FRONT, pattern, RingHarness, type HarnessOptions } from "./blk-harness.ts";

const READ = 0;
const WRITE = 1;
const OKAY = 0;
const ERROR = -1;

let harness: RingHarness | undefined;

async function start(options: HarnessOptions = {}): Promise<RingHarness> {
  harness = await RingHarness.start({ grantMode: "persistent", ...options });
  return harness;
}

afterEach(async () => {
  await harness?.close();
  harness = undefined;
});

/** How often the backend has each of `refs` mapped. */
function mappedBy(h: RingHarness, refs: readonly number[]): number[] {
  const maps = h.host.usage().filter((item) => item.kind === "map" && item.domid === FRONT);
  return refs.map((ref) => maps.filter(({ id }) => id === ref).length);
}

function ask(h: RingHarness, op: number, sector: number, ...refs: number[]): number {
  h.put({ op, sector, segments: refs.map((gref) => ({ gref })) });
  const [response] = h.serve();
  return (response as { status: number }).status;
}

const share = (h: RingHarness, pages = 1): SharedPages => h.front.share.share(BACK, pages, "rw");

test("pages stay mapped between requests, once for each ring, and data goes straight into them", async () => {
  const h = await start({ queues: 2 });
  const [first, second] = h.rings as [RingHarness, (typeof h.rings)[number]];
  const refs = [h.ref(0), h.ref(1)];
  expect(mappedBy(h, refs)).toEqual([0, 0]);
  for (let round = 0; round < 3; round++) expect(ask(h, READ, round * 16, ...refs)).toBe(OKAY);
  expect(mappedBy(h, refs)).toEqual([1, 1]);
  expect(Buffer.compare(h.page(1), h.readImage(40 * 512, 4096))).toBe(0);
  second.put({ op: READ, sector: 0, segments: [{ gref: refs[0] }] });
  second.push();
  h.plane.step();
  expect(second.takeResponses().map(({ status }) => status)).toEqual([OKAY]);
  expect(mappedBy(h, refs)).toEqual([2, 1]);
  expect(first.takeResponses()).toEqual([]);
  expect(h.counters[STAT.copiedSegments]).toBe(0);
});

test("an indirect page is kept as well, and read anew for each request", async () => {
  const h = await start();
  const ref = h.ref(31);
  for (const page of [2, 3]) {
    h.fillIndirectPage(31, h.pages(page, 1));
    h.putIndirect(READ, 1, page * 8, [ref]);
    expect(h.serve().map(({ status }) => status)).toEqual([OKAY]);
    expect(Buffer.compare(h.page(page), h.readImage(page * 4096, 4096))).toBe(0);
  }
  expect(mappedBy(h, [ref])).toEqual([1]);
  expect(h.counters[STAT.copiedSegments]).toBe(0);
});

test("a grant taken back while it is kept is not reused, and its page is the guest's only", async () => {
  const h = await start();
  const lost = share(h);
  const [ref] = lost.refs as readonly number[] as [number];
  expect(ask(h, READ, 0, ref)).toBe(OKAY);
  lost.mapping.close();
  // The same number again, which still is the old page.
  const next = share(h, 8);
  next.mapping.bytes.fill(0x5a);
  expect(next.refs.includes(ref as never)).toBe(false);
  expect(ask(h, READ, 8, ref)).toBe(OKAY);
  expect(ask(h, WRITE, 16, ref)).toBe(OKAY);
  expect(Buffer.compare(h.readImage(8192, 4096), pattern(1 << 20).subarray(4096, 8192))).toBe(0);
  expect(next.mapping.bytes.every((byte) => byte === 0x5a)).toBe(true);
  // A page that was never mapped before it was taken back is that request's error.
  const gone = Number(next.refs[0]);
  next.mapping.close();
  expect(ask(h, READ, 0, gone)).toBe(ERROR);
  h.put({ op: READ, sector: 0, segments: [{ gref: h.ref(0) }, { gref: gone }] });
  h.put({ op: READ, sector: 8, segments: [{ gref: h.ref(1) }] });
  expect(
    h
      .serve()
      .map(({ status }) => status)
      .toSorted(),
  ).toEqual([ERROR, OKAY]);
});

test("a page granted for reading only cannot be kept: a write from it fails, too", async () => {
  const h = await start();
  const pages = h.front.share.share(BACK, 1, "r");
  expect(ask(h, WRITE, 0, Number(pages.refs[0]))).toBe(ERROR);
  expect(ask(h, READ, 0, Number(pages.refs[0]))).toBe(ERROR);
  expect(Buffer.compare(h.readImage(0, 4096), pattern(4096))).toBe(0);
  pages.mapping.close();
});

test("the same page in every segment of many requests is mapped once", async () => {
  const h = await start();
  for (let i = 0; i < h.slots; i++)
    h.put({ op: WRITE, sector: i * 64, segments: Array.from({ length: 8 }, () => ({ gref: h.ref(0) })) });
  expect(h.serve().every(({ status }) => status === OKAY)).toBe(true);
  expect(mappedBy(h, [h.ref(0)])).toEqual([1]);
});
