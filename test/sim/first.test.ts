// What a guest wrote, it reads back. docs/testing.md shows this file as an example.
import { afterEach, expect, test } from "bun:test";
import { RingHarness } from "./blk-harness.ts";

const READ = 0;
const WRITE = 1;
const OKAY = 0;

let harness: RingHarness | undefined;

// Takes guest, backend and host down, and fails when a grant, a port or a descriptor is left.
afterEach(() => harness?.close());

test("a guest reads back what it wrote", async () => {
  const h = (harness = await RingHarness.start());
  h.page(0).fill(0x5a);
  h.put({ op: WRITE, id: 1n, sector: 8, segments: h.pages(0, 1) });
  expect(h.serve()).toEqual([{ id: 1n, op: WRITE, status: OKAY }]);

  h.put({ op: READ, id: 2n, sector: 8, segments: h.pages(1, 1) });
  expect(h.serve()).toEqual([{ id: 2n, op: READ, status: OKAY }]);
  expect(h.page(1)).toEqual(h.page(0));
});
