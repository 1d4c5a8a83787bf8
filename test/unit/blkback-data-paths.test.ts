// The ways of data between a guest's pages and a target, held to the same rules: every part of a page, merged and
// alone, with grants that fail and memory that is short.
import { afterEach, beforeEach, describe, expect, test } from "bun:test";
import { RequestCopies } from "../../src/blkback/data-plane/data/copies.ts";
import { CopyPath } from "../../src/blkback/data-plane/data/copy.ts";
import { PersistentPath } from "../../src/blkback/data-plane/data/persistent.ts";
import { MapPath } from "../../src/blkback/data-plane/data/map.ts";
import type { DataPath } from "../../src/blkback/data-plane/data/path.ts";
import { OperationTable } from "../../src/blkback/data-plane/operations.ts";
import { KIND_BARRIER, KIND_READ, KIND_WRITE, RequestTable } from "../../src/blkback/data-plane/requests.ts";
import { PAGE_SIZE } from "../../src/core/types.ts";
import { Mapping } from "../../src/native/memory.ts";
import { FakeGrants, GUEST, inEveryWay, TestClock } from "./blkback-fakes.ts";

const SIZE = 8;
const POOL_PAGES = 8;
const PAGES = 12;
const SECTOR = 512;

interface Part {
  readonly page: number;
  readonly first: number;
  readonly last: number;
}

/** The sector of a part's bytes in the guest's memory. */
const at = ({ page, first }: Part): number => page * PAGE_SIZE + first * SECTOR;
const sectors = (parts: readonly Part[]): number =>
  parts.reduce((sum, { first, last }) => sum + last - first + 1, 0);

describe.each(["copy", "map", "persistent"] as const)("%s", (mode) => {
  let grants: FakeGrants;
  let requests: RequestTable;
  let operations: OperationTable;
  let copies: RequestCopies;
  let path: DataPath;

  function open(maxSegments = 16): void {
    grants = new FakeGrants(PAGES);
    requests = new RequestTable(SIZE, maxSegments);
    operations = new OperationTable(SIZE);
    copies = new RequestCopies(grants, requests.failed);
    path = openPath(POOL_PAGES);
  }
  function openPath(pages: number): DataPath {
    switch (mode) {
      case "copy":
        return new CopyPath(GUEST, requests, operations, copies, pages * PAGE_SIZE);
      case "map":
        return new MapPath(GUEST, requests, operations, grants, pages);
      case "persistent":
        return new PersistentPath(GUEST, requests, operations, grants, new TestClock(), pages);
    }
  }
  function close(): void {
    path.close();
    copies.close();
    requests.close();
    expect(grants.mapped).toBe(0);
    grants.close();
  }
  beforeEach(() => open());
  afterEach(close);

  /** A request for these parts at the disk's byte `start`. */
  function ask(kind: number, parts: readonly Part[], start = 0): number {
    const row = requests.take(0);
    requests.kind[row] = kind;
    requests.start[row] = start;
    requests.length[row] = sectors(parts) * SECTOR;
    requests.segmentCount[row] = parts.length;
    const words = requests.segments.words;
    const word = (requests.segmentAddress(row) - requests.segments.address) / 4;
    for (const [index, { page, first, last }] of parts.entries()) {
      words[word + index * 2] = grants.ref(page);
      words[word + index * 2 + 1] = first | (last << 8);
    }
    return row;
  }

  /** An operation for `row`, or -1 when there is no memory. */
  function begin(row: number): number {
    const kind = requests.kind[row];
    const { start, length } = requests;
    const op = operations.open(row, kind, start[row], length[row], 0, kind !== KIND_READ);
    if (path.reserve(op)) return op;
    operations.close(op, kind !== KIND_READ);
    return -1;
  }

  function extend(op: number, row: number): boolean {
    if (!path.append(op, row)) return false;
    requests.next[operations.last[op]] = row;
    operations.last[op] = row;
    operations.end[op] += requests.length[row];
    return true;
  }

  function end(op: number): void {
    path.release(op);
    operations.close(op, operations.kind[op] !== KIND_READ);
  }

  const gather = (...ops: number[]): void => path.gather(Uint16Array.from(ops), ops.length);
  const scatter = (...ops: number[]): void => path.scatter(Uint16Array.from(ops), ops.length);

  /** Moves bytes as a target does, all that is left of `op`: into `bytes`, or out of them. How many. */
  function transfer(op: number, bytes: Uint8Array, writes: boolean): number {
    const done = operations.done[op];
    const count = path.vectors(op);
    const pieces: { address: number; length: number }[] = [];
    if (count === 0) pieces.push({ address: operations.address[op] + done, length: bytes.length });
    else {
      const vectors = new Mapping(path.vectorAddress(op), count * 16, () => {});
      const words = new BigUint64Array(vectors.bytes.buffer);
      for (let i = 0; i < count; i++)
        pieces.push({ address: Number(words[i * 2]), length: Number(words[i * 2 + 1]) });
      vectors.close();
    }
    let moved = 0;
    for (const { address, length } of pieces) {
      const memory = new Mapping(address, length, () => {});
      const part = bytes.subarray(moved, moved + length);
      if (writes) part.set(memory.bytes.subarray(0, part.length));
      else memory.bytes.set(part);
      moved += length;
      memory.close();
    }
    return moved;
  }

  /** Bytes of the guest's parts, one after the other. */
  function gathered(parts: readonly Part[]): Uint8Array {
    return Buffer.concat(
      parts.map((part) => grants.pages.subarray(at(part), at(part) + (part.last - part.first + 1) * SECTOR)),
    );
  }

  function fillPages(): void {
    for (let sector = 0; sector < PAGES * 8; sector++)
      grants.pages.fill(1 + sector, sector * SECTOR, (sector + 1) * SECTOR);
  }

  test("every part of a page after every other one: a write brings just those bytes, a read takes them back", () => {
    const ways = inEveryWay((choose) => {
      fillPages();
      const parts = [4, 2].map((page) => {
        const first = choose(8);
        return { page, first, last: first + choose(8 - first) };
      });
      const length = sectors(parts) * SECTOR;
      for (const kind of [KIND_WRITE, KIND_BARRIER, KIND_READ]) {
        const op = begin(ask(kind, parts));
        gather(op);
        const bytes = new Uint8Array(length);
        if (kind === KIND_READ) {
          bytes.forEach((_, index) => (bytes[index] = 200 + Math.floor(index / SECTOR)));
          expect(transfer(op, bytes, false)).toBe(length);
          scatter(op);
        } else {
          expect(transfer(op, bytes, true)).toBe(length);
          expect(Buffer.compare(bytes, gathered(parts))).toBe(0);
        }
        const before = grants.pages.slice();
        end(op);
        if (kind === KIND_READ) {
          expect(Buffer.compare(gathered(parts), bytes)).toBe(0);
          // Nothing beside them was touched.
          const isPart = (sector: number): boolean =>
            parts.some((it) => at(it) <= sector * SECTOR && sector * SECTOR <= at({ ...it, first: it.last }));
          for (let sector = 0; sector < PAGES * 8; sector++)
            if (!isPart(sector)) expect(grants.pages[sector * SECTOR]).toBe(1 + sector);
        } else expect(Buffer.compare(grants.pages, before)).toBe(0);
        requests.release(operations.first[op]);
      }
    });
    expect(ways).toBe(36 * 36);
  });

  test("what is left of a transfer that stopped at any byte is the right part", () => {
    fillPages();
    const parts = [
      { page: 1, first: 2, last: 7 },
      { page: 2, first: 0, last: 1 },
      { page: 9, first: 5, last: 5 },
    ];
    const whole = gathered(parts);
    const op = begin(ask(KIND_WRITE, parts));
    gather(op);
    for (let done = 0; done < whole.length; done += done % SECTOR === 0 ? 100 : 412) {
      operations.done[op] = done;
      const bytes = new Uint8Array(whole.length - done);
      transfer(op, bytes, true);
      expect(Buffer.compare(bytes, whole.subarray(done))).toBe(0);
    }
    operations.done[op] = 0;
    end(op);
  });

  test("a bad grant marks its own request, wherever it is", () => {
    for (const bad of [0, 1, 2]) {
      // Anew, because a page that is mapped already is not asked for again.
      close();
      open();
      grants.revoked.add(grants.ref(bad));
      const rows = [3, 0].map((page, index) =>
        ask(
          KIND_WRITE,
          index === 0
            ? [0, 1, 2].map((it) => ({ page: it, first: 0, last: 0 }))
            : [{ page, first: 0, last: 0 }],
        ),
      );
      const ops = rows.map(begin);
      gather(...ops);
      expect(rows.map((row) => requests.failed[row])).toEqual([1, bad === 0 ? 1 : 0]);
      ops.forEach(end);
      rows.forEach((row) => requests.release(row));
    }
  });

  test("memory that is short holds requests back, and all of it comes back, in every order", () => {
    const ways = inEveryWay((choose) => {
      const open: number[] = [];
      const pagesOf = new Map<number, number>();
      let used = 0;
      for (let step = 0; step < 6; step++) {
        const choice = choose(open.length + 2);
        if (choice < open.length) {
          const [op] = open.splice(choice, 1) as [number];
          end(op);
          requests.release(operations.first[op]);
          used -= pagesOf.get(op) as number;
          continue;
        }
        const count = choice === open.length ? 2 : 5;
        const row = ask(
          KIND_WRITE,
          Array.from({ length: count }, (_, page) => ({ page, first: 0, last: 7 })),
        );
        const op = begin(row);
        if (op < 0) {
          // A run of pages may be missing though as many are free; more than there are never fit.
          if (mode !== "copy") expect(used + count).toBeGreaterThan(POOL_PAGES);
          requests.release(row);
          continue;
        }
        expect(used + count).toBeLessThanOrEqual(POOL_PAGES);
        used += count;
        pagesOf.set(op, count);
        open.push(op);
        gather(op);
      }
      for (const op of open) {
        end(op);
        requests.release(operations.first[op]);
      }
      // Nothing is missing afterwards.
      const row = ask(
        KIND_WRITE,
        Array.from({ length: POOL_PAGES }, (_, page) => ({ page, first: 0, last: 7 })),
      );
      const op = begin(row);
      expect(op).toBeGreaterThanOrEqual(0);
      gather(op);
      end(op);
      requests.release(row);
    });
    expect(ways).toBeGreaterThan(300);
  });

  test("requests merged in every way of cutting up two pages keep their bytes apart", () => {
    const ways = inEveryWay((choose) => {
      fillPages();
      const cut = 1 + choose(8);
      const kind = choose(2) === 0 ? KIND_READ : KIND_WRITE;
      const first = [{ page: 5, first: 8 - cut, last: 7 }];
      const second = [{ page: 7, first: 0, last: choose(8) }];
      const rows = [ask(kind, first), ask(kind, second, cut * SECTOR)];
      const op = begin(rows[0]);
      const joined = extend(op, rows[1]);
      expect(joined).toBe(mode !== "map");
      if (joined) {
        gather(op);
        const wanted = Buffer.concat([gathered(first), gathered(second)]);
        const bytes = new Uint8Array(wanted.length);
        if (kind === KIND_READ) {
          bytes.forEach((_, index) => (bytes[index] = 100 + Math.floor(index / SECTOR)));
          transfer(op, bytes, false);
          scatter(op);
          expect(Buffer.compare(Buffer.concat([gathered(first), gathered(second)]), bytes)).toBe(0);
        } else {
          transfer(op, bytes, true);
          expect(Buffer.compare(bytes, wanted)).toBe(0);
        }
      }
      // What it gives back is its own: a neighbour's memory stays the neighbour's.
      const single = [{ page: 9, first: 0, last: 7 }];
      const others = [begin(ask(KIND_WRITE, single))];
      end(op);
      rows.forEach((row) => requests.release(row));
      if (mode === "copy") {
        gather(...others);
        for (let page = 1; page < SIZE; page++) others.push(begin(ask(KIND_WRITE, single)));
        expect(new Set(others.map((other) => operations.address[other])).size).toBe(POOL_PAGES);
        gather(...others);
      }
      for (const other of others) {
        end(other);
        requests.release(operations.first[other]);
      }
    });
    expect(ways).toBe(8 * 2 * 8);
  });

  if (mode !== "copy")
    test("a request of more pieces than the kernel takes at once goes in several transfers", () => {
      close();
      open(1100);
      path.close();
      path = openPath(1100);
      // The second sector of each page: no piece touches the next one.
      const parts = Array.from({ length: 1100 }, (_, index) => ({ page: index % PAGES, first: 1, last: 1 }));
      fillPages();
      const whole = gathered(parts);
      const op = begin(ask(KIND_WRITE, parts));
      gather(op);
      const bytes = new Uint8Array(whole.length);
      expect(path.vectors(op)).toBe(1024);
      const moved = transfer(op, bytes, true);
      expect(moved).toBe(1024 * SECTOR);
      operations.done[op] = moved;
      expect(path.vectors(op)).toBe(1100 - 1024);
      transfer(op, bytes.subarray(moved), true);
      expect(Buffer.compare(bytes, whole)).toBe(0);
      end(op);
    });
  else
    test("memory that is taken behind an operation makes the next request another one", () => {
      const whole = (page: number): Part[] => [{ page, first: 0, last: 7 }];
      const [first, behind, next] = [
        ask(KIND_WRITE, whole(0)),
        ask(KIND_WRITE, whole(1), 99 * PAGE_SIZE),
        ask(KIND_WRITE, whole(2), PAGE_SIZE),
      ] as const;
      const op = begin(first);
      const other = begin(behind);
      expect(extend(op, next)).toBe(false);
      gather(op, other);
      [op, other].forEach(end);
    });
});

test("copies beyond one batch go in several calls, and each failure finds its request", () => {
  const grants = new FakeGrants(2);
  const failed = new Uint8Array(4);
  const copies = new RequestCopies(grants, failed);
  const requests = new RequestTable(4, 0);
  const { address } = requests.segments;
  for (let i = 0; i < 4096 + 3; i++) copies.fromGrant(i < 4096 ? 1 : 2, GUEST, grants.ref(0), 0, 8, address);
  copies.fromGrant(3, GUEST, 9999, 0, 8, address);
  expect(grants.copyCalls).toBe(1);
  copies.run();
  expect([grants.copyCalls, copies.copied, ...failed]).toEqual([2, 4100, 0, 0, 0, 1]);
  grants.copyErrno = -12;
  copies.fromGrant(0, GUEST, grants.ref(0), 0, 8, address);
  copies.run();
  copies.run();
  expect([grants.copyCalls, ...failed]).toEqual([3, 1, 0, 0, 1]);
  copies.close();
  requests.close();
});
