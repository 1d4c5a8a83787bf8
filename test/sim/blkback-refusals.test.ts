// Why a guest's requests are refused: for each reason a ring on which just that happens, the counters that show it, and
// statistics that name it. A reason that nothing reaches any more fails here.
import { afterEach, expect, test } from "bun:test";
import { formatStats } from "../../cmd/lib/stats-report.ts";
import { REFUSALS, STATUS_OF } from "../../src/blkback/data-plane/refusals.ts";
import { readStats, refusalCounter, STAT, StatsPage } from "../../src/blkback/stats/stats.ts";
import { RingHarness, type HarnessOptions } from "./blk-harness.ts";
import { removeDirectory, temporaryDirectory } from "../support/temporary.ts";

const READ = 0;
const WRITE = 1;
const FLUSH = 3;
const NOT_GRANTED = 9999;

let harness: RingHarness | undefined;

afterEach(async () => {
  await harness?.close();
  harness = undefined;
});

interface Case {
  readonly options?: HarnessOptions;
  /** Leads to refusals for this reason, as many as `count`, and after those that `before` names. */
  readonly put: (h: RingHarness) => void;
  readonly count?: number;
  readonly before?: Readonly<Record<string, number>>;
}

const beyond = { sector: 1 << 20 };

/** By name of the reason. */
const CASES: Readonly<Record<string, Case>> = {
  unknownOperation: { put: (h) => h.put({ op: 77, segments: h.pages(0, 1) }) },
  badIndirectOperation: { put: (h) => h.putIndirect(FLUSH, 20, 0, [h.ref(0)]) },
  noSegments: {
    put: (h) => {
      h.put({ op: READ });
      h.putIndirect(READ, 0, 0, [h.ref(0)]);
    },
    count: 2,
  },
  tooManySegments: {
    put: (h) => {
      h.put({ op: WRITE, segments: h.pages(0, 11), count: 12 });
      h.putIndirect(READ, 257, 0, [h.ref(0)]);
    },
    count: 2,
  },
  badSegment: { put: (h) => h.put({ op: READ, segments: [{ gref: h.ref(0), first: 5, last: 4 }] }) },
  badIndirectPage: { put: (h) => h.putIndirect(READ, 20, 0, [NOT_GRANTED]) },
  badDataGrant: {
    // A read, a write, and a write that is merged with a good neighbour.
    put: (h) => {
      h.put({ op: READ, sector: 0, segments: [{ gref: NOT_GRANTED }] });
      h.put({ op: WRITE, sector: 64, segments: [{ gref: NOT_GRANTED }] });
      h.put({ op: WRITE, sector: 128, segments: h.pages(1, 1) });
      h.put({ op: WRITE, sector: 136, segments: [{ gref: NOT_GRANTED }] });
    },
    count: 3,
  },
  beyondTheEnd: {
    put: (h) => {
      h.put({ op: READ, ...beyond, segments: h.pages(0, 1) });
      h.put({ op: READ, sector: 1n << 60n, segments: h.pages(0, 1) });
      h.putIndirect(READ, 20, 1n << 60n, [h.ref(0)]);
      h.putDiscard(0, 1 << 20);
    },
    count: 4,
  },
  misaligned: {
    options: { sectorBytes: 4096 },
    put: (h) => h.put({ op: READ, sector: 4, segments: h.pages(0, 1) }),
  },
  readOnly: {
    options: { readOnly: true },
    put: (h) => {
      h.put({ op: WRITE, segments: h.pages(0, 1) });
      h.putDiscard(0, 8);
    },
    count: 2,
  },
  noDiscard: { options: { discard: false }, put: (h) => h.putDiscard(0, 8) },
  noSecureDiscard: { put: (h) => h.putDiscard(0, 8, 0n, 1) },
  afterFailedFlush: {
    options: { filters: ["error:times=1,op=flush"] },
    put: (h) => {
      h.put({ op: FLUSH });
      h.serve();
      h.put({ op: FLUSH });
      h.put({ op: WRITE, segments: h.pages(0, 1) });
    },
    count: 2,
    before: { imageFailed: 1 },
  },
  imageFailed: {
    options: { filters: ["error:rate=100%,op=read"] },
    put: (h) => {
      h.put({ op: READ, sector: 0, segments: h.pages(0, 1) });
      h.put({ op: READ, sector: 8, segments: h.pages(1, 1) });
    },
    count: 2,
  },
  imageCannot: {
    options: { filters: ["error:errno=EOPNOTSUPP,op=discard"] },
    put: (h) => h.putDiscard(0, 8),
  },
};

test.each(REFUSALS.map(({ name }, index) => [name, index + 1] as const))("%s", async (name, code) => {
  const { options, put, count = 1, before = {} } = CASES[name];
  for (const grantMode of ["copy", "map", "persistent"] as const) {
    const h = (harness = await RingHarness.start({ ...options, grantMode }));
    put(h);
    const refused = h.serve().filter(({ status }) => status !== 0);
    expect(refused.map(({ status }) => status)).toEqual(Array.from({ length: count }, () => STATUS_OF[code]));
    const counts = REFUSALS.map((it, index) => [it.name, h.counters[refusalCounter(index + 1)]] as const);
    const wanted = { ...before, [name]: count };
    expect(Object.fromEntries(counts.filter(([, times]) => times !== 0))).toEqual(wanted);
    expect(h.counters[STAT.errors]).toBe(Object.values(wanted).reduce((sum, times) => sum + times));
    await h.close();
    harness = undefined;
  }
});

test("statistics have a number for every reason, and words for those that occurred", () => {
  const dir = temporaryDirectory();
  const page = StatsPage.create(dir, 1, 51728);
  try {
    expect(formatStats(readStats(dir, 1, 51728))).not.toContain("refused");
    REFUSALS.forEach((_, index) => (page.counters[refusalCounter(index + 1)] = index * 1000));
    const stats = readStats(dir, 1, 51728);
    expect(stats.refused).toEqual(
      Object.fromEntries(REFUSALS.map(({ name }, index) => [name, index * 1000])),
    );
    expect([stats.ringUtilisation, stats.errors]).toEqual([[], 0]);
    const line = /^ {2}refused: (.*)$/m.exec(formatStats(stats))?.[1];
    expect(line?.split("; ").map((it) => it.replace(/^[^a-z]+/, ""))).toEqual(
      REFUSALS.slice(1).map(({ words }) => words),
    );
  } finally {
    page.remove();
    removeDirectory(dir);
  }
});
