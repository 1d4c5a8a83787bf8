// A disk whose bytes another program has, with a guest that is a model of what it does; that program and xentool are
// killed.
import { expect } from "bun:test";
import { readdirSync } from "node:fs";
import { join } from "node:path";
import type { DeviceAddress } from "../../src/blkback/address.ts";
import { createDevice, destroyDevice } from "../../src/blkback/toolstack.ts";
import { toDomid } from "../../src/core/types.ts";
import { SimHost } from "../../src/sim/host.ts";
import { Xenstore } from "../../src/xenstore/client.ts";
import { DiskModel } from "../sim/disk-model.ts";
import { ModelGuest } from "../sim/model-guest.ts";
import { childrenOf, wordsOf, type Child } from "../support/process.ts";
import { chosenSeed, Random } from "../support/random.ts";
import { removeDirectory, temporaryDirectory } from "../support/temporary.ts";
import { spawnXentool } from "./executable.ts";

const BLOCKS = 256;
const ANSWERS_MAX = 300;
const STALLED_MS = 30_000;
const ADDRESS: DeviceAddress = { backend: toDomid(0), kind: "vbd", frontend: toDomid(1), devid: 51728 };

/** What is killed in a round. */
const VICTIMS = ["the other program", "xentool", "both"] as const;
type Victim = (typeof VICTIMS)[number];

/** Where the bytes are. */
export interface Storage {
  /** As a toolstack names it. */
  readonly params: string;
  start(): Promise<void>;
  /** Kills the program that has the bytes. */
  kill(): Promise<void>;
  /** Brings them to the image of the model, when nobody has the disk any more. */
  settle(): Promise<void>;
}

/** `image` is the model's, full of zeroes. */
export type MakeStorage = (dir: string, image: string, random: Random) => Promise<Storage>;

class KillWorld {
  readonly #dir: string;
  readonly #host: SimHost;
  readonly #xenstore: Xenstore;
  readonly #random: Random;
  readonly #model: DiskModel;
  readonly #storage: Storage;
  readonly #closing: (() => void)[] = [];
  #xentool: Child | undefined;
  #guest: ModelGuest | undefined;

  static async start(random: Random, make: MakeStorage): Promise<KillWorld> {
    const host = await SimHost.start();
    const dom0 = host.platform(0);
    const dir = temporaryDirectory();
    const model = new DiskModel(join(dir, "disk.img"), BLOCKS);
    const storage = await make(dir, model.path, random);
    const world = new KillWorld(host, await Xenstore.connect(dom0), random, dir, model, storage);
    world.#closing.push(() => dom0.close());
    await world.#attach();
    return world;
  }

  private constructor(
    host: SimHost,
    xenstore: Xenstore,
    random: Random,
    dir: string,
    model: DiskModel,
    storage: Storage,
  ) {
    this.#host = host;
    this.#xenstore = xenstore;
    this.#random = random;
    this.#dir = dir;
    this.#model = model;
    this.#storage = storage;
  }

  /** The guest works, and in the middle of it `victim` is killed and started again. */
  async round(victim: Victim): Promise<void> {
    const goal = this.#connected.answered + this.#random.below(ANSWERS_MAX);
    await this.#work(true, () => this.#connected.answered >= goal);
    const isOurs = victim !== "the other program";
    if (isOurs) this.#killXentool();
    if (victim !== "xentool") await this.#storage.kill();
    if (isOurs) await this.#xentool?.exited;
    this.#connected.ask();
    if (victim !== "xentool") await this.#storage.start();
    if (isOurs) this.#serve();
    if (victim === "xentool" || this.#random.chance(0.5)) return;
    // Once more, perhaps while what it has forgotten is being sent again.
    await Bun.sleep(this.#random.below(this.#random.pick([5, 50, 500])));
    await this.#storage.kill();
    await this.#storage.start();
  }

  /** Everything that was asked for is done, and the image is what the guest was told. */
  async finish(): Promise<void> {
    await this.#work(false, () => this.#connected.waiting === 0);
    this.#xentool?.kill("SIGTERM");
    await this.#xentool?.exited;
    // What was not flushed is left to a successor, which flushes it once the guest has let go.
    this.#serve();
    const guest = this.#connected;
    const goal = guest.answered + 1;
    await this.#work(true, () => guest.answered >= goal);
    await this.#work(false, () => guest.waiting === 0);
    for (const state of [5, 6]) await guest.setState(state);
    await guest.untilBackend(6);
    await destroyDevice(this.#xenstore, ADDRESS);
    for (const since = performance.now(); this.#files().length > 0; await Bun.sleep(1))
      if (performance.now() - since > STALLED_MS) throw new Error(`still there: ${this.#files().join(", ")}`);
    await this.#storage.settle();
    this.#model.settle();
  }

  /** Takes all down, finished or not; what somebody still holds of the host. */
  async close(): Promise<string[]> {
    this.#guest?.close();
    this.#killXentool();
    await this.#xentool?.exited;
    await this.#storage.kill();
    this.#xenstore.close();
    for (const close of this.#closing) close();
    const left = await this.#host.settle();
    await this.#host.stop();
    removeDirectory(this.#dir);
    return left;
  }

  /** What xentool keeps of the disk. */
  #files(): string[] {
    return readdirSync(join(this.#host.dir, "blkback"));
  }

  async #attach(): Promise<void> {
    await this.#storage.start();
    const device = { address: ADDRESS, readOnly: false, params: this.#storage.params } as const;
    await createDevice(this.#xenstore, { ...device, deviceType: "disk" });
    this.#serve();
    this.#guest = await ModelGuest.start(this.#host, ADDRESS, this.#model, this.#random, true);
    await this.#guest.connect();
  }

  /** With the process that serves the guest, but not what ends the image's program then. */
  #killXentool(): void {
    const xentool = this.#xentool;
    if (xentool === undefined || xentool.exitCode !== null || xentool.signalCode !== null) return;
    const guests = childrenOf(xentool.pid).filter((pid) => wordsOf(pid)?.[0] !== "/bin/sh");
    xentool.kill("SIGKILL");
    for (const pid of guests) process.kill(pid, "SIGKILL");
  }

  get #connected(): ModelGuest {
    return this.#guest as ModelGuest;
  }

  #serve(): void {
    const grants = this.#random.pick(["copy", "map", "persistent"]);
    const isolation = this.#random.pick(["process", "thread"]);
    const how = ["--grants", grants, "--isolation", isolation];
    const args = ["blkback", "watch", "--kind", "vbd", "--any-script", ...how];
    this.#xentool = spawnXentool(args, { env: { XENTOOL_SIM: this.#host.dir, XENTOOL_DOMID: "0" } });
  }

  async #work(asks: boolean, enough: () => boolean): Promise<void> {
    const guest = this.#connected;
    let last = -1;
    for (let since = performance.now(); !enough(); await Bun.sleep(this.#random.below(2))) {
      guest.reap();
      if (asks && this.#random.chance(0.5)) guest.ask();
      if (guest.answered !== last) since = performance.now();
      last = guest.answered;
      if (performance.now() - since > STALLED_MS) throw new Error("nothing is answered any more");
    }
  }
}

/** Kills one victim after the other, `rounds` times, and then expects everything to be there and nothing to be left. */
export async function survive(name: string, rounds: number, make: MakeStorage): Promise<void> {
  const seed = chosenSeed();
  console.log(`${name}: SEED=${seed}`);
  const world = await KillWorld.start(new Random(seed), make);
  let left: string[];
  try {
    for (let round = 0; round < rounds; round++) await world.round(VICTIMS[round % VICTIMS.length]);
    await world.finish();
  } finally {
    left = await world.close();
  }
  expect(left).toEqual([]);
}
