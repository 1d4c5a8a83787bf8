// The map of clusters against a plain model: a Map from each cluster to its entry. Whatever is asked of it in any
// order, it says what was in the tables when they were read, less what was forgotten since, what did not fit, and what
// the image needs for itself.
import { describe, expect, test } from "bun:test";
import fc from "fast-check";
import { ClusterMap, NOWHERE } from "../../src/block/targets/qcow2/cluster-map.ts";
import type { Zeroes } from "../../src/protocol/qcow2.ts";
import { chosenSeed } from "../support/random.ts";

const COPIED = 1n << 63n;
const COMPRESSED = 1n << 62n;
const RESERVED_HIGH = 1n << 56n;
const ALL_ZEROES = 1n;
const RESERVED_LOW = 1n << 5n;
const RESERVED = (0x3fn << 56n) | 0x1fen;
/** What the model says of bytes that only the daemon may transfer. */
const THE_DAEMONS = -2;
const ALL: Zeroes = { unallocated: true, flagged: true };
const NO_ZEROES: Zeroes = { unallocated: false, flagged: false };
const OFFSET_MASK = 0x00ff_ffff_ffff_fe00n;

interface Geometry {
  readonly zeroes: Zeroes;
  readonly bits: number;
  readonly tables: number;
  readonly kept: number;
  readonly fileClusters: number;
}

type Step =
  | { readonly act: "locate"; readonly at: number; readonly bytes: number; readonly writes: boolean }
  | { readonly act: "forget"; readonly at: number; readonly bytes: number }
  | { readonly act: "forget in reading"; readonly at: number; readonly bytes: number }
  | { readonly act: "begin"; readonly table: number }
  | { readonly act: "end"; readonly missing: boolean; readonly seed: number }
  | { readonly act: "flush" };

/** Places around the borders of clusters and of tables, where mistakes are. */
function anyPlace({ bits, tables }: Geometry): fc.Arbitrary<number> {
  const bytes = 2 ** bits;
  const perTable = bytes / 8;
  const table = often(fc.nat(Math.min(2, tables) - 1), fc.nat(tables));
  const cluster = often(fc.constantFrom(0, 1, perTable - 1, perTable - 2), fc.nat(perTable - 1));
  const within = fc.constantFrom(0, 512, bytes - 512);
  return fc.tuple(table, cluster, within).map(([t, c, w]) => (t * perTable + c) * bytes + w);
}

function often<T>(some: fc.Arbitrary<T>, any: fc.Arbitrary<T>): fc.Arbitrary<T> {
  return fc.oneof({ arbitrary: some, weight: 4 }, any);
}

function anyStep(geometry: Geometry): fc.Arbitrary<Step> {
  const at = anyPlace(geometry);
  const bytes = fc.integer({ min: 1, max: 16 }).map((part) => (part * 2 ** geometry.bits) / 4);
  return fc.oneof(
    {
      arbitrary: fc.record({ act: fc.constant("locate" as const), at, bytes, writes: fc.boolean() }),
      weight: 4,
    },
    fc.record({ act: fc.constant("forget" as const), at, bytes }),
    fc.record({
      act: fc.constant("forget in reading" as const),
      at,
      bytes: often(bytes, fc.constant(3 * 2 ** geometry.bits * (2 ** geometry.bits / 8))),
    }),
    fc.record({
      act: fc.constant("begin" as const),
      table: often(fc.nat(Math.min(2, geometry.tables) - 1), fc.nat(geometry.tables - 1)),
    }),
    fc.record({ act: fc.constant("end" as const), missing: fc.boolean(), seed: fc.nat() }),
    fc.constant({ act: "flush" as const }),
  );
}

/** An entry as it may be in a file, hostile ones included. Most are plain, and neighbours often follow one another. */
function entryOf({ bits, fileClusters }: Geometry, seed: number, index: number): bigint {
  const mixed = Math.imul(seed ^ Math.imul(index >>> 2, 0x9e3779b1), 0x85ebca6b) >>> 0;
  const host = BigInt(((mixed % fileClusters) + (index & 3)) % (fileClusters + 2));
  const plain = host << BigInt(bits);
  switch ((mixed >>> 8) % 14) {
    case 0:
      return 0n;
    case 1:
      return plain | COPIED | COMPRESSED;
    case 2:
      return plain | COPIED | ALL_ZEROES;
    case 3:
      return plain | COPIED | RESERVED_HIGH;
    case 4:
      return plain | COPIED | RESERVED_LOW;
    case 5:
      return plain | COPIED | 512n;
    case 6:
      return OFFSET_MASK | COPIED;
    case 7:
      return plain;
    case 8:
      return plain | ALL_ZEROES | RESERVED_LOW;
    case 9:
      // Where the map has no numbers any more: the first of them, and zeroes beside the last that it has.
      return index % 2 === 1 ? ALL_ZEROES : BigInt(2 ** 31 - 2 + ((mixed >>> 16) % 4)) << BigInt(bits);
    default:
      return plain | COPIED;
  }
}

/** The plain one. What is not in `known` is the daemon's. */
class Model {
  readonly known = new Map<number, { readonly host: number; readonly mayWrite: boolean }>();
  readonly kept = new Set<number>();
  readonly outdated = new Map<number, number>();
  readonly #geometry: Geometry;
  readonly #perTable: number;
  readonly #changing = new Set<number>();
  #reading = -1;

  constructor(geometry: Geometry) {
    this.#geometry = geometry;
    this.#perTable = 2 ** geometry.bits / 8;
  }

  tableOf(cluster: number): number {
    return Math.floor(cluster / this.#perTable);
  }

  drop(table: number): void {
    this.kept.delete(table);
    for (const cluster of this.known.keys()) if (this.tableOf(cluster) === table) this.known.delete(cluster);
  }

  begin(table: number): void {
    this.kept.add(table);
    this.#reading = table;
    this.#changing.clear();
  }

  end(entries: readonly bigint[] | undefined): void {
    const { bits, fileClusters } = this.#geometry;
    const first = this.#reading * this.#perTable;
    this.#reading = -1;
    entries?.forEach((entry, i) => {
      const cluster = first + i;
      if (this.known.has(cluster) || this.#changing.has(cluster)) return;
      if (isZero(entry, this.#geometry.zeroes)) this.known.set(cluster, { host: NOWHERE, mayWrite: false });
      const isPlain =
        (entry & ~OFFSET_MASK & ~COPIED) === 0n && (entry & OFFSET_MASK) % (1n << BigInt(bits)) === 0n;
      const host = Number((entry & OFFSET_MASK) >> BigInt(bits));
      if (isPlain && host > 0 && host < Math.min(fileClusters, 2 ** 31 - 1) && !isOwn(host))
        this.known.set(cluster, { host, mayWrite: (entry & COPIED) !== 0n });
    });
  }

  forget(at: number, bytes: number): void {
    const size = 2 ** this.#geometry.bits;
    for (let cluster = Math.floor(at / size); cluster * size < at + bytes; cluster++) {
      this.known.delete(cluster);
      if (this.tableOf(cluster) === this.#reading) this.#changing.add(cluster);
    }
  }

  forgetInReading(at: number, bytes: number): void {
    const tableBytes = 2 ** this.#geometry.bits * this.#perTable;
    const from = Math.max(at, this.#reading * tableBytes);
    const to = Math.min(at + bytes, (this.#reading + 1) * tableBytes);
    if (from < to) this.forget(from, to - from);
  }

  /** Where the byte is in the file. */
  position(byte: number, writes: boolean): number {
    const size = 2 ** this.#geometry.bits;
    const entry = this.known.get(Math.floor(byte / size));
    if (entry === undefined || (writes && !entry.mayWrite)) return THE_DAEMONS;
    return entry.host === NOWHERE ? NOWHERE : entry.host * size + (byte % size);
  }
}

/** Clusters of the image's own: some here and there. */
function isOwn(host: number): boolean {
  return host % 7 === 3;
}

function run(geometry: Geometry, steps: readonly Step[]): void {
  const { bits, tables, kept, fileClusters } = geometry;
  const perTable = 2 ** bits / 8;
  const own = { has: isOwn } as ReadonlySet<number>;
  const { zeroes } = geometry;
  const map = new ClusterMap({ clusterBits: bits, tables, mostTables: kept, zeroes, own });
  const model = new Model(geometry);
  let flushed = 0;
  let reading = -1;
  for (const step of steps) {
    if (step.act === "flush") flushed++;
    else if (step.act === "locate") expectSame(map, model, step);
    else if (step.act === "forget") {
      map.forget(step.at, step.bytes);
      model.forget(step.at, step.bytes);
    } else if (step.act === "forget in reading") {
      if (reading < 0) continue;
      map.forgetInReading(step.at, step.bytes);
      model.forgetInReading(step.at, step.bytes);
    } else if (step.act === "begin") {
      if (reading >= 0) continue;
      reading = step.table;
      map.beginReading(reading, flushed);
      model.begin(reading);
      // Which one goes is its own affair, as long as enough are kept.
      const gone = [...model.kept].filter((table) => map.isWorthReading(table, -1));
      expect(gone.length).toBe(Math.max(0, model.kept.size - kept));
      for (const table of gone) model.drop(table);
      expect(gone).not.toContain(reading);
    } else if (reading >= 0) {
      const entries = Array.from({ length: perTable }, (_, i) => entryOf(geometry, step.seed, i));
      map.endReading(step.missing ? undefined : wordsOf(entries), fileClusters * 2 ** bits + 2 ** bits / 2);
      model.end(step.missing ? undefined : entries);
      reading = -1;
    }
  }
}

function expectSame(map: ClusterMap, model: Model, step: Step & { readonly act: "locate" }): void {
  const { at, bytes, writes } = step;
  const size = map.clusterBytes;
  const result = map.locate(at, bytes, writes);
  const first = model.position(at, writes);
  expect(result > 0).toBe(first !== THE_DAEMONS);
  if (result > 0) expect(map.position).toBe(first);
  // Of one kind throughout, and not shorter than need be. Clusters' borders are the only places where it may end.
  const length = Math.abs(result);
  expect(length).toBeGreaterThan(0);
  expect(length).toBeLessThanOrEqual(bytes);
  const goesOn = (byte: number): boolean =>
    model.position(byte, writes) === (first < 0 ? first : first + byte - at);
  for (let border = Math.ceil((at + 1) / size) * size; border < at + length; border += size)
    expect(goesOn(border)).toBe(true);
  if (length < bytes) expect([(at + length) % size, goesOn(at + length)]).toEqual([0, false]);
}

function isZero(entry: bigint, { unallocated, flagged }: Zeroes): boolean {
  if (entry === 0n) return unallocated;
  return flagged && (entry & ALL_ZEROES) !== 0n && (entry & (COMPRESSED | RESERVED)) === 0n;
}

function wordsOf(entries: readonly bigint[]): Uint32Array {
  const view = new DataView(new ArrayBuffer(entries.length * 8));
  entries.forEach((entry, i) => view.setBigUint64(i * 8, entry));
  return new Uint32Array(view.buffer);
}

describe("says what was read, less what was forgotten", () => {
  test.each<Geometry>([
    { bits: 12, tables: 1, kept: 2, fileClusters: 30, zeroes: ALL },
    { bits: 12, tables: 1, kept: 2, fileClusters: 30, zeroes: { unallocated: false, flagged: true } },
    { bits: 12, tables: 1, kept: 2, fileClusters: 30, zeroes: NO_ZEROES },
    { bits: 12, tables: 5, kept: 2, fileClusters: 600, zeroes: ALL },
    { bits: 12, tables: 70_000, kept: 3, fileClusters: 2 ** 31 + 20, zeroes: ALL },
    { bits: 16, tables: 3, kept: 2, fileClusters: 2 ** 26, zeroes: ALL },
    { bits: 21, tables: 4, kept: 2, fileClusters: 2 ** 31 + 20, zeroes: ALL },
  ])("%j", (geometry) => {
    const numRuns = geometry.bits === 12 ? 300 : geometry.bits === 16 ? 40 : 3;
    const steps = fc.array(anyStep(geometry), { maxLength: 60, size: "max" });
    fc.assert(
      fc.property(steps, (all) => run(geometry, all)),
      { seed: chosenSeed(), numRuns },
    );
  });
});

test("a table is worth reading again once something of it was forgotten and a flush has ended", () => {
  const map = new ClusterMap({ clusterBits: 12, tables: 2, zeroes: NO_ZEROES, own: new Set() });
  expect([map.isWorthReading(0, 0), map.isWorthReading(1, 0), map.isWorthReading(2, 0)]).toEqual([
    true,
    true,
    false,
  ]);
  map.beginReading(0, 0);
  expect(map.isWorthReading(0, 9)).toBe(false);
  map.forget(4096, 1);
  map.endReading(undefined, 2 ** 30);
  expect([map.isWorthReading(0, 0), map.isWorthReading(0, 1)]).toEqual([false, true]);
  map.beginReading(0, 1);
  map.endReading(undefined, 2 ** 30);
  expect(map.isWorthReading(0, 9)).toBe(false);
  // The tail of a disk that no table describes, and a trim over all there is.
  map.forget(0, 2 ** 50 / 2 ** 20);
  expect(map.locate(2 * 512 * 4096, 4096, false)).toBe(-4096);
});
