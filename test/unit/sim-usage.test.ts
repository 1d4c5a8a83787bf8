// What `sim status` says of what is in use: grants come in hundreds, and are told in ranges.
import { expect, test } from "bun:test";
import { describeUsage, describeUsages, type UsageItem } from "../../src/sim/usage.ts";

const grant: UsageItem = { kind: "grant", domid: 1, id: 24, peer: 0, count: 1, slot: 2, pid: 77 };

function numbered(item: UsageItem, ...ids: readonly number[]): UsageItem[] {
  return ids.map((id) => ({ ...item, id }));
}

test("one thing is told alone, whatever it is", () => {
  const others = (["process", "orphan", "map", "port", "handle"] as const).map((kind) => ({
    ...grant,
    kind,
  }));
  for (const item of [grant, ...others]) expect(describeUsages([item])).toEqual([describeUsage(item)]);
  expect(describeUsage(grant)).toBe("grant 24 of domain 1 for domain 0, 1 pin, by process 77");
});

test("ranges end at gaps, and at grants that differ in anything else; their order does not matter", () => {
  const items = [
    ...numbered(grant, 26, 24, 25, 30),
    ...numbered({ ...grant, peer: 2 }, 27),
    ...numbered({ ...grant, kind: "map" }, 9, 8, 9),
  ];
  expect(describeUsages(items)).toEqual([
    "grants 24-26 of domain 1 for domain 0, 1 pin, by process 77",
    "grant 30 of domain 1 for domain 0, 1 pin, by process 77",
    "grant 27 of domain 1 for domain 2, 1 pin, by process 77",
    "grants 8-9 of domain 1 mapped rw by domain 0, process 77",
    "grant 9 of domain 1 mapped rw by domain 0, process 77",
  ]);
});

test("ports and handles are told one by one", () => {
  for (const kind of ["port", "handle"] as const)
    expect(describeUsages(numbered({ ...grant, kind }, 3, 4))).toHaveLength(2);
});
