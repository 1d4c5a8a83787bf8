// The platform suite on the simulated platform: a guest against domain 0, as drivers meet; the same over a line
// to the guest, as the lab does it; and domain 0 with itself.
import { afterAll, beforeAll, expect, test } from "bun:test";
import { readFileSync } from "node:fs";
import { SimHost } from "../../src/sim/host.ts";
import { PLATFORM_CASES } from "./platform-suite.ts";
import { frontAnswers, remoteFront } from "./remote-front.ts";

let host: SimHost;
beforeAll(async () => {
  host = await SimHost.start({ domains: 2 });
});
afterAll(() => host.stop());

test.each(Object.keys(PLATFORM_CASES))("%s", async (name) => {
  const front = host.platform(1);
  const back = host.platform(0);
  try {
    PLATFORM_CASES[name]?.({ front, back });
  } finally {
    front.close();
    back.close();
  }
  expect(await host.settle()).toEqual([]);
});

test.each(Object.keys(PLATFORM_CASES))("over a line: %s", async (name) => {
  const guest = host.platform(1);
  const back = host.platform(0);
  try {
    PLATFORM_CASES[name]?.({ front: remoteFront(guest.domid, frontAnswers(guest)), back });
  } finally {
    guest.close();
    back.close();
  }
  expect(await host.settle()).toEqual([]);
});

test.each(Object.keys(PLATFORM_CASES))("a domain with itself: %s", async (name) => {
  const front = host.platform(0);
  const back = host.platform(0);
  try {
    PLATFORM_CASES[name]?.({ front, back });
  } finally {
    front.close();
    back.close();
  }
  expect(await host.settle()).toEqual([]);
});

test("docs/protocol-support.md shows where each case holds; `npm run conformance` prints its table", () => {
  const path = new URL("../../docs/protocol-support.md", import.meta.url).pathname;
  const rows = readFileSync(path, "utf8")
    .split("\n")
    .map((line) => line.split("|")[1]?.trim());
  expect(Object.keys(PLATFORM_CASES).filter((name) => !rows.includes(name))).toEqual([]);
});
