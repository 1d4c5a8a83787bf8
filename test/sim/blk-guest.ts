// A guest's side of one block device, by hand: xenstore keys written one by one, and rings of a page each, good for
// single requests. For tests of the backend's life cycle, independent of src/blkfront.
import { backendDir, frontendDir, type DeviceAddress } from "../../src/blkback/address.ts";
import type { EvtchnPort } from "../../src/core/types.ts";
import type { EventChannels, GrantShare, SharedPages } from "../../src/platform/platform.ts";
import type { SimPlatform } from "../../src/platform/sim.ts";
import type { SimHost } from "../../src/sim/host.ts";
import { ABI_X86_64, type BlkifAbi } from "../../src/protocol/blkif.ts";
import { Xenstore } from "../../src/xenstore/client.ts";
import type { XenstoreOperations } from "../../src/xenstore/operations.ts";

const WAIT_MS = 10_000;

export interface PageRequest {
  /** READ, WRITE, WRITE_BARRIER, FLUSH_DISKCACHE, DISCARD; the last two without data. */
  readonly operation: 0 | 1 | 2 | 3 | 5;
  readonly sector: number;
  /** That are discarded. */
  readonly sectors?: number;
  /** Instead of the guest's one page of data. */
  readonly gref?: number;
}

/** What a frontend writes of its rings; null: the key is not to be there. */
export type Keys = Readonly<Record<string, string | null>>;

interface GuestRing {
  readonly pages: SharedPages;
  port: EvtchnPort;
  prod: number;
}

export class HandmadeGuest {
  /** For responses. */
  patienceMs = WAIT_MS;
  readonly xenstore: Xenstore;
  readonly #address: DeviceAddress;
  readonly #platform: SimPlatform;
  readonly #channels: EventChannels;
  readonly #share: GrantShare;
  readonly #abi: BlkifAbi;
  readonly #former: SharedPages[] = [];
  /** By queue. */
  #rings: GuestRing[] = [];
  #data: SharedPages | undefined;
  #next = 1n;

  #closed = false;

  static async start(host: SimHost, address: DeviceAddress, abi = ABI_X86_64): Promise<HandmadeGuest> {
    const platform = host.platform(address.frontend);
    return new HandmadeGuest(platform, await Xenstore.connect(platform), address, abi);
  }

  private constructor(platform: SimPlatform, xenstore: Xenstore, address: DeviceAddress, abi: BlkifAbi) {
    this.#platform = platform;
    this.#abi = abi;
    this.xenstore = xenstore;
    this.#address = address;
    this.#channels = platform.openEventChannels();
    this.#share = platform.openGrantShare();
  }

  /**
   * Makes a ring and says so: everything up to state 3. `overrides` replaces keys, null leaves them out;
   * `reqProd` may lie.
   */
  async offerRing(overrides: Keys = {}, reqProd = 0): Promise<void> {
    await this.writeTogether({ ...this.makeRing(reqProd), ...overrides });
    await this.setState(3);
  }

  /** A ring with a port, on the same page as the last one, or on `another`; the keys that tell where. */
  makeRing(reqProd = 0, another = false): Keys {
    if (another)
      for (const { pages, port } of this.#rings.splice(0)) {
        this.#channels.unbind(port);
        this.#former.push(pages);
      }
    return { ...this.#keysOf(this.#prepareRing(0, reqProd), ""), protocol: this.#abi.protocol };
  }

  /** A ring for each of `count` queues, at least two; the keys of multi-queue. Those of a single ring go. */
  makeRings(count: number): Keys {
    const keys: Record<string, string | null> = {
      "ring-ref": null,
      "event-channel": null,
      "multi-queue-num-queues": String(count),
      protocol: this.#abi.protocol,
    };
    for (let queue = 0; queue < count; queue++)
      Object.assign(keys, this.#keysOf(this.#prepareRing(queue, 0), `queue-${queue}/`));
    return keys;
  }

  #prepareRing(queue: number, reqProd: number): GuestRing {
    const { backend } = this.#address;
    this.#data ??= this.#share.share(backend, 1, "rw");
    const former = this.#rings[queue];
    if (former !== undefined) this.#channels.unbind(former.port);
    const pages = former?.pages ?? this.#share.share(backend, 1, "rw");
    const ring = { pages, port: this.#channels.bindUnbound(backend), prod: 0 };
    this.#rings[queue] = ring;
    const { bytes, words } = pages.mapping;
    bytes.fill(0);
    words[1] = words[3] = 1;
    words[0] = reqProd;
    return ring;
  }

  #keysOf({ pages, port }: GuestRing, dir: string): Keys {
    return { [`${dir}ring-ref`]: String(pages.refs[0]), [`${dir}event-channel`]: String(port) };
  }

  /** Writes keys of the frontend's directory in one transaction. */
  async writeTogether(keys: Keys): Promise<void> {
    await this.xenstore.transaction((tx) => this.writeSingly(keys, tx));
  }

  /** Writes them one after the other. */
  async writeSingly(keys: Keys, to: XenstoreOperations = this.xenstore): Promise<void> {
    for (const [key, value] of Object.entries(keys)) {
      const path = `${frontendDir(this.#address)}/${key}`;
      if (value !== null) await to.write(path, value);
      else if (await to.exists(path)) await to.rm(path);
    }
  }

  /** The whole handshake. */
  async connect(queues = 1): Promise<void> {
    await this.untilBackend(2);
    await this.offerRing(queues === 1 ? {} : this.makeRings(queues));
    await this.untilBackend(4);
    await this.setState(4);
  }

  setState(state: number | string): Promise<void> {
    return this.xenstore.write(`${frontendDir(this.#address)}/state`, String(state));
  }

  /** Reference of the guest's one page of data. */
  get dataRef(): number | undefined {
    return this.#data?.refs[0];
  }

  frontendState(): Promise<string | null> {
    return this.xenstore.tryRead(`${frontendDir(this.#address)}/state`);
  }

  async untilBackend(state: number): Promise<void> {
    const path = `${backendDir(this.#address)}/state`;
    await this.xenstore.waitFor(path, (value) => value === String(state), { timeoutMs: this.patienceMs });
  }

  backendKey(key: string): Promise<string | null> {
    return this.xenstore.tryRead(`${backendDir(this.#address)}/${key}`);
  }

  /** Lies about req_prod. */
  lie(prod: number, queue = 0): void {
    const { pages, port } = this.#rings[queue];
    Atomics.store(pages.mapping.words, 0, prod);
    this.#channels.notify(port);
  }

  /** Rings a queue's bell, whatever there is. */
  ring(queue: number): void {
    this.#channels.notify(this.#rings[queue].port);
  }

  /** Closes a queue's port, as no frontend should while it is connected, and takes another one for later. */
  dropPort(queue: number): void {
    const ring = this.#rings[queue];
    this.#channels.unbind(ring.port);
    ring.port = this.#channels.bindUnbound(this.#address.backend);
  }

  /** Reads one page at `sector`; the bytes, or the response's status. */
  async read(sector: number, queue = 0): Promise<Uint8Array | number> {
    const [status] = await this.submit([{ operation: 0, sector }], queue);
    return status === 0 ? (this.#data as SharedPages).mapping.bytes.slice() : status;
  }

  /** Writes one page of `byte` at `sector`; the response's status. */
  async write(sector: number, byte: number, queue = 0): Promise<number> {
    (this.#data as SharedPages).mapping.bytes.fill(byte);
    return (await this.submit([{ operation: 1, sector }], queue))[0];
  }

  /** Flushes; the response's status. */
  async flush(queue = 0): Promise<number> {
    return (await this.submit([{ operation: 3, sector: 0 }], queue))[0];
  }

  /** Discards; the response's status. */
  async trim(sector: number, sectors: number): Promise<number> {
    return (await this.submit([{ operation: 5, sector, sectors }]))[0];
  }

  /** Puts requests of a page each on the ring at once; their statuses, in the same order. */
  async submit(requests: readonly PageRequest[], queue = 0): Promise<number[]> {
    const ring = this.#rings[queue];
    const { words, bytes } = ring.pages.mapping;
    const view = new DataView(bytes.buffer);
    const ids = requests.map((request) => this.#put(ring, view, request));
    const first = ring.prod - ids.length;
    Atomics.store(words, 0, ring.prod);
    this.#channels.notify(ring.port);
    const deadline = performance.now() + this.patienceMs;
    while (Atomics.load(words, 2) !== ring.prod) {
      // A guest that made another ring has forgotten what it asked for on this one.
      if (this.#rings[queue] !== ring) return [];
      if (performance.now() > deadline) throw new Error("no response");
      await Bun.sleep(1);
    }
    const answers = new Map(
      ids.map((_, index) => {
        const at = this.#slotAt(first + index);
        return [view.getBigUint64(at, true), view.getInt16(at + 10, true)];
      }),
    );
    return ids.map((id) => answers.get(id) as number);
  }

  #put(ring: GuestRing, view: DataView, request: PageRequest): bigint {
    const { operation, sector, sectors = 0, gref } = request;
    const slot = this.#slotAt(ring.prod++);
    const at = slot - this.#abi.gapBytes;
    const id = this.#next++;
    new Uint8Array(view.buffer).fill(0, slot, slot + this.#abi.slotBytes);
    view.setUint8(slot, operation);
    const hasData = operation < 3;
    view.setUint8(slot + 1, hasData ? 1 : 0);
    view.setBigUint64(at + 8, id, true);
    view.setBigUint64(at + 16, BigInt(sector), true);
    view.setUint32(at + 24, hasData ? (gref ?? (this.#data as SharedPages).refs[0]) : sectors, true);
    if (hasData) view.setUint8(at + 29, 7);
    return id;
  }

  #slotAt(index: number): number {
    return 64 + (index & 31) * this.#abi.slotBytes;
  }

  /** As the death of the guest. Closing it again does nothing. */
  close(): void {
    if (this.#closed) return;
    this.#closed = true;
    for (const pages of this.#former) pages.mapping.close();
    for (const { pages } of this.#rings) pages.mapping.close();
    this.#data?.mapping.close();
    this.#share.close();
    this.#channels.close();
    this.xenstore.close();
    this.#platform.close();
  }
}
