// hvmloader's use of the ring, by a client in C that shares no code with ours, against every server; and what
// becomes of a ring when client or server die at any step.
import { afterEach, expect, setDefaultTimeout, test } from "bun:test";
import { PERSONALITY_NAMES, type PersonalityName } from "../../src/xenstore/server/personality.ts";
import { SimHost } from "../../src/sim/host.ts";
import { run, type Finished } from "../support/process.ts";
import { testProgram } from "./xsring-harness.ts";

setDefaultTimeout(60_000); // each case starts several processes, perhaps on a busy machine

const hvmloader = testProgram("hvmloader_ring");
const STEPS = { "half request": 2, unannounced: 3, requested: 4, "half reply": 5, asked: 6, knocked: 7 };
// Not "half request": a C server that has read that half waits for the other one, whatever is done to the page.
const FALLBACK_STEPS = { unannounced: 3, requested: 4, "half reply": 5, poisoned: 8 };

let host: SimHost;

async function start(personality: PersonalityName): Promise<void> {
  host = await SimHost.start({ domains: 2, personality });
}

function ring(...args: string[]): Promise<Finished> {
  return run([hvmloader, host.dir, "1", ...args]);
}

afterEach(async () => {
  expect(await host.settle()).toEqual([]);
  await host.stop();
});

const EXPECTED = {
  "xenstored-4.17": { features: 0, closed: "fallback", poison: "0xff" },
  "xenstored-4.22": { features: 14, closed: "fallback", poison: "0xff" },
  oxenstored: { features: 1, closed: "handshake", poison: "0xff" },
  "rfc-2014": { features: 1, closed: "handshake", poison: "deadbeef" },
} as const;

test.each([...PERSONALITY_NAMES])("reads, closes and comes again (%s)", async (personality) => {
  await start(personality);
  const { status, stdout, stderr } = await ring("--rounds", "100");
  expect(stderr).toBe("");
  expect(status).toBe(0);
  const read = { domid: "1", name: "domain-1", missing: "" };
  expect(JSON.parse(stdout)).toEqual({ ...read, ...EXPECTED[personality] });
});

test.each(["oxenstored", "rfc-2014"] as const)(
  "closes in the middle of everything (%s)",
  async (personality) => {
    await start(personality);
    const { status, stderr } = await ring("--rounds", "200", "--messy");
    expect(stderr).toBe("");
    expect(status).toBe(0);
    expect(host.server.statistics).toMatchObject({ watches: 0, transactions: 0 });
  },
);

test.each([
  ...Object.entries(STEPS).flatMap((step) => [
    ["oxenstored", ...step] as const,
    ["rfc-2014", ...step] as const,
  ]),
  ...Object.entries(FALLBACK_STEPS).map((step) => ["xenstored-4.17", ...step] as const),
])("%s: killed at '%s', its successor finds a ring that works", async (personality, _name, step) => {
  await start(personality);
  expect((await ring("--die-at", String(step))).status).toBe(137);
  expect(await host.settle()).toEqual([]);
  const { status, stderr } = await ring();
  expect(stderr).toBe("");
  expect(status).toBe(0);
});

test("a client whose server dies gives up in time", async () => {
  await start("oxenstored");
  host.server.close();
  const { status, stderr } = await ring("--timeout", "200");
  expect(stderr).toContain("no answer");
  expect(status).toBe(6);
});
