// What is read of a qcow2's tables, and what is not: images by hand, whose reads end one by one.
import { afterEach, beforeEach, describe, expect, test } from "bun:test";
import { closeSync, ftruncateSync, openSync, readSync, writeSync } from "node:fs";
import { join } from "node:path";
import type { ClusterMap } from "../../src/block/targets/qcow2/cluster-map.ts";
import { TableReader } from "../../src/block/targets/qcow2/table-reader.ts";
import { Reactor, type OnEnd } from "../../src/native/reactor.ts";
import { shim, toArrayBuffer } from "../../src/native/shim.ts";
import { removeDirectory, temporaryDirectory } from "../support/temporary.ts";
import { CLUSTER, entryFor, PER_TABLE, writeEntry, writeHeader } from "./qcow2-image.ts";

const EIO = -5;
/** Where things are, in clusters of the file. What is left between them, and behind, is the guest's. */
const L1_AT = 1;
const REFCOUNTS_AT = 4;
const SNAPSHOTS_AT = 7;
const BLOCKS_AT = [10, 11];
const TABLE_AT = 12;
const LAST_TABLE_AT = 13;
const GUESTS = [3, 6, 9, 14, 15];
const FILE_CLUSTERS = 16;
const ALL = [...Array(FILE_CLUSTERS).keys()];
/** So many that the first level has two clusters, and so have the other tables that the header names. */
const TABLES = 600;
const HEADER = {
  tables: TABLES,
  l1At: L1_AT,
  refcountsAt: REFCOUNTS_AT,
  refcountClusters: 2,
  snapshotsAt: SNAPSHOTS_AT,
  snapshots: 3,
} as const;
const TABLE_BYTES = PER_TABLE * CLUSTER;

let dir: string;
let fd: number;
let reactor: Reactor;
let reader: TableReader;
let unstable: readonly (readonly [offset: number, length: number])[];
beforeEach(() => {
  dir = temporaryDirectory();
  fd = openSync(join(dir, "disk.qcow2"), "w+");
  ftruncateSync(fd, FILE_CLUSTERS * CLUSTER);
  writeHeader(fd, HEADER);
  writeEntry(fd, L1_AT, 0, entryFor(TABLE_AT));
  writeEntry(fd, L1_AT, TABLES - 1, entryFor(LAST_TABLE_AT));
  // Behind its end is no table.
  writeEntry(fd, L1_AT, TABLES, entryFor(GUESTS[0]));
  writeEntry(fd, REFCOUNTS_AT, 0, entryFor(BLOCKS_AT[0], 0n));
  writeEntry(fd, REFCOUNTS_AT, PER_TABLE * 2 - 1, entryFor(BLOCKS_AT[1], 0n));
  for (const host of ALL) writeEntry(fd, TABLE_AT, host, entryFor(host));
  reactor = Reactor.open(4, "sync");
  const file = { file: reactor.addFile(fd, false), sizeBytes: () => shim.xt_file_size(fd) };
  unstable = [];
  const changes = {
    flushed: 0,
    forEachUnstable: (visit: (offset: number, length: number) => void) =>
      unstable.forEach(([offset, length]) => visit(offset, length)),
  };
  reader = new TableReader(file, changes, reactor);
});
afterEach(() => {
  reader.close();
  reactor.close();
  closeSync(fd);
  removeDirectory(dir);
});

/** Lets what has been started end; returns how many reads did. */
function step(): number {
  reactor.wait(0, 0);
  return reactor.dispatch();
}

function settle(): void {
  while (step() > 0);
}

function open(): ClusterMap {
  reader.restart();
  settle();
  return reader.map as ClusterMap;
}

function read(table: number): void {
  reader.want(table);
  settle();
}

/** The clusters of the file that are known from table 0, in which each entry names the one of the same number. */
function known(map: ClusterMap): number[] {
  return ALL.filter(
    (host) => map.locate(host * CLUSTER, CLUSTER, true) > 0 && map.position === host * CLUSTER,
  );
}

test("what is being read when it is closed still has its memory, until the reactor has waited for it", () => {
  reader.restart();
  reader.close();
  settle();
  expect(reader.map).toBeDefined();
});

describe("the image's own clusters are not the guest's, whatever an entry says", () => {
  test("those that the header names, and those that these name", () => {
    const map = open();
    read(0);
    expect(known(map)).toEqual(GUESTS);
  });

  test("a table that was made later", () => {
    const map = open();
    const [, , , guests, made] = GUESTS;
    writeEntry(fd, L1_AT, 1, entryFor(made));
    writeEntry(fd, made, 0, entryFor(made));
    writeEntry(fd, made, 1, entryFor(guests));
    read(1);
    expect(map.locate(TABLE_BYTES, CLUSTER, false)).toBe(-CLUSTER);
    expect(map.locate(TABLE_BYTES + CLUSTER, CLUSTER, true)).toBe(CLUSTER);
    expect(map.position).toBe(guests * CLUSTER);
  });

  test("the file may end in the first level, as a new image's does", () => {
    open();
    read(0);
    const last = FILE_CLUSTERS;
    writeHeader(fd, { tables: PER_TABLE, l1At: last });
    writeEntry(fd, last, 0, entryFor(TABLE_AT));
    const map = open();
    read(0);
    expect(known(map)).toEqual(ALL.filter((at) => at !== 0 && at !== TABLE_AT));
  });

  test.each([
    ["is longer than any that is used", { refcountClusters: 2049 }],
    ["is not where clusters begin", { l1At: L1_AT + 0.5 }],
    ["may be longer than any that is used", { snapshots: 4097 }],
    ["is not where clusters begin, of the others", { snapshotsAt: SNAPSHOTS_AT + 0.5 }],
  ])("nothing is in place when a table that the header names %s", (_, wrong) => {
    writeHeader(fd, { ...HEADER, ...wrong });
    expect(open()).toBeUndefined();
  });

  test("nothing is in place when they cannot be read", () => {
    const reads: (readonly [to: number, length: number])[] = [];
    let end: OnEnd = () => {};
    const stub = {
      addSource: (onEnd: OnEnd) => void (end = onEnd),
      start: (...[, , , , , length, to]: Parameters<Reactor["start"]>) => reads.push([to, length]),
      closeLast: (memory: { close(): void }) => memory.close(),
    } as unknown as Reactor;
    const failing = new TableReader(
      { file: 0, sizeBytes: () => 0 },
      { flushed: 0, forEachUnstable: () => {} },
      stub,
    );
    failing.restart();
    const [[to, length]] = reads;
    readSync(fd, new Uint8Array(toArrayBuffer(to, 0, length)), 0, length, 0);
    end(0, length);
    expect(reads).toHaveLength(2);
    end(0, EIO);
    expect([failing.map, reads.length]).toEqual([undefined, 2]);
    failing.close();
  });
});

describe("a table that may be shared", () => {
  test("may be freed, and be something else, before it is read", () => {
    writeEntry(fd, L1_AT, 0, entryFor(TABLE_AT, 0n));
    const map = open();
    reader.want(0);
    step();
    // The daemon has made a copy, and has put something of its own in its place.
    writeSync(fd, new Uint8Array(CLUSTER).fill(0), 0, CLUSTER, TABLE_AT * CLUSTER);
    const [guests] = GUESTS;
    writeEntry(fd, TABLE_AT, 0, entryFor(guests));
    settle();
    expect(map.locate(0, TABLE_BYTES, false)).toBe(-TABLE_BYTES);
  });

  test("is read once it is known to be nobody else's", () => {
    writeEntry(fd, L1_AT, 0, entryFor(TABLE_AT, 0n));
    const map = open();
    read(0);
    expect([known(map), map.isWorthReading(0, 9)]).toEqual([[], false]);
    // By the first change in it.
    map.forget(0, CLUSTER);
    writeEntry(fd, L1_AT, 0, entryFor(TABLE_AT));
    expect(map.isWorthReading(0, 1)).toBe(true);
    read(0);
    expect(known(map)).toEqual(GUESTS);
  });
});

test("what the file does not have yet is left out of the table that is read, and costs the others nothing", () => {
  const map = open();
  read(0);
  unstable = [[0, TABLES * TABLE_BYTES]];
  read(TABLES - 1);
  expect([known(map), map.isWorthReading(0, 9)]).toEqual([GUESTS, false]);
  expect(map.locate((TABLES - 1) * TABLE_BYTES, CLUSTER, false)).toBe(-CLUSTER);
  unstable = [];
  read(TABLES - 1);
  expect(map.locate((TABLES - 1) * TABLE_BYTES, CLUSTER, false)).toBe(CLUSTER);
});
