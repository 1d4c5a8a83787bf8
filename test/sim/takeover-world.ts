// A simulated host with guests that are models of what they do, and one server of all their disks at a time, to be
// killed. For the test of takeovers, and for the soak.
import { readdirSync } from "node:fs";
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
import { childrenOf } from "../support/process.ts";
import type { Random } from "../support/random.ts";
import { removeDirectory, temporaryDirectory } from "../support/temporary.ts";

const DOMAINS = [1, 2, 3, 4];
const BLOCKS = 48;
/** A server is killed after at most this many answers, or a few more. */
const ANSWERS_MAX = 200;
const STALLED_MS = 30_000;
const SIGTERM_SHARE = 0.2;
/** Half of all servers have none. They are low enough to hold requests back, and high enough to be done soon. */
const LIMITS = [
  ["--iops", "500"],
  ["--bandwidth", "4M"],
  ["--iops", "read:300,write:300", "--bandwidth", "8M"],
];

/** The states by which frontends come to a new ring: Linux, kexec, Amazon's after hibernation, Linux after s2idle. */
const WAYS = [
  [5, 6, 1, 3, 4],
  [1, 3, 4],
  [5, 6, 3, 4],
  [3, 4],
];

/** What places and guests stand on. */
export interface Ground {
  readonly host: SimHost;
  readonly xenstore: Xenstore;
  readonly random: Random;
  /** For images. */
  readonly dir: string;
}

export class TakeoverWorld implements Ground {
  readonly host: SimHost;
  readonly xenstore: Xenstore;
  readonly random: Random;
  readonly dir = temporaryDirectory();
  readonly #dom0: SimPlatform;
  readonly #places: readonly Place[];
  #server: ReturnType<typeof spawnXentool> | undefined;
  #isLimited = false;
  /** By what was hit: how many disks had requests under way when their server was killed with SIGKILL. */
  readonly hits = new Map<string, number>();

  static async start(random: Random): Promise<TakeoverWorld> {
    const host = await SimHost.start({ domains: 1 });
    const dom0 = host.platform(0);
    const world = new TakeoverWorld(host, dom0, await Xenstore.connect(dom0), random);
    for (const place of world.#places) await place.populate();
    return world;
  }

  private constructor(host: SimHost, dom0: SimPlatform, xenstore: Xenstore, random: Random) {
    this.host = host;
    this.#dom0 = dom0;
    this.xenstore = xenstore;
    this.random = random;
    this.#places = DOMAINS.map((domid) => new Place(this, domid));
  }

  /** One server's life, and what guests do after it. */
  async round(): Promise<void> {
    this.#serve();
    const goal = this.#answered + this.random.below(ANSWERS_MAX);
    await this.#work(true, () => this.#answered >= goal);
    const signal = this.random.chance(SIGTERM_SHARE) ? "SIGTERM" : "SIGKILL";
    await this.kill(signal);
    if (signal === "SIGKILL") this.#countHits();
    for (const place of this.#places) await place.move();
  }

  /** A last server answers what waits; then every disk is what its model says, and nothing is left of it. */
  async finish(): Promise<void> {
    this.#serve();
    await this.#work(false, () => this.#places.every((it) => it.isConnected && it.guest.waiting === 0));
    for (const place of this.#places) {
      place.model.settle();
      await place.leave();
    }
    await this.#until("statistics, journals and locks go with the devices", () => this.#files().length === 0);
  }

  /** SIGKILL also hits the processes that serve its guests, as it does when a service manager ends the whole. */
  async kill(signal: "SIGTERM" | "SIGKILL"): Promise<void> {
    const server = this.#server;
    if (server === undefined) return;
    const guests = signal === "SIGKILL" && server.exitCode === null ? childrenOf(server.pid) : [];
    server.kill(signal);
    for (const pid of guests) process.kill(pid, signal);
    await server.exited;
  }

  /** Takes all down, finished or not; what somebody still holds of the host. */
  async close(): Promise<string[]> {
    await this.kill("SIGKILL");
    for (const place of this.#places) place.guest.close();
    this.xenstore.close();
    this.#dom0.close();
    removeDirectory(this.dir);
    const leaks = await this.host.settle();
    await this.host.stop();
    return leaks;
  }

  #countHits(): void {
    for (const { guest } of this.#places.filter((it) => it.isConnected && it.guest.waiting > 0)) {
      const hit = `${guest.queues} queues, ${this.#isLimited ? "limited" : "without limits"}`;
      this.hits.set(hit, (this.hits.get(hit) ?? 0) + 1);
    }
  }

  /** Answers to all guests so far. */
  get #answered(): number {
    return this.#places.reduce((sum, it) => sum + it.answered, 0);
  }

  /** What the server keeps of the places' devices. */
  #files(): string[] {
    const names = readdirSync(join(this.host.dir, "blkback"));
    return names.filter((name) => DOMAINS.includes(Number.parseInt(name, 10)));
  }

  async #until(what: string, holds: () => boolean): Promise<void> {
    for (const since = performance.now(); !holds(); await Bun.sleep(1))
      if (performance.now() - since > STALLED_MS) throw new Error(`${what}: not yet after ${STALLED_MS} ms`);
  }

  #serve(): void {
    const ways = [
      [],
      ["--grants", "map"],
      ["--grants", "persistent"],
      ["--engine", "sync"],
      ["--filter", "delay:ms=2"],
      ["--threads", "2"],
      ["--threads", "3", "--grants", "persistent"],
    ];
    const env = { XENTOOL_SIM: this.host.dir, XENTOOL_DOMID: "0" };
    const queues = this.random.pick([1, 2, 4]);
    const order = this.random.pick([0, 1, 4]);
    const offer = ["--max-queues", String(queues), "--max-ring-page-order", String(order)];
    this.#isLimited = this.random.chance(0.5);
    const limits = this.#isLimited ? this.random.pick(LIMITS) : [];
    const isolation = ["--isolation", this.random.pick(["process", "thread"])];
    const how = [...offer, ...this.random.pick(ways), ...limits, ...isolation];
    const args = ["blkback", "watch", "--kind", "vbd", "--any-script", ...how];
    this.#server = spawnXentool(args, { env });
  }

  /** Guests ask and take answers until `enough`. */
  async #work(asks: boolean, enough: () => boolean): Promise<void> {
    let last = -1;
    for (let since = performance.now(); !enough();) {
      for (const { guest } of this.#places.filter((it) => it.isConnected)) {
        guest.reap();
        if (asks && this.random.chance(0.5)) guest.ask();
      }
      const answered = this.#answered;
      if (answered !== last) since = performance.now();
      last = answered;
      if (performance.now() - since > STALLED_MS) throw new Error("nothing is answered any more");
      await Bun.sleep(this.random.chance(0.5) ? 0 : 1);
    }
  }
}

/** A domain number with a disk, and whoever has both at the moment. */
class Place {
  readonly model: DiskModel;
  readonly #ground: Ground;
  readonly #address: DeviceAddress;
  #guest: ModelGuest | undefined;
  #connecting: Promise<void> | undefined;
  /** By guests that are gone. */
  #answered = 0;

  constructor(ground: Ground, domid: number) {
    this.#ground = ground;
    this.model = new DiskModel(join(ground.dir, `${domid}.img`), BLOCKS);
    this.#address = { backend: toDomid(0), kind: "vbd", frontend: toDomid(domid), devid: 51728 };
  }

  get guest(): ModelGuest {
    return this.#guest as ModelGuest;
  }

  get isConnected(): boolean {
    return this.#connecting === undefined;
  }

  get answered(): number {
    return this.#answered + this.guest.answered;
  }

  /** A new domain with a disk that nobody has offered yet. */
  async populate(): Promise<void> {
    await this.#ground.host.createDomain(this.#address.frontend);
    await this.#attach();
  }

  async leave(): Promise<void> {
    await this.#connecting;
    this.#answered += this.guest.answered;
    this.guest.answered = 0;
    this.guest.close();
    await destroyDevice(this.#ground.xenstore, this.#address);
  }

  /** While nobody serves. What was asked for so far is over then, unless the guest just goes on. */
  async move(): Promise<void> {
    if (!this.isConnected) return;
    this.guest.reap();
    const way = this.#ground.random.below(10);
    if (way < 3) return this.guest.ask();
    this.model.settle();
    if (way < 8) return this.#beginAnew();
    await this.leave();
    if (way < 9) return this.#attach();
    await this.#ground.host.destroyDomain(this.#address.frontend);
    return this.populate();
  }

  async #attach(): Promise<void> {
    const { host, xenstore, random } = this.#ground;
    const device = { address: this.#address, readOnly: false, params: this.model.path } as const;
    await createDevice(xenstore, { ...device, deviceType: "disk" });
    this.#guest = await ModelGuest.start(host, this.#address, this.model, random);
    this.#connecting = this.#connect(this.#guest);
    this.#connecting.catch(() => {});
  }

  async #beginAnew(): Promise<void> {
    for (const state of this.#ground.random.pick(WAYS)) {
      if (state === 3) await this.guest.makeRings();
      await this.guest.setState(state);
    }
    this.guest.ask();
  }

  async #connect(guest: ModelGuest): Promise<void> {
    await guest.connect();
    this.#connecting = undefined;
  }
}
