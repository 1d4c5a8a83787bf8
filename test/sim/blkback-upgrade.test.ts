// An upgrade while guests work: one server of twenty disks in use follows another, as `systemctl restart` has it.
// Guests notice a slow request, never an error, and every disk holds what its guest was told. STALLS=1 prints how long
// they waited.
import { expect, test } from "bun:test";
import { join } from "node:path";
import type { DeviceAddress } from "../../src/blkback/address.ts";
import { createDevice, destroyDevice } from "../../src/blkback/toolstack.ts";
import { toDomid } from "../../src/core/types.ts";
import { SimHost } from "../../src/sim/host.ts";
import { Xenstore } from "../../src/xenstore/client.ts";
import { spawnXentool } from "../e2e/executable.ts";
import { readUntil, type Child } from "../support/process.ts";
import { chosenSeed, Random } from "../support/random.ts";
import { removeDirectory, temporaryDirectory } from "../support/temporary.ts";
import { DiskModel } from "./disk-model.ts";
import { ModelGuest } from "./model-guest.ts";

const DISKS = Number(process.env["DISKS"] ?? 20);
const UPGRADES = 3;
const BLOCKS = 48;
/** Answers to each guest between two upgrades. */
const ANSWERS = 30;
const STALLED_MS = 60_000;

interface Place {
  readonly address: DeviceAddress;
  readonly model: DiskModel;
  readonly guest: ModelGuest;
  answered: number;
  answeredAtMs: number;
  /** Longest time without an answer while it waited for one. */
  stallMs: number;
}

test("servers follow each other under load", async () => {
  const seed = chosenSeed();
  console.log(`upgrade: SEED=${seed}`);
  const random = new Random(seed);
  const dir = temporaryDirectory();
  const host = await SimHost.start({ domains: 1 + DISKS });
  const dom0 = host.platform(0);
  const xenstore = await Xenstore.connect(dom0);
  const places: Place[] = [];
  for (let domid = 1; domid <= DISKS; domid++) {
    const address: DeviceAddress = {
      backend: toDomid(0),
      kind: "vbd",
      frontend: toDomid(domid),
      devid: 51728,
    };
    const model = new DiskModel(join(dir, `${domid}.img`), BLOCKS);
    await createDevice(xenstore, { address, readOnly: false, params: model.path, deviceType: "disk" });
    const guest = await ModelGuest.start(host, address, model, random);
    places.push({ address, model, guest, answered: 0, answeredAtMs: 0, stallMs: 0 });
  }
  const serve = async (): Promise<Child> => {
    const grants = random.pick(["copy", "map", "persistent"]);
    const env = { XENTOOL_SIM: host.dir, XENTOOL_DOMID: "0" };
    const args = ["blkback", "watch", "--kind", "vbd", "--any-script", "--grants", grants];
    return spawnXentool(args, { env });
  };

  const look = (asks: boolean): void => {
    const now = performance.now();
    for (const place of places) {
      const { guest } = place;
      const waits = guest.waiting > 0;
      guest.reap();
      if (guest.answered !== place.answered || !waits) place.answeredAtMs = now;
      place.answered = guest.answered;
      place.stallMs = Math.max(place.stallMs, now - place.answeredAtMs);
      if (asks) guest.ask();
    }
  };
  /** Guests ask and take answers until `enough`. */
  const work = async (asks: boolean, enough: () => boolean): Promise<void> => {
    for (const since = performance.now(); !enough(); await Bun.sleep(1)) {
      look(asks);
      if (performance.now() - since > STALLED_MS) throw new Error("guests are not served any more");
    }
  };
  const workMore = (): Promise<void> => {
    const goals = places.map(({ guest }) => guest.answered + ANSWERS);
    return work(true, () => places.every(({ guest }, index) => guest.answered >= (goals[index] as number)));
  };

  let server = await serve();
  await Promise.all(places.map(({ guest }) => guest.connect()));
  await workMore();
  for (let upgrade = 0; upgrade < UPGRADES; upgrade++) {
    for (const place of places) place.stallMs = 0;
    const fromMs = performance.now();
    server.kill("SIGTERM");
    let isOver = false;
    void server.exited.then(() => (isOver = true));
    await work(true, () => isOver);
    expect(await server.exited).toBe(143);
    const endedMs = performance.now();
    server = await serve();
    let readyMs = 0;
    const ready = readUntil(server.stderr, "serving the disks").then(() => (readyMs = performance.now()));
    await workMore();
    await ready;
    if (process.env["STALLS"] !== undefined) {
      const stalls = places.map(({ stallMs }) => Math.round(stallMs)).toSorted((a, b) => a - b);
      const [median, longest] = [stalls[stalls.length >> 1], stalls.at(-1)];
      console.log(
        `ended in ${Math.round(endedMs - fromMs)} ms, ready after ${Math.round(readyMs - endedMs)} ms; ` +
          `without an answer: median ${median} ms, longest ${longest} ms`,
      );
    }
  }
  await work(false, () => places.every(({ guest }) => guest.waiting === 0));
  for (const { address, model, guest } of places) {
    model.settle();
    guest.close();
    await destroyDevice(xenstore, address);
  }
  server.kill("SIGTERM");
  expect(await server.exited).toBe(143);
  xenstore.close();
  dom0.close();
  removeDirectory(dir);
  const left = await host.settle();
  await host.stop();
  expect(left).toEqual([]);
}, 300_000);
