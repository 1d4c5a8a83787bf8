// The vchan's page, orders and grant list, against the C compiler's view of the header and by enumeration.
import { describe, expect, test } from "bun:test";
import { spawnSync } from "node:child_process";
import { fileURLToPath } from "node:url";
import {
  chooseOrders,
  decodeGrants,
  decodePage,
  encodeServerPage,
  layoutOf,
  ordersFault,
  VCHAN_CLI_LIVE,
  VCHAN_CLI_NOTIFY,
  VCHAN_GRANTS,
  VCHAN_LEFT_CONS,
  VCHAN_LEFT_ORDER,
  VCHAN_LEFT_PROD,
  VCHAN_RIGHT_CONS,
  VCHAN_RIGHT_ORDER,
  VCHAN_RIGHT_PROD,
  VCHAN_SRV_LIVE,
  VCHAN_SRV_NOTIFY,
} from "../../src/protocol/vchan.ts";
import { ORDER_PAIRS } from "./vchan-pair.ts";

const PROBE = fileURLToPath(new URL("../../build/shim/layout_probe", import.meta.url));

test("the offsets are the C compiler's", () => {
  const probe = JSON.parse(spawnSync(PROBE, { encoding: "utf8" }).stdout) as Record<string, number>;
  const at = (field: string): number => probe[`struct vchan_interface.${field}`];
  const cons = probe["struct vchan_ring.cons"];
  const prod = probe["struct vchan_ring.prod"];
  expect([VCHAN_LEFT_CONS, VCHAN_LEFT_PROD]).toEqual([at("left") + cons, at("left") + prod]);
  expect([VCHAN_RIGHT_CONS, VCHAN_RIGHT_PROD]).toEqual([at("right") + cons, at("right") + prod]);
  expect([VCHAN_LEFT_ORDER, VCHAN_RIGHT_ORDER]).toEqual([at("left_order"), at("right_order")]);
  expect([VCHAN_CLI_LIVE, VCHAN_SRV_LIVE]).toEqual([at("cli_live"), at("srv_live")]);
  expect([VCHAN_CLI_NOTIFY, VCHAN_SRV_NOTIFY]).toEqual([at("cli_notify"), at("srv_notify")]);
  expect(VCHAN_GRANTS).toBe(at("grants"));
});

describe("orders", () => {
  const all = Array.from({ length: 23 * 23 }, (_, i) => ({ left: Math.floor(i / 23), right: i % 23 }));

  test("exactly the possible pairs are without fault", () => {
    const good = all.filter((orders) => ordersFault(orders) === undefined);
    expect(good).toEqual(ORDER_PAIRS);
  });

  test("rings, grants and end words never overlap", () => {
    for (const orders of ORDER_PAIRS) {
      const layout = layoutOf(orders);
      const grants = layout.left.pageCount + layout.right.pageCount;
      const parts: [number, number][] = [
        [0, VCHAN_GRANTS + 4 * grants],
        [layout.endWordsAt, 8],
      ];
      for (const ring of [layout.left, layout.right])
        if (ring.offsetInPage !== undefined) parts.push([ring.offsetInPage, ring.sizeBytes]);
        else expect(ring.pageCount * 4096).toBe(ring.sizeBytes);
      parts.sort((a, b) => a[0] - b[0]);
      let end = 0;
      for (const [start, length] of parts) {
        expect(start).toBeGreaterThanOrEqual(end);
        end = start + length;
      }
      expect(end).toBeLessThanOrEqual(4096);
    }
  });

  test("the grant list of 10 and 20 would reach into the small ring", () => {
    expect(ordersFault({ left: 10, right: 20 })).toContain("1048");
    expect(ordersFault({ left: 20, right: 10 })).toContain("1048");
    expect(ordersFault({ left: 11, right: 20 })).toBeUndefined();
  });

  test("sizes choose as libxenvchan does", () => {
    const cases: [number, number, number, number][] = [
      [0, 0, 10, 11],
      [1024, 2048, 10, 11],
      [1025, 1024, 11, 10],
      [2048, 1024, 11, 10],
      [2048, 2048, 11, 12],
      [1024, 2049, 11, 12],
      [2049, 1, 12, 11],
      [4097, 4096, 13, 12],
      [65536, 65536, 16, 16],
      [1, 1 << 20, 11, 20],
      [1 << 20, 1 << 20, 20, 20],
    ];
    for (const [left, right, leftOrder, rightOrder] of cases) {
      const orders = chooseOrders(left, right);
      expect(orders).toEqual({ left: leftOrder, right: rightOrder });
      expect(ordersFault(orders as NonNullable<typeof orders>)).toBeUndefined();
    }
    for (const [left, right] of [
      [(1 << 20) + 1, 1],
      [1, (1 << 20) + 1],
      [-1, 1],
      [NaN, 1],
    ] as const)
      expect(chooseOrders(left, right)).toBeUndefined();
  });
});

test("a server's page is what a client decodes", () => {
  const page = new Uint8Array(4096).fill(0xaa);
  const orders = { left: 13, right: 12 };
  encodeServerPage(page, { orders, grants: [7, 0xffff_fff0, 9], leftCounter: 5, rightCounter: 0xffff_ffff });
  expect(decodePage(page)).toEqual({
    orders,
    leftCons: 5,
    leftProd: 5,
    rightCons: 0xffff_ffff,
    rightProd: 0xffff_ffff,
    clientLive: 2,
    serverLive: 0,
  });
  expect(decodeGrants(page, layoutOf(orders))).toEqual({ left: [7, 0xffff_fff0], right: [9] });
  expect(page[VCHAN_CLI_NOTIFY]).toBe(1);
  expect(page[VCHAN_SRV_NOTIFY]).toBe(0);
});
