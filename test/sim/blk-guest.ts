// A guest's side of one block device, by hand: xenstore keys written one by one, and a ring good for single
// requests. For tests of the backend's life cycle, independent of src/blkfront.
import { backendDir, frontendDir, type DeviceAddress } from "../../src/blkback/address.ts";
import type { EventChannels, GrantShare, SharedPages } from "../../src/platform/platform.ts";
import type { SimPlatform } from "../../src/platform/sim.ts";
import type { SimHost } from "../../src/sim/host.ts";
import { ABI_X86_64, type BlkifAbi } from "../../src/protocol/blkif.ts";
import { Xenstore } from "../../src/xenstore/client.ts";
import type { XenstoreOperations } from "../../src/xenstore/operations.ts";

const WAIT_MS = 10_000;

export interface PageRequest {
  /** READ, WRITE, WRITE_BARRIER, FLUSH_DISKCACHE; the last one without data. */
  readonly operation: 0 | 1 | 2 | 3;
  readonly sector: number;
  /** Instead of the guest's one page of data. */
  readonly gref?: number;
}

/** What a frontend writes of its ring; null: the key is not to be there. */
export type Keys = Readonly<Record<string, string | null>>;

export class HandmadeGuest {
  readonly xenstore: Xenstore;
  readonly #address: DeviceAddress;
  readonly #platform: SimPlatform;
  readonly #channels: EventChannels;
  readonly #share: GrantShare;
  readonly #abi: BlkifAbi;
  readonly #former: SharedPages[] = [];
  #ring: SharedPages | undefined;
  #data: SharedPages | undefined;
  #port = 0;
  #prod = 0;
  #next = 1n;

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
    if (another && this.#ring !== undefined) {
      this.#former.push(this.#ring);
      this.#ring = undefined;
    }
    this.#ring ??= this.#share.share(this.#address.backend, 1, "rw");
    this.#data ??= this.#share.share(this.#address.backend, 1, "rw");
    this.#ring.mapping.bytes.fill(0);
    this.#ring.mapping.words[1] = 1;
    this.#ring.mapping.words[3] = 1;
    this.#ring.mapping.words[0] = reqProd;
    this.#prod = 0;
    if (this.#port !== 0) this.#channels.unbind(this.#port as never);
    this.#port = this.#channels.bindUnbound(this.#address.backend);
    return {
      "ring-ref": String(this.#ring.refs[0]),
      "event-channel": String(this.#port),
      protocol: this.#abi.protocol,
    };
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
  async connect(): Promise<void> {
    await this.untilBackend(2);
    await this.offerRing();
    await this.untilBackend(4);
    await this.setState(4);
  }

  setState(state: number | string): Promise<void> {
    return this.xenstore.write(`${frontendDir(this.#address)}/state`, String(state));
  }

  frontendState(): Promise<string | null> {
    return this.xenstore.tryRead(`${frontendDir(this.#address)}/state`);
  }

  async untilBackend(state: number): Promise<void> {
    const path = `${backendDir(this.#address)}/state`;
    await this.xenstore.waitFor(path, (value) => value === String(state), { timeoutMs: WAIT_MS });
  }

  backendKey(key: string): Promise<string | null> {
    return this.xenstore.tryRead(`${backendDir(this.#address)}/${key}`);
  }

  /** Lies about req_prod. */
  lie(prod: number): void {
    Atomics.store((this.#ring as SharedPages).mapping.words, 0, prod);
    this.#channels.notify(this.#port as never);
  }

  /** Reads one page at `sector`; the bytes, or the response's status. */
  async read(sector: number): Promise<Uint8Array | number> {
    const [status] = await this.submit([{ operation: 0, sector }]);
    return status === 0 ? (this.#data as SharedPages).mapping.bytes.slice() : status;
  }

  /** Writes one page of `byte` at `sector`; the response's status. */
  async write(sector: number, byte: number): Promise<number> {
    (this.#data as SharedPages).mapping.bytes.fill(byte);
    return (await this.submit([{ operation: 1, sector }]))[0];
  }

  /** Flushes; the response's status. */
  async flush(): Promise<number> {
    return (await this.submit([{ operation: 3, sector: 0 }]))[0];
  }

  /** Puts requests of a page each on the ring at once; their statuses, in the same order. */
  async submit(requests: readonly PageRequest[]): Promise<number[]> {
    const ring = (this.#ring as SharedPages).mapping;
    const view = new DataView(ring.bytes.buffer);
    const ids = requests.map((request) => this.#put(view, request));
    const first = this.#prod - ids.length;
    Atomics.store(ring.words, 0, this.#prod);
    this.#channels.notify(this.#port as never);
    const deadline = performance.now() + WAIT_MS;
    while (Atomics.load(ring.words, 2) !== this.#prod) {
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

  #put(view: DataView, { operation, sector, gref }: PageRequest): bigint {
    const slot = this.#slotAt(this.#prod++);
    const at = slot - this.#abi.gapBytes;
    const id = this.#next++;
    new Uint8Array(view.buffer).fill(0, slot, slot + this.#abi.slotBytes);
    view.setUint8(slot, operation);
    view.setUint8(slot + 1, operation === 3 ? 0 : 1);
    view.setBigUint64(at + 8, id, true);
    view.setBigUint64(at + 16, BigInt(sector), true);
    view.setUint32(at + 24, gref ?? (this.#data as SharedPages).refs[0], true);
    view.setUint8(at + 29, 7);
    return id;
  }

  #slotAt(index: number): number {
    return 64 + (index & 31) * this.#abi.slotBytes;
  }

  close(): void {
    for (const ring of this.#former) ring.mapping.close();
    this.#ring?.mapping.close();
    this.#data?.mapping.close();
    this.#share.close();
    this.#channels.close();
    this.xenstore.close();
    this.#platform.close();
  }
}
