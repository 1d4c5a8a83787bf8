// The block protocol's layouts as a C compiler has them (csrc/layout_probe.c), against what src/protocol declares.
import { expect, test } from "bun:test";
import { spawnSync } from "node:child_process";
import { join } from "node:path";
import { ABI_X86_32, ABI_X86_64, REQUEST, RESPONSE, SEGMENT } from "../../src/protocol/blkif.ts";
import {
  RING_HEADER_BYTES,
  RING_REQ_EVENT,
  RING_REQ_PROD,
  RING_RSP_EVENT,
  RING_RSP_PROD,
  ringSlots,
} from "../../src/protocol/ring.ts";

const probe = spawnSync(join(import.meta.dir, "../../build/shim/layout_probe"), { encoding: "utf8" });
const layout = JSON.parse(probe.stdout) as Record<string, number>;

test("the ring's header", () => {
  const expected: Record<string, number> = {
    "struct sring.req_prod": RING_REQ_PROD * 4,
    "struct sring.req_event": RING_REQ_EVENT * 4,
    "struct sring.rsp_prod": RING_RSP_PROD * 4,
    "struct sring.rsp_event": RING_RSP_EVENT * 4,
    "struct sring.ring": RING_HEADER_BYTES,
  };
  expect(expected).toEqual(pick("struct sring."));
});

test.each([ABI_X86_64, ABI_X86_32])("requests and responses of $name", (abi) => {
  const { name, gapBytes } = abi;
  // What lies behind the first word is `gapBytes` earlier on the ring than in our own copy.
  const at = (offset: number): number => (offset < 4 ? offset : offset - gapBytes);
  const expected = {
    [`struct rw_${name}.operation`]: at(REQUEST.operation),
    [`struct rw_${name}.nr_segments`]: at(REQUEST.nrSegments),
    [`struct rw_${name}.handle`]: at(REQUEST.handle),
    [`struct rw_${name}.id`]: at(REQUEST.id),
    [`struct rw_${name}.sector_number`]: at(REQUEST.sectorNumber),
    [`struct rw_${name}.seg`]: at(REQUEST.segments),
    [`struct discard_${name}.flag`]: at(REQUEST.discardFlag),
    [`struct discard_${name}.id`]: at(REQUEST.id),
    [`struct discard_${name}.sector_number`]: at(REQUEST.sectorNumber),
    [`struct discard_${name}.nr_sectors`]: at(REQUEST.discardNrSectors),
    [`struct indirect_${name}.indirect_op`]: at(REQUEST.indirectOp),
    [`struct indirect_${name}.nr_segments`]: at(REQUEST.indirectNrSegments),
    [`struct indirect_${name}.id`]: at(REQUEST.id),
    [`struct indirect_${name}.sector_number`]: at(REQUEST.sectorNumber),
    [`struct indirect_${name}.handle`]: at(REQUEST.indirectHandle),
    [`struct indirect_${name}.indirect_grefs`]: at(REQUEST.indirectGrefs),
    [`struct response_${name}`]: abi.responseBytes,
    [`struct response_${name}.id`]: RESPONSE.id,
    [`struct response_${name}.operation`]: RESPONSE.operation,
    [`struct response_${name}.status`]: RESPONSE.status,
    [`union entry_${name}`]: abi.slotBytes,
  };
  for (const [field, offset] of Object.entries(expected))
    expect([field, layout[field]]).toEqual([field, offset]);
});

test("segments, and the slots of rings of 1 to 16 pages", () => {
  const expected: Record<string, number> = {
    "struct segment.gref": SEGMENT.gref,
    "struct segment.first_sect": SEGMENT.firstSect,
    "struct segment.last_sect": SEGMENT.lastSect,
  };
  expect(expected).toEqual(pick("struct segment."));
  expect(layout["struct segment"]).toBe(SEGMENT.bytes);
  for (const { slotBytes } of [ABI_X86_64, ABI_X86_32])
    expect([1, 2, 4, 8, 16].map((pages) => ringSlots(pages, slotBytes))).toEqual([32, 64, 128, 256, 512]);
});

function pick(prefix: string): Record<string, number> {
  return Object.fromEntries(Object.entries(layout).filter(([name]) => name.startsWith(prefix)));
}
