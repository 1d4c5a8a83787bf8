// `xentool xsring close` and `inspect` against the rings of a simulated host, as each server takes them: what
// is done, what is refused with status 4 and why, and that a close that fails leaves the ring as it was.
import { afterEach, beforeEach, describe, expect, setDefaultTimeout, test } from "bun:test";
import { existsSync } from "node:fs";
import * as layout from "../../src/protocol/xs-ring.ts";
import {
  encodePacket,
  encodeStrings,
  XS_READ,
  XS_WATCH,
  XS_WRITE,
  decodeText,
} from "../../src/protocol/xs-wire.ts";
import { PERSONALITY_NAMES, type PersonalityName } from "../../src/xenstore/server/personality.ts";
import { SimHost } from "../../src/sim/host.ts";
import { Xenstore } from "../../src/xenstore/client.ts";
import { errnoOf } from "../../src/xenstore/errors.ts";
import { GuestRing, xsring } from "./xsring-harness.ts";

setDefaultTimeout(60_000); // each case starts several processes, perhaps on a busy machine

let host: SimHost;
let guest: GuestRing | undefined;

async function start(personality: PersonalityName): Promise<GuestRing> {
  host = await SimHost.start({ domains: 2, personality });
  guest = new GuestRing(host, 1);
  return guest;
}

beforeEach(() => {
  guest = undefined;
});

afterEach(async () => {
  await guest?.close();
  await host.destroyDomain(1); // what its connection holds at the server goes with it
  expect(await host.settle()).toEqual([]);
  await host.stop();
});

/** The value of a node, read over the ring. */
async function read(ring: GuestRing, path: string): Promise<string> {
  await ring.send(encodePacket(XS_READ, 7, 0, encodeStrings(path)));
  return decodeText((await ring.receive()).payload);
}

/** A node and a watch on it, both of the guest's. */
async function watchNode(ring: GuestRing): Promise<void> {
  await ring.send(encodePacket(XS_WRITE, 1, 0, encodeStrings("data/x").slice()));
  await ring.receive();
  await ring.send(encodePacket(XS_WATCH, 2, 0, encodeStrings("data/x", "token")));
  await ring.receive();
  await ring.receive();
}

const indices = (ring: GuestRing): number[] =>
  [
    layout.XS_RING_REQ_CONS,
    layout.XS_RING_REQ_PROD,
    layout.XS_RING_RSP_CONS,
    layout.XS_RING_RSP_PROD,
    layout.XS_RING_CONNECTION,
  ].map((offset) => ring.load(offset));

const NODE = "/local/domain/1/data/x";

describe.each([
  ["oxenstored", "0xff"],
  ["rfc-2014", "deadbeef"],
] as const)("with %s", (personality, poison) => {
  test("an idle guest's ring is closed, verified and used again", async () => {
    const ring = await start(personality);
    await watchNode(ring);
    const { status, stdout, stderr } = await xsring(host, [
      "close",
      "--domid",
      "1",
      "--kick",
      NODE,
      "--json",
    ]);
    expect(stderr).toContain("beware: by the protocol only the guest may set connection");
    expect(status).toBe(0);
    const result = JSON.parse(stdout) as {
      method: string;
      ring: { verdict: string; requests: { poison: string } };
    };
    expect(result).toMatchObject({ domid: 1, method: "handshake", ring: { verdict: "healthy" } });
    expect(result.ring.requests.poison).toBe(poison);
    expect(indices(ring)).toEqual([0, 0, 0, 0, 0]);
    expect(host.server.statistics.watches).toBe(0);
    ring.forget();
    expect(await read(ring, "domid")).toBe("1");
  });

  test("a guest closes its own", async () => {
    const ring = await start(personality);
    await watchNode(ring);
    await ring.close();
    guest = undefined;
    const { status, stdout } = await xsring(host, ["close", "--self"], 1);
    expect(status).toBe(0);
    expect(stdout).toMatch(/^domain 1: closed by handshake in \d+ ms; healthy: closed and not used since\n$/);
    expect(host.server.statistics.watches).toBe(0);
  });

  test("no answer: the wish is taken back, the ring is as it was", async () => {
    const ring = await start(personality);
    expect(await read(ring, "domid")).toBe("1");
    const before = indices(ring);
    const { status, stderr } = await xsring(host, ["close", "--domid", "1", "--timeout", "0.3"]);
    expect(stderr).toContain(
      "did not answer the close of domain 1's ring within 300 ms; the wish was taken back",
    );
    expect(status).toBe(6);
    expect(indices(ring)).toEqual(before);
    expect(await read(ring, "name")).toBe("domain-1");
  });

  test("a dry run changes nothing", async () => {
    const ring = await start(personality);
    await watchNode(ring);
    const before = indices(ring);
    const { status, stdout } = await xsring(host, [
      "close",
      "--domid",
      "1",
      "--kick",
      NODE,
      "--dry-run",
      "--json",
    ]);
    expect(status).toBe(0);
    expect(JSON.parse(stdout)).toMatchObject({ dryRun: true, method: "handshake", destructive: false });
    expect(indices(ring)).toEqual(before);
    expect(host.server.statistics.watches).toBe(1);
  });

  test("a guest that denies the server's features does not make it another server", async () => {
    const ring = await start(personality);
    expect(await read(ring, "domid")).toBe("1");
    ring.store(layout.XS_RING_SERVER_FEATURES, 0);
    const { status, stderr } = await xsring(host, ["close", "--domid", "1"]);
    expect(stderr).toContain("it does not answer `help` as C xenstored does");
    expect(status).toBe(4);
  });

  test("a ring that the server ignores: refused, and recovered by force", async () => {
    const ring = await start(personality);
    ring.store(layout.XS_RING_REQ_PROD, 5000);
    ring.notify();
    const looked = await xsring(host, ["inspect", "--domid", "1"]);
    expect(looked.status).toBe(4);
    const refused = await xsring(host, ["close", "--domid", "1"]);
    expect(refused.stderr).toContain("ignores such a ring for good (the request indices are 5000 apart");
    expect(refused.stderr).toContain("what is left: --method release --force (see");
    expect(refused.status).toBe(4);
    // It would look closed, and nobody would serve it.
    const poisoned = await xsring(host, ["close", "--domid", "1", "--method", "poison", "--force"]);
    expect(poisoned.stderr).toContain("it does not end the ignoring of a ring");
    expect(poisoned.status).toBe(4);
    expect(ring.load(layout.XS_RING_REQ_PROD)).toBe(5000);
    const forced = await xsring(host, ["close", "--domid", "1", "--method", "release", "--force"]);
    expect(forced.stderr).toContain("beware: every node that the guest owns is deleted");
    expect(forced.status).toBe(0);
    expect(await read(ring, "/local/domain/1/name")).not.toBe("");
  });
});

describe.each(["xenstored-4.17", "xenstored-4.22"] as const)("with %s", (personality) => {
  test("the handshake is refused, and what is left is said", async () => {
    const ring = await start(personality);
    await watchNode(ring);
    const before = indices(ring);
    const { status, stderr } = await xsring(host, ["close", "--domid", "1"]);
    expect(stderr).toContain("is without RECONNECTION; it answers `help`, as C xenstored does");
    expect(stderr).toContain("--method reintroduce, or --method release --force, or --method poison --force");
    expect(status).toBe(4);
    expect(indices(ring)).toEqual(before);
    expect(host.server.statistics.watches).toBe(1);
  });

  test("an idle ring is introduced once more", async () => {
    const ring = await start(personality);
    await watchNode(ring);
    const { status, stdout } = await xsring(host, ["close", "--domid", "1", "--method", "reintroduce"]);
    expect(stdout).toMatch(/^domain 1: closed by reintroduce in \d+ ms; healthy/);
    expect(status).toBe(0);
    expect(indices(ring)).toEqual([0, 0, 0, 0, 0]);
    expect(host.server.statistics.watches).toBe(0);
    expect(await read(ring, "domid")).toBe("1");
  });

  test("not while the server has half of a request", async () => {
    const ring = await start(personality);
    expect(await read(ring, "domid")).toBe("1");
    await ring.send(encodePacket(XS_WRITE, 9, 0, new Uint8Array(3000).fill(0x61)).subarray(0, 200));
    const { status, stderr } = await xsring(host, ["close", "--domid", "1", "--method", "reintroduce"]);
    expect(stderr).toContain("half, and would use it after freeing it");
    expect(status).toBe(4);
    expect(ring.load(layout.XS_RING_CONNECTION)).toBe(layout.XENSTORE_CONNECTED);
  });

  test("an ignored ring: force only", async () => {
    const ring = await start(personality);
    await watchNode(ring);
    ring.store(layout.XS_RING_REQ_PROD, ring.load(layout.XS_RING_REQ_CONS) + 1025);
    ring.notify();
    while (ring.load(layout.XS_RING_ERROR) === 0) await ring.event();
    const looked = await xsring(host, ["inspect", "--domid", "1", "--json"]);
    expect(JSON.parse(looked.stdout)).toMatchObject({
      verdict: "corrupt",
      error: { value: 2, name: "RINGIDX" },
    });
    expect(looked.status).toBe(4);
    for (const method of ["reintroduce", "release", "poison"])
      expect((await xsring(host, ["close", "--domid", "1", "--method", method])).status).toBe(4);
    const forced = await xsring(host, ["close", "--domid", "1", "--method", "release", "--force"]);
    expect(forced.status).toBe(0);
    expect(ring.load(layout.XS_RING_ERROR)).toBe(0);
    ring.forget();
    expect(await read(ring, "/local/domain/1/name")).not.toBe("");
  });

  test("hvmloader's fallback, by force", async () => {
    const ring = await start(personality);
    expect(await read(ring, "domid")).toBe("1");
    const { status } = await xsring(host, ["close", "--domid", "1", "--method", "poison", "--force"]);
    expect(status).toBe(0);
    expect(indices(ring)).toEqual([0, 0, 0, 0, 0]);
    expect(ring.page.bytes.subarray(0, 2048).every((byte) => byte === 0xff)).toBe(true);
    expect(await read(ring, "domid")).toBe("1");
  });

  test.each([
    ["its predecessor's wish", layout.XENSTORE_RECONNECT],
    ["nonsense", 7],
  ])("a kernel to come does not find %s", async (_what, connection) => {
    const ring = await start(personality);
    expect(await read(ring, "domid")).toBe("1");
    for (const method of [["reintroduce"], ["poison", "--force"]]) {
      ring.store(layout.XS_RING_CONNECTION, connection);
      const { status, stderr } = await xsring(host, ["close", "--domid", "1", "--method", ...method]);
      expect([status, stderr.match(/left it wrong.*/)?.[0]]).toEqual([0, undefined]);
      expect(indices(ring)).toEqual([0, 0, 0, 0, 0]);
    }
    expect(await read(ring, "domid")).toBe("1");
  });

  test("a ring with half of a request in the server, poisoned, is not introduced once more", async () => {
    const ring = await start(personality);
    expect(await read(ring, "domid")).toBe("1");
    await ring.send(encodePacket(XS_WRITE, 9, 0, new Uint8Array(3000).fill(0x61)).subarray(0, 200));
    expect((await xsring(host, ["close", "--domid", "1", "--method", "poison", "--force"])).status).toBe(0);
    const { status, stderr } = await xsring(host, ["close", "--domid", "1", "--method", "reintroduce"]);
    expect(stderr).toContain("it cannot be seen whether the server has read a request half");
    expect(status).toBe(4);
  });
});

test.each([...PERSONALITY_NAMES])(
  "a release cut short before the introduction is taken up again: %s",
  async (personality) => {
    const ring = await start(personality);
    ring.store(layout.XS_RING_REQ_PROD, 5000);
    ring.notify();
    const dom0 = new Xenstore(host.server.connectDirectly(0));
    await dom0.release(1);
    const again = await xsring(host, ["close", "--domid", "1", "--method", "release", "--force"]);
    expect(again.stderr).not.toContain("ENOENT");
    expect(again.status).toBe(0);
    expect(await dom0.isDomainIntroduced(1)).toBe(true);
    dom0.close();
    ring.forget();
    expect(await read(ring, "/local/domain/1/name")).not.toBe("");
  },
);

test("a release leaves the domain its socket, the end of the domain does not", async () => {
  await start("oxenstored");
  const dom0 = new Xenstore(host.server.connectDirectly(0));
  const self = host.platform(1);
  const before = await Xenstore.connect(self);
  await dom0.release(1);
  expect(before.read("domid")).rejects.toThrow("went away");
  expect(Xenstore.connect(self)).rejects.toThrow();
  await dom0.introduce(1, 1, 1);
  const after = await Xenstore.connect(self);
  expect(await after.read("/local/domain/1/name").catch(errnoOf)).toBe("EACCES");
  for (const xenstore of [before, after, dom0]) xenstore.close();
  await host.destroyDomain(1);
  expect(existsSync(self.xenstore.path)).toBe(false);
  self.close();
  await host.createDomain(1);
});

test("a ring that is not there, is ours, or is not named", async () => {
  host = await SimHost.start({ domains: 2 });
  const cases: [string[], number, RegExp][] = [
    [["inspect", "--domid", "9"], 3, /^xentool: there is no domain 9$/m],
    [["close", "--domid", "9"], 3, /^xentool: there is no domain 9$/m],
    [["trace", "--domid", "9"], 3, /^xentool: there is no domain 9$/m],
    [["inspect", "--domid", "0"], 2, /domain 0 is this domain/],
    [["inspect"], 2, /which ring\?/],
    [["close"], 2, /which ring\?/],
    [["trace"], 2, /which ring\?/],
    [["inspect", "--domid", "1", "--history", "-1"], 2, /--history must be a number from 0/],
    [["trace", "--domid", "1", "--type", "PEEK"], 2, /there is no PEEK/],
  ];
  for (const [args, status, text] of cases) {
    const ended = await xsring(host, args);
    expect(ended.stderr).toMatch(text);
    expect(ended.status).toBe(status);
    expect(ended.stdout).toBe("");
  }
});
