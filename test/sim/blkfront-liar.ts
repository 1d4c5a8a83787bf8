// A backend by hand on the simulated platform, which says and writes what the test wants: xenstore keys one
// by one, and raw responses on the ring. Nothing of src/blkback but the making of directories.
import { backendDir, frontendDir, type DeviceAddress } from "../../src/blkback/address.ts";
import { createDevice, destroyDevice } from "../../src/blkback/toolstack.ts";
import { toDomid, type EvtchnPort } from "../../src/core/types.ts";
import type { Mapping } from "../../src/native/memory.ts";
import type { EventChannels, GrantTable } from "../../src/platform/platform.ts";
import type { SimPlatform } from "../../src/platform/sim.ts";
import { SimHost } from "../../src/sim/host.ts";
import { Xenstore } from "../../src/xenstore/client.ts";

const DISK_KEYS = { sectors: "2048", info: "0", "sector-size": "512", "feature-flush-cache": "1" };
type Keys = Readonly<Record<string, string>>;

export class LyingBackend {
  readonly host: SimHost;
  readonly guest: SimPlatform;
  readonly xenstore: Xenstore;
  readonly address: DeviceAddress = {
    backend: toDomid(0),
    kind: "qdisk",
    frontend: toDomid(1),
    devid: 51728,
  };
  readonly #dom0: SimPlatform;
  readonly #channels: EventChannels;
  readonly #grants: GrantTable;
  #ring: Mapping | undefined;
  #port = 0 as EvtchnPort;
  #rspProd = 0;

  static async start(): Promise<LyingBackend> {
    const host = await SimHost.start({ domains: 2 });
    const dom0 = host.platform(0);
    const backend = new LyingBackend(host, dom0, await Xenstore.connect(dom0));
    const { xenstore, address } = backend;
    await createDevice(xenstore, { address, readOnly: false, deviceType: "disk", params: "/a.img" });
    return backend;
  }

  private constructor(host: SimHost, dom0: SimPlatform, xenstore: Xenstore) {
    this.host = host;
    this.guest = host.platform(1);
    this.xenstore = xenstore;
    this.#dom0 = dom0;
    this.#channels = dom0.openEventChannels();
    this.#grants = dom0.openGrantTable();
  }

  /** Writes `keys` and then `state` to its own directory. */
  async say(state: number, keys: Keys = {}): Promise<void> {
    const dir = backendDir(this.address);
    for (const [key, value] of Object.entries({ ...keys, state: String(state) }))
      await this.xenstore.write(`${dir}/${key}`, value);
  }

  frontendKey(key: string): Promise<string | null> {
    return this.xenstore.tryRead(`${frontendDir(this.address)}/${key}`);
  }

  async untilFrontend(...states: number[]): Promise<void> {
    const path = `${frontendDir(this.address)}/state`;
    await this.xenstore.waitFor(path, (value) => states.includes(Number(value)), { timeoutMs: 10_000 });
  }

  /** Takes the handshake to state 4, with a ring of one page. */
  async serve(keys: Keys = DISK_KEYS): Promise<void> {
    await this.say(2);
    await this.untilFrontend(3);
    const ref = Number(await this.frontendKey("ring-ref"));
    const remote = Number(await this.frontendKey("event-channel")) as EvtchnPort;
    this.#ring = this.#grants.map(this.address.frontend, [ref], "rw");
    this.#port = this.#channels.bindInterdomain(this.address.frontend, remote);
    await this.say(4, keys);
  }

  /** Lets go as a good backend does once the frontend closes. */
  async letGo(): Promise<void> {
    await this.untilFrontend(5, 6);
    await this.say(5);
    await this.untilFrontend(6);
    this.#ring?.close();
    this.#ring = undefined;
    await this.say(6);
  }

  /** Waits for `count` requests on the ring. */
  async untilRequests(count: number): Promise<void> {
    while (Atomics.load(this.#words, 0) < count) await Bun.sleep(1);
  }

  /** The id of request `index` as it stands on the ring. */
  idOf(index: number): bigint {
    return new DataView(this.#words.buffer).getBigUint64(64 + index * 112 + 8, true);
  }

  answer(id: bigint, op: number, status = 0): void {
    const view = new DataView(this.#words.buffer);
    const at = 64 + (this.#rspProd % 32) * 112;
    view.setBigUint64(at, id, true);
    view.setUint8(at + 8, op);
    view.setInt16(at + 10, status, true);
    this.publish(++this.#rspProd);
  }

  publish(rspProd: number): void {
    Atomics.store(this.#words, 2, rspProd);
    this.#channels.notify(this.#port);
  }

  async close(): Promise<void> {
    this.#ring?.close();
    this.#channels.close();
    this.#grants.close();
    await destroyDevice(this.xenstore, this.address);
    this.xenstore.close();
    this.#dom0.close();
    this.guest.close();
    const leaks = await this.host.settle();
    await this.host.stop();
    if (leaks.length > 0) throw new Error(`left behind: ${leaks.join("; ")}`);
  }

  get #words(): Uint32Array<ArrayBuffer> {
    if (this.#ring === undefined) throw new Error("the ring is not mapped");
    return this.#ring.words;
  }
}
