// What a guest's end of a vchan notices of its peer's domain, where neither Xen nor xenstored says that it is gone: the
// pages that a client has mapped keep a dead domain known to Xen, so here xenstore alone is asked.
import { afterEach, beforeEach, expect, test } from "bun:test";
import { setTimeout as delay } from "node:timers/promises";
import { toDomid, type EvtchnPort, type GrantRef } from "../../src/core/types.ts";
import type { Platform } from "../../src/platform/platform.ts";
import { PeerWatch } from "../../src/vchan/peer-watch.ts";
import { publishKeys, vchanPlace, withdrawKeys, type VchanKeys } from "../../src/vchan/rendezvous.ts";
import { Xenstore } from "../../src/xenstore/client.ts";
import { VchanCli } from "./vchan-cli-harness.ts";

const TIMEOUT_MS = 20_000;
const KEYS: VchanKeys = { ringRef: 8 as GrantRef, port: 5 as EvtchnPort };
const OTHERS: VchanKeys = { ringRef: 9 as GrantRef, port: 6 as EvtchnPort };
const PLACE = vchanPlace("t", toDomid(1), toDomid(2));
/** Longer than it takes to believe that keys which stayed will stay. */
const SETTLED_MS = 5500;
/** Longer than it takes to notice. */
const NOTICED_MS = 4000;
/** As a kernel answers of a domain that is dead while we map pages of it: all is well. */
const ZOMBIE = {
  openGrantTable: () => ({ map: () => ({ close: () => {} }), close: () => {} }),
} as unknown as Platform;

let cli: VchanCli;
let platforms: readonly Platform[];
let server: Xenstore;
let client: Xenstore;
let watch: PeerWatch | undefined;
let gone: Promise<string>;
beforeEach(async () => {
  cli = await VchanCli.start();
  const [ofServer, ofClient] = [cli.host.platform(1), cli.host.platform(2)];
  platforms = [ofServer, ofClient];
  server = await Xenstore.connect(ofServer);
  client = await Xenstore.connect(ofClient);
});
afterEach(async () => {
  await watch?.stop();
  server.close();
  client.close();
  for (const platform of platforms) platform.close();
  await cli[Symbol.asyncDispose]();
});

/** The client looks after a server that published KEYS. */
async function follow(keepsKeys: boolean): Promise<void> {
  const { promise, resolve } = Promise.withResolvers<string>();
  gone = promise;
  watch = await PeerWatch.start({
    platform: ZOMBIE,
    xenstore: client,
    place: PLACE,
    role: "client",
    keys: KEYS,
    keepsKeys,
    onGone: () => resolve("gone"),
  });
}

function soon(): Promise<string> {
  return Promise.race([gone, delay(NOTICED_MS, "there")]);
}

test("the domain of a server that keeps its keys", async () => {
  await publishKeys(server, PLACE, KEYS);
  await follow(true);
  await cli.host.destroyDomain(1);
  expect(await soon()).toBe("gone");
});

test("it was destroyed before we looked", async () => {
  await cli.host.destroyDomain(1);
  await follow(true);
  expect(await soon()).toBe("gone");
});

test(
  "the domain of another server, whose keys stayed for some seconds",
  async () => {
    await publishKeys(server, PLACE, KEYS);
    await follow(false);
    expect(await Promise.race([gone, delay(SETTLED_MS, "there")])).toBe("there");
    await cli.host.destroyDomain(1);
    expect(await soon()).toBe("gone");
  },
  TIMEOUT_MS,
);

test(
  "a server that removes its keys once connected says nothing by that",
  async () => {
    await publishKeys(server, PLACE, KEYS);
    await follow(false);
    await withdrawKeys(server, PLACE, KEYS, true);
    expect(await Promise.race([gone, delay(SETTLED_MS + NOTICED_MS, "there")])).toBe("there");
  },
  TIMEOUT_MS,
);

test("another server's keys in the same place say nothing of ours", async () => {
  await publishKeys(server, PLACE, KEYS);
  await follow(true);
  await publishKeys(server, PLACE, OTHERS);
  await delay(1000);
  await withdrawKeys(server, PLACE, OTHERS, true);
  expect(await soon()).toBe("there");
});
