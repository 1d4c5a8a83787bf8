// From a slot's bytes to a verdict: every combination of operations, counts, sectors and sizes at the edges of what is
// allowed, against the protocol's rules written down a second time, in whole numbers without bounds. A refused request
// must be refused for the right reason.
import { describe, expect, test } from "bun:test";
import { RequestCopies } from "../../src/blkback/data-plane/data/copies.ts";
import { ADMITTED, RequestParser } from "../../src/blkback/data-plane/parse.ts";
import {
  BAD_INDIRECT_OPERATION,
  BAD_INDIRECT_PAGE,
  BAD_SEGMENT,
  BEYOND_THE_END,
  MISALIGNED,
  NO_DISCARD,
  NO_SECURE_DISCARD,
  NO_SEGMENTS,
  NOT_REFUSED,
  READ_ONLY,
  REFUSALS,
  STATUS_OF,
  TOO_MANY_SEGMENTS,
  UNKNOWN_OPERATION,
} from "../../src/blkback/data-plane/refusals.ts";
import {
  KIND_BARRIER,
  KIND_DISCARD,
  KIND_FLUSH,
  KIND_READ,
  KIND_SECURE_DISCARD,
  KIND_WRITE,
  RequestTable,
  type OfferedDisk,
} from "../../src/blkback/data-plane/requests.ts";
import { allocateMemory } from "../../src/native/memory.ts";
import { FakeGrants, GUEST } from "./blkback-fakes.ts";

const SECTORS = 64;
const SIZE = 16;
const DISK: OfferedDisk = {
  sectors512: SECTORS,
  readOnly: false,
  logicalSectorBytes: 512,
  canDiscard: true,
  canSecureDiscard: false,
  maxIndirectSegments: 600,
};
const DISKS: readonly OfferedDisk[] = [
  DISK,
  { ...DISK, readOnly: true },
  { ...DISK, logicalSectorBytes: 4096 },
  { ...DISK, canDiscard: false },
  { ...DISK, canSecureDiscard: true },
  { ...DISK, maxIndirectSegments: 0 },
];
/** Sector numbers at which something could overflow. */
const EDGES: readonly bigint[] = [
  0n,
  1n,
  8n,
  BigInt(SECTORS) - 8n,
  BigInt(SECTORS) - 1n,
  BigInt(SECTORS),
  (1n << 32n) - 1n,
  1n << 32n,
  (1n << 53n) - 1n,
  1n << 53n,
  1n << 55n,
  1n << 63n,
  (1n << 64n) - 1n,
];

interface Verdict {
  /** Why it is refused; NOT_REFUSED also when it is answered at once because there is nothing to do. */
  readonly reason: number;
  readonly operation: number;
  /** When admitted. */
  readonly kind?: number;
  readonly start?: number;
  readonly length?: number;
}

/** A parser over slots of the test's own. */
class Bench {
  readonly grants = new FakeGrants(4);
  readonly slots = allocateMemory(SIZE * 112);
  readonly view = new DataView(this.slots.bytes.buffer);
  readonly requests: RequestTable;
  readonly parser: RequestParser;
  readonly #copies: RequestCopies;

  constructor(disk: OfferedDisk) {
    this.requests = new RequestTable(SIZE, disk.maxIndirectSegments);
    this.#copies = new RequestCopies(this.grants, this.requests.failed);
    this.parser = new RequestParser(GUEST, SIZE, this.requests, this.slots, disk, this.#copies);
  }

  /** Has `write` fill slot 0, parses it, and checks the verdict; its row is free again then. */
  expect(write: (view: DataView) => void, wanted: Verdict): void {
    this.slots.bytes.fill(0, 0, 112);
    this.view.setBigUint64(8, 0xfedc_ba98_7654_3210n, true);
    write(this.view);
    this.parser.admit(1, 5);
    const { requests, parser } = this;
    const row = parser.rows[0];
    const got = {
      reason: parser.verdicts[0] === ADMITTED ? "admitted" : parser.verdicts[0],
      operation: requests.operation[row],
      ...(parser.verdicts[0] === ADMITTED && {
        kind: requests.kind[row],
        start: requests.start[row],
        length: requests.length[row],
      }),
    };
    const admitted = wanted.kind !== undefined;
    const matches =
      got.reason === (admitted ? "admitted" : wanted.reason) &&
      got.operation === wanted.operation &&
      got.kind === wanted.kind &&
      got.start === wanted.start &&
      got.length === wanted.length &&
      requests.idLow[row] === 0x7654_3210 &&
      requests.idHigh[row] === 0xfedc_ba98 &&
      parser.bad === (admitted || wanted.reason === NOT_REFUSED ? 0 : 1);
    if (!matches)
      expect({ slot: Buffer.from(this.slots.bytes.subarray(0, 112)).toString("hex"), ...got }).toEqual({
        slot: "",
        ...wanted,
      } as never);
    requests.release(row);
  }

  close(): void {
    this.#copies.close();
    this.requests.close();
    this.slots.close();
  }
}

interface Part {
  readonly first: number;
  readonly last: number;
}

/** The rules of the protocol for a transfer of these parts of pages. */
function judgeTransfer(
  disk: OfferedDisk,
  operation: number,
  kind: number,
  sector: bigint,
  parts: readonly Part[],
): Verdict {
  if (sector >= 1n << 53n) return { reason: BEYOND_THE_END, operation };
  if (parts.some(({ first, last }) => first > last || last > 7)) return { reason: BAD_SEGMENT, operation };
  if (disk.readOnly && kind !== KIND_READ) return { reason: READ_ONLY, operation };
  const sectors = parts.reduce((sum, { first, last }) => sum + last - first + 1, 0);
  if (sector + BigInt(sectors) > BigInt(disk.sectors512)) return { reason: BEYOND_THE_END, operation };
  const unit = disk.logicalSectorBytes / 512;
  if (Number(sector) % unit !== 0 || sectors % unit !== 0) return { reason: MISALIGNED, operation };
  return { reason: NOT_REFUSED, operation, kind, start: Number(sector) * 512, length: sectors * 512 };
}

const PART_SETS: readonly (readonly Part[])[] = [
  ...Array.from({ length: 81 }, (_, at) => [{ first: at % 9, last: Math.floor(at / 9) }]),
  [{ first: 255, last: 255 }],
  [{ first: 0, last: 255 }],
  [
    { first: 0, last: 7 },
    { first: 0, last: 7 },
  ],
  [
    { first: 0, last: 3 },
    { first: 4, last: 7 },
  ],
  [
    { first: 0, last: 7 },
    { first: 7, last: 6 },
  ],
  Array.from({ length: 11 }, () => ({ first: 0, last: 0 })),
  Array.from({ length: 11 }, () => ({ first: 0, last: 7 })),
];

describe.each(DISKS.map((disk) => [JSON.stringify(disk), disk] as const))("%s", (_name, disk) => {
  test("every operation with every count of segments", () => {
    const bench = new Bench(disk);
    for (let operation = 0; operation < 256; operation++) {
      if (operation === 5 || operation === 6) continue;
      for (let count = 0; count < 256; count++) {
        const parts = Array.from({ length: Math.min(count, 11) }, () => ({ first: 0, last: 7 }));
        const isFlush = operation === 3;
        const kind = operation === 0 ? KIND_READ : operation === 1 ? KIND_WRITE : KIND_BARRIER;
        let wanted: Verdict;
        if (operation > 3) wanted = { reason: UNKNOWN_OPERATION, operation };
        else if (count === 0 && operation < 2) wanted = { reason: NO_SEGMENTS, operation };
        else if (count === 0)
          wanted = {
            reason: NOT_REFUSED,
            operation,
            kind: isFlush ? KIND_FLUSH : KIND_BARRIER,
            start: 0,
            length: 0,
          };
        else if (count > 11) wanted = { reason: TOO_MANY_SEGMENTS, operation };
        else wanted = judgeTransfer(disk, operation, kind, 0n, parts);
        bench.expect((view) => {
          view.setUint8(0, operation);
          view.setUint8(1, count);
          parts.forEach((_, index) => view.setUint8(24 + index * 8 + 5, 7));
        }, wanted);
      }
    }
    bench.close();
  });

  test("every part of a page, at every edge of the disk and of numbers", () => {
    const bench = new Bench(disk);
    for (const operation of [0, 1, 2, 3])
      for (const sector of EDGES)
        for (const parts of PART_SETS) {
          const kind = operation === 0 ? KIND_READ : operation === 1 ? KIND_WRITE : KIND_BARRIER;
          bench.expect(
            (view) => {
              view.setUint8(0, operation);
              view.setUint8(1, parts.length);
              view.setBigUint64(16, sector, true);
              for (const [index, { first, last }] of parts.entries()) {
                view.setUint8(24 + index * 8 + 4, first);
                view.setUint8(24 + index * 8 + 5, last);
              }
            },
            judgeTransfer(disk, operation, kind, sector, parts),
          );
        }
    bench.close();
  });

  test("discards", () => {
    const bench = new Bench(disk);
    for (const sector of EDGES)
      for (const count of EDGES)
        for (const flag of [0, 1, 2, 255]) {
          const secure = (flag & 1) !== 0;
          const end = sector + count;
          const unit = disk.logicalSectorBytes / 512;
          const isMisaligned = Number(sector) % unit !== 0 || Number(count) % unit !== 0;
          let reason = NOT_REFUSED;
          if (disk.readOnly) reason = READ_ONLY;
          else if (!disk.canDiscard) reason = NO_DISCARD;
          else if (secure && !disk.canSecureDiscard) reason = NO_SECURE_DISCARD;
          else if (end > BigInt(SECTORS)) reason = BEYOND_THE_END;
          else if (count > 0n && isMisaligned) reason = MISALIGNED;
          const kind = secure ? KIND_SECURE_DISCARD : KIND_DISCARD;
          const admitted = { kind, start: Number(sector) * 512, length: Number(count) * 512 };
          bench.expect(
            (view) => {
              view.setUint8(0, 5);
              view.setUint8(1, flag);
              view.setBigUint64(16, sector, true);
              view.setBigUint64(24, count, true);
            },
            { reason, operation: 5, ...(reason === NOT_REFUSED && count > 0n && admitted) },
          );
        }
    bench.close();
  });

  test("indirect requests: every inner operation, counts around every limit, and a bad part at every place", () => {
    const bench = new Bench(disk);
    const { grants } = bench;
    const pages = new DataView(grants.pages.buffer);
    for (let inner = 0; inner < 256; inner += inner < 8 ? 1 : 31)
      for (const count of [0, 1, 11, 12, 511, 512, 513, 599, 600, 601, 4096, 65_535])
        for (const bad of [-1, 0, 511, 512, count - 1])
          for (const sector of [0n, BigInt(SECTORS) - 1n, 1n << 53n]) {
            const isFair = inner < 2 && count > 0 && count <= disk.maxIndirectSegments;
            const parts = isFair
              ? Array.from({ length: count }, (_, at) => ({ first: at % 8, last: at === bad ? 8 : at % 8 }))
              : [];
            for (const [index, { first, last }] of parts.entries()) {
              pages.setUint8(index * 8 + 4, first);
              pages.setUint8(index * 8 + 5, last);
            }
            const kind = inner === 0 ? KIND_READ : KIND_WRITE;
            let reason = TOO_MANY_SEGMENTS;
            if (inner > 1) reason = BAD_INDIRECT_OPERATION;
            else if (count === 0) reason = NO_SEGMENTS;
            bench.expect(
              (view) => {
                view.setUint8(0, 6);
                view.setUint8(1, inner);
                view.setUint16(2, count, true);
                view.setBigUint64(16, sector, true);
                view.setUint32(28, grants.ref(0), true);
                view.setUint32(32, grants.ref(1), true);
              },
              isFair ? judgeTransfer(disk, inner, kind, sector, parts) : { reason, operation: inner },
            );
          }
    bench.close();
  });
});

describe("a batch", () => {
  /** Puts an indirect read of `count` segments, a sector each, whose pages are `refs`, into slot `slot`. */
  function putIndirect(bench: Bench, slot: number, count: number, refs: readonly number[]): void {
    const at = slot * 112;
    bench.view.setUint8(at, 6);
    bench.view.setUint16(at + 2, count, true);
    for (const [index, ref] of refs.entries()) bench.view.setUint32(at + 28 + index * 4, ref, true);
  }

  test("fetches the indirect pages of all its requests in one call, and a bad one fails only its own", () => {
    const bench = new Bench({ ...DISK, sectors512: 10_000 });
    const { grants, parser, requests } = bench;
    const pages = new DataView(grants.pages.buffer);
    for (let index = 0; index < 2048; index++) pages.setUint32(index * 8, 5000 + index, true);
    putIndirect(bench, 0, 600, [grants.ref(0), grants.ref(1)]);
    putIndirect(bench, 1, 600, [grants.ref(2), 9999]);
    putIndirect(bench, 2, 10, [grants.ref(3)]);
    parser.admit(3, 0);
    expect([...parser.verdicts.subarray(0, 3)]).toEqual([ADMITTED, BAD_INDIRECT_PAGE, ADMITTED]);
    expect([grants.copyCalls, parser.indirect, parser.bad]).toEqual([1, 3, 1]);
    const [first, , third] = parser.rows;
    expect([0, 511, 512, 599].map((index) => requests.gref(first, index))).toEqual([5000, 5511, 5512, 5599]);
    expect(requests.gref(third, 9)).toBe(5000 + 3 * 512 + 9);
    bench.close();
  });

  test("whose fetch fails as a whole loses its indirect requests, and no others", () => {
    const bench = new Bench(DISK);
    putIndirect(bench, 0, 4, [bench.grants.ref(0)]);
    bench.view.setUint8(112, 3);
    bench.grants.copyErrno = -14;
    bench.parser.admit(2, 0);
    expect([...bench.parser.verdicts.subarray(0, 2)]).toEqual([BAD_INDIRECT_PAGE, ADMITTED]);
    bench.close();
  });

  test("is judged from what was copied: what changes on the pages afterwards is not seen", () => {
    const bench = new Bench(DISK);
    putIndirect(bench, 0, 4, [bench.grants.ref(0)]);
    bench.parser.admit(1, 0);
    bench.grants.pages.fill(0xff);
    bench.slots.bytes.fill(0xff);
    const row = bench.parser.rows[0];
    for (let index = 0; index < 4; index++)
      expect([bench.requests.gref(row, index), bench.requests.sectCount(row, index)]).toEqual([0, 1]);
    expect([bench.requests.kind[row], bench.requests.length[row]]).toEqual([KIND_READ, 4 * 512]);
    bench.close();
  });
});

test("every reason has a name of its own, words, and the status of an error", () => {
  expect(new Set(REFUSALS.map(({ name }) => name)).size).toBe(REFUSALS.length);
  for (const { name, words } of REFUSALS) {
    expect(name).toMatch(/^[a-z]+([A-Z][a-z]+)*$/);
    expect(words).toMatch(/^[a-z, -]+$/);
  }
  expect([...STATUS_OF]).toEqual([0, ...REFUSALS.map(({ status }) => status)]);
  expect([...new Set(STATUS_OF)].toSorted()).toEqual([-1, -2, 0]);
});

test("docs/protocol-support.md lists every reason with its status, and no other", async () => {
  const page = await Bun.file(new URL("../../docs/protocol-support.md", import.meta.url)).text();
  const rows = [...page.matchAll(/^\| `(\w+)` +\| (ERROR|EOPNOTSUPP) +\|/gm)];
  expect(rows.map(([, name, status]) => [name, status])).toEqual(
    REFUSALS.map(({ name, status }) => [name, status === -1 ? "ERROR" : "EOPNOTSUPP"]),
  );
});
