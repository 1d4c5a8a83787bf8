// Guests at work, each with a disk that domain 0 serves and a model of what it may hold: for tests of what servers do
// to each other's guests.
import { expect } from "bun:test";
import { join } from "node:path";
import type { DeviceAddress } from "../../src/blkback/address.ts";
import { createDevice, destroyDevice } from "../../src/blkback/toolstack.ts";
import { toDomid } from "../../src/core/types.ts";
import type { SimPlatform } from "../../src/platform/sim.ts";
import { SimHost } from "../../src/sim/host.ts";
import { Xenstore } from "../../src/xenstore/client.ts";
import { spawnXentool } from "../e2e/executable.ts";
import type { Child } from "../support/process.ts";
import type { Random } from "../support/random.ts";
import { removeDirectory, temporaryDirectory } from "../support/temporary.ts";
import { DiskModel } from "./disk-model.ts";
import { ModelGuest } from "./model-guest.ts";

const BLOCKS = 48;
const STALLED_MS = 60_000;

export interface WorkingGuest {
  readonly address: DeviceAddress;
  readonly model: DiskModel;
  readonly guest: ModelGuest;
  answered: number;
  answeredAtMs: number;
  /** Longest time without an answer while it waited for one. */
  stallMs: number;
}

export class WorkingGuests {
  readonly guests: WorkingGuest[] = [];

  private constructor(
    readonly host: SimHost,
    readonly xenstore: Xenstore,
    readonly dir: string,
    readonly random: Random,
    private readonly dom0: SimPlatform,
  ) {}

  /** Domains 1 to `count`. Nobody serves them yet. */
  static async start(count: number, random: Random): Promise<WorkingGuests> {
    const host = await SimHost.start({ domains: 1 + count });
    const dom0 = host.platform(0);
    const it = new WorkingGuests(host, await Xenstore.connect(dom0), temporaryDirectory(), random, dom0);
    for (let domid = 1; domid <= count; domid++) await it.#add(domid);
    return it;
  }

  /** One `blkback watch` for all of them. */
  watch(...more: readonly string[]): Child {
    return this.watchWith({}, ...more);
  }

  /** The same, with more in its environment. */
  watchWith(added: Readonly<Record<string, string>>, ...more: readonly string[]): Child {
    const env = { XENTOOL_SIM: this.host.dir, XENTOOL_DOMID: "0", ...added };
    return spawnXentool(["blkback", "watch", "--kind", "vbd", "--any-script", ...more], { env });
  }

  async connect(): Promise<void> {
    await Promise.all(this.guests.map(({ guest }) => guest.connect()));
  }

  /** Guests ask, unless `asks` is false, and take answers until `enough`. */
  async work(asks: boolean, enough: () => boolean): Promise<void> {
    for (const since = performance.now(); !enough(); await Bun.sleep(1)) {
      this.#look(asks);
      if (performance.now() - since > STALLED_MS) throw new Error("guests are not served any more");
    }
  }

  /** Until each of `some` has that many more answers. */
  workMore(answers: number, some: readonly WorkingGuest[] = this.guests): Promise<void> {
    const goals = some.map(({ guest }) => guest.answered + answers);
    return this.work(true, () => some.every(({ guest }, index) => guest.answered >= goals[index]));
  }

  async workUntil(event: Promise<unknown>): Promise<void> {
    let isOver = false;
    const end = (): void => {
      isOver = true;
    };
    event.then(end, end);
    await this.work(true, () => isOver);
    await event;
  }

  /** Each gets its last answers, and its disk holds what it may. */
  async finish(): Promise<void> {
    await this.work(false, () => this.guests.every(({ guest }) => guest.waiting === 0));
    for (const { address, model, guest } of this.guests) {
      model.settle();
      guest.close();
      await destroyDevice(this.xenstore, address);
    }
  }

  /** Nothing is left. */
  async close(): Promise<void> {
    this.xenstore.close();
    this.dom0.close();
    removeDirectory(this.dir);
    const left = await this.host.settle();
    await this.host.stop();
    expect(left).toEqual([]);
  }

  #look(asks: boolean): void {
    const now = performance.now();
    for (const it of this.guests) {
      const { guest } = it;
      const waits = guest.waiting > 0;
      guest.reap();
      if (guest.answered !== it.answered || !waits) it.answeredAtMs = now;
      it.answered = guest.answered;
      it.stallMs = Math.max(it.stallMs, now - it.answeredAtMs);
      if (asks) guest.ask();
    }
  }

  async #add(domid: number): Promise<void> {
    const address = { backend: toDomid(0), kind: "vbd", frontend: toDomid(domid), devid: 51728 };
    const model = new DiskModel(join(this.dir, `${domid}.img`), BLOCKS);
    const device = { address, readOnly: false, params: model.path, deviceType: "disk" } as const;
    await createDevice(this.xenstore, device);
    const guest = await ModelGuest.start(this.host, address, model, this.random);
    this.guests.push({ address, model, guest, answered: 0, answeredAtMs: 0, stallMs: 0 });
  }
}
