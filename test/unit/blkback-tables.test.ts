// The two tables of a ring: rows and operations are handed out once each and come back, whatever the order, and start
// afresh each time.
import { describe, expect, test } from "bun:test";
import { OperationTable, STAGE_IO } from "../../src/blkback/data-plane/operations.ts";
import { RequestTable } from "../../src/blkback/data-plane/requests.ts";
import { inEveryWay } from "./blkback-fakes.ts";

const SIZE = 3;
const STEPS = 9;

describe("requests", () => {
  test("every order of taking and releasing: no row twice, columns afresh, arrivals in order", () => {
    const ways = inEveryWay((choose) => {
      const table = new RequestTable(SIZE, 0);
      const taken: number[] = [];
      let last = -1;
      for (let step = 0; step < STEPS; step++) {
        const choice = choose(taken.length < SIZE ? taken.length + 1 : taken.length);
        if (choice < taken.length) {
          table.release(taken.splice(choice, 1)[0]);
          continue;
        }
        const row = table.take(step);
        expect(row).toBeLessThan(SIZE);
        expect(taken).not.toContain(row);
        expect(table.sequence[row]).toBeGreaterThan(last);
        last = table.sequence[row];
        const fresh = [table.failed, table.retried, table.segmentCount, table.length].map((it) => it[row]);
        expect([fresh, table.next[row], table.startedAtMs[row]]).toEqual([[0, 0, 0, 0], -1, step]);
        for (const column of [table.failed, table.retried, table.segmentCount, table.length, table.next])
          column[row] = 9;
        taken.push(row);
      }
      table.close();
    });
    expect(ways).toBeGreaterThan(500);
  });

  test.each([
    [0, 16],
    [16, 512],
    [512, 512],
    [513, 1024],
    [4096, 4096],
  ])("with %i indirect segments a row has room for %i, and none touches another's", (indirect, stride) => {
    const table = new RequestTable(4, indirect);
    expect(table.segmentStride).toBe(stride);
    const last = stride - 1;
    const words = table.segments.words;
    for (let row = 0; row < 4; row++)
      for (const index of [0, last]) {
        const word = (table.segmentAddress(row) - table.segments.address) / 4 + index * 2;
        words[word] = row * 10_000 + index;
        words[word + 1] = 0x0000_0502 + row;
      }
    for (let row = 0; row < 4; row++)
      for (const index of [0, last])
        expect([table.gref(row, index), table.firstSect(row, index), table.sectCount(row, index)]).toEqual([
          row * 10_000 + index,
          2 + row,
          5 - (2 + row) + 1,
        ]);
    table.close();
  });
});

describe("lanes", () => {
  test("each has its own rows, whatever the others take, and rows come back to their lane", () => {
    const ways = inEveryWay((choose) => {
      const table = new RequestTable(2, 0, 2);
      const taken: number[][] = [[], []];
      for (let step = 0; step < 5; step++) {
        const lane = choose(2);
        if (taken[lane].length === 2 || (taken[lane].length > 0 && choose(2) === 1))
          table.release(taken[lane].splice(choose(taken[lane].length), 1)[0]);
        else taken[lane].push(table.take(0, lane));
        for (const [index, rows] of taken.entries()) {
          expect(new Set(rows).size).toBe(rows.length);
          for (const row of rows) expect([row >> 1, table.laneOf(row)]).toEqual([index, index]);
        }
      }
      table.close();
    });
    expect(ways).toBe(198);
  });
});

describe("operations", () => {
  test("every order of opening and closing: none twice, and the lists and counts are right", () => {
    const ways = inEveryWay((choose) => {
      const table = new OperationTable(SIZE);
      const open: { op: number; writes: boolean }[] = [];
      for (let step = 0; step < STEPS; step++) {
        const choice = choose(open.length < SIZE ? open.length + 2 : open.length);
        if (choice < open.length) {
          const { op, writes } = open.splice(choice, 1)[0];
          table.close(op, writes);
        } else {
          const writes = choice === open.length;
          const op = table.open(step, 1, step * 100, 50, step, writes);
          expect(open.map((it) => it.op)).not.toContain(op);
          expect([table.first[op], table.last[op], table.start[op], table.end[op]]).toEqual([
            step,
            step,
            step * 100,
            step * 100 + 50,
          ]);
          expect([table.stage[op], table.done[op], table.pageCount[op]]).toEqual([STAGE_IO, 0, 0]);
          table.done[op] = table.pageCount[op] = table.stage[op] = 2;
          open.push({ op, writes });
        }
        expect([...table.active.subarray(0, table.activeCount)].toSorted()).toEqual(
          open.map((it) => it.op).toSorted(),
        );
        expect(table.writing).toBe(open.filter((it) => it.writes).length);
      }
    });
    expect(ways).toBeGreaterThan(500);
  });
});
