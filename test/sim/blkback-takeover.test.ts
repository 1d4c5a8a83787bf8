// Servers that are killed at random while guests ask for more than they can answer, and guests that go on, begin anew
// on a new ring, or are followed by others with the same number while nobody serves: no write is done that was not
// asked for on the ring that is there, none is lost that was acknowledged, and each request is answered once.
import { afterEach, beforeEach, expect, test } from "bun:test";
import { mkdtempSync, readdirSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import type { DeviceAddress } from "../../src/blkback/address.ts";
import { createDevice, destroyDevice } from "../../src/blkback/toolstack.ts";
import { toDomid } from "../../src/core/types.ts";
import type { SimPlatform } from "../../src/platform/sim.ts";
import { SimHost } from "../../src/sim/host.ts";
import { Xenstore } from "../../src/xenstore/client.ts";
import { spawnXentool } from "../e2e/executable.ts";
import { DiskModel } from "./disk-model.ts";
import { ModelGuest } from "./model-guest.ts";
import { Random } from "./random.ts";

const DOMAINS = [1, 2, 3, 4];
const BLOCKS = 48;
const TAKEOVERS = Number(process.env["TAKEOVERS"] ?? 200);
/** Answers that each server gives at least, on the whole, before it is killed, so that there is progress. */
const PROGRESS = 100;
const STALLED_MS = 30_000;

/** The states by which frontends come to a new ring: Linux, kexec, Amazon's after hibernation, Linux after s2idle. */
const WAYS = [
  [5, 6, 1, 3, 4],
  [1, 3, 4],
  [5, 6, 3, 4],
  [3, 4],
];

let host: SimHost;
let dom0: SimPlatform;
let xenstore: Xenstore;
let dir: string;
let random: Random;

beforeEach(async () => {
  host = await SimHost.start({ domains: 1 });
  dom0 = host.platform(0);
  xenstore = await Xenstore.connect(dom0);
  dir = mkdtempSync(join(tmpdir(), "xentool-takeover-"));
});

afterEach(async () => {
  xenstore.close();
  dom0.close();
  rmSync(dir, { recursive: true });
  expect(await host.settle()).toEqual([]);
  await host.stop();
});

/** A domain number with a disk, and whoever has both at the moment. */
class Place {
  readonly model: DiskModel;
  readonly address: DeviceAddress;
  #guest: ModelGuest | undefined;
  /** Fails when a handshake does. */
  #connecting: Promise<void> | undefined;

  constructor(domid: number) {
    this.model = new DiskModel(join(dir, `${domid}.img`), BLOCKS);
    this.address = { backend: toDomid(0), kind: "vbd", frontend: toDomid(domid), devid: 51728 };
  }

  get guest(): ModelGuest {
    return this.#guest as ModelGuest;
  }

  get isConnected(): boolean {
    return this.#connecting === undefined;
  }

  /** A new domain with a disk that nobody has offered yet. */
  async populate(): Promise<void> {
    await host.createDomain(this.address.frontend);
    await this.attach();
  }

  async attach(): Promise<void> {
    const { address, model } = this;
    await createDevice(xenstore, { address, readOnly: false, deviceType: "disk", params: model.path });
    this.#guest = await ModelGuest.start(host, address, model, random);
    this.#connecting = this.#connect(this.#guest);
    this.#connecting.catch(() => {});
  }

  async leave(): Promise<void> {
    await this.#connecting;
    this.#guest?.close();
    await destroyDevice(xenstore, this.address);
  }

  /** While nobody serves. What was asked for so far is over then, unless the guest just goes on. */
  async move(): Promise<void> {
    if (!this.isConnected) return;
    this.guest.reap();
    const way = random.below(10);
    if (way < 3) return this.guest.ask();
    this.model.settle();
    if (way < 8) return this.#beginAnew();
    await this.leave();
    if (way < 9) return this.attach();
    await host.destroyDomain(this.address.frontend);
    return this.populate();
  }

  async #beginAnew(): Promise<void> {
    const way = random.pick(WAYS);
    for (const state of way) {
      if (state === 3) await this.guest.makeRing();
      await this.guest.setState(state);
    }
    this.guest.ask();
  }

  async #connect(guest: ModelGuest): Promise<void> {
    await guest.connect();
    this.#connecting = undefined;
  }
}

/** A server of every disk; it ends when it is killed. */
function serve(): ReturnType<typeof spawnXentool> {
  const options = random.pick([[], ["--grants", "map"], ["--engine", "sync"], ["--filter", "delay:ms=2"]]);
  const env = { XENTOOL_SIM: host.dir, XENTOOL_DOMID: "0" };
  return spawnXentool(["blkback", "watch", "--kind", "vbd", "--any-script", ...options], { env });
}

async function kill(server: ReturnType<typeof spawnXentool>): Promise<void> {
  server.kill(random.chance(0.2) ? "SIGTERM" : "SIGKILL");
  await server.exited;
}

/** Guests ask and take answers until `enough`. */
async function work(places: readonly Place[], asks: boolean, enough: () => boolean): Promise<void> {
  let last = 0;
  for (let since = performance.now(); !enough();) {
    const connected = places.filter((it) => it.isConnected);
    for (const { guest } of connected) {
      guest.reap();
      if (asks && random.chance(0.5)) guest.ask();
    }
    const answered = total(places);
    if (answered !== last) since = performance.now();
    last = answered;
    if (performance.now() - since > STALLED_MS) throw new Error("nothing is answered any more");
    await Bun.sleep(random.chance(0.5) ? 0 : 1);
  }
}

function total(places: readonly Place[]): number {
  return places.reduce((sum, it) => sum + it.guest.answered, 0);
}

test("kills and guests that move on", async () => {
  const seed = Number(process.env["SEED"] ?? Date.now() % 2 ** 32);
  console.log(`takeover: SEED=${seed}`);
  random = new Random(seed);
  const places = DOMAINS.map((domid) => new Place(domid));
  for (const place of places) await place.populate();
  for (let kills = 0; kills < TAKEOVERS; kills += DOMAINS.length) {
    const server = serve();
    const goal = total(places) + random.below(PROGRESS * 2);
    await work(places, true, () => total(places) >= goal);
    await kill(server);
    for (const place of places) await place.move();
  }
  const server = serve();
  await work(places, false, () => places.every((it) => it.isConnected && it.guest.waiting === 0));
  for (const place of places) {
    place.model.settle();
    await place.leave();
  }
  // Statistics, journals and locks go with the devices.
  while (readdirSync(join(host.dir, "blkback")).length > 0) await Bun.sleep(5);
  server.kill("SIGTERM");
  expect(await server.exited).toBe(143);
}, 600_000);
