// A guest that asks for random requests without waiting for one before the next, on one or several rings of 1 to 4
// pages, and checks each answer against a model of its disk. Its rings and keys are its own affair, so that a test
// can have it begin anew whenever it likes. Nobody promises an order between queues, so each part of the disk has
// its own.
import { backendDir, frontendDir, type DeviceAddress } from "../../src/blkback/address.ts";
import type { EvtchnPort } from "../../src/core/types.ts";
import type { EventChannels, GrantShare, SharedPages } from "../../src/platform/platform.ts";
import type { SimPlatform } from "../../src/platform/sim.ts";
import { ringSlots } from "../../src/protocol/ring.ts";
import type { SimHost } from "../../src/sim/host.ts";
import { Xenstore } from "../../src/xenstore/client.ts";
import { stampOf, type DiskModel } from "./disk-model.ts";
import type { Random } from "../support/random.ts";

const SLOT_BYTES = 112;
const DATA_PAGES = 128;
const [READ, WRITE, FLUSH, DISCARD] = [0, 1, 3, 5];
const OPERATIONS = [READ, READ, READ, WRITE, WRITE, WRITE, FLUSH];
/** Blocks that one trim may have. */
const TRIM_BLOCKS = 40;
const WAIT_MS = 30_000;
const QUEUES = [1, 2, 4];
/** A multiple of each number of queues. */
const PARTS = 4;

/** How a frontend clears the page of a new ring: all of it, ring.h's SHARED_RING_INIT, or old MirageOS's Ring.Rpc. */
const CLEARED_BYTES = [4096, 64, 24];

interface Ring {
  readonly pages: SharedPages;
  readonly port: EvtchnPort;
  prod: number;
  cons: number;
}

interface Pending {
  readonly op: number;
  readonly block: number;
  readonly pages: readonly number[];
  /** What each page holds (a write), or what the block may have held while the request waited (a read). */
  readonly stamps: number[][];
}

export class ModelGuest {
  readonly xenstore: Xenstore;
  /** Answers so far. */
  answered = 0;
  readonly #address: DeviceAddress;
  readonly #model: DiskModel;
  readonly #random: Random;
  readonly #operations: readonly number[];
  readonly #platform: SimPlatform;
  readonly #channels: EventChannels;
  readonly #share: GrantShare;
  readonly #data: SharedPages;
  readonly #pending = new Map<bigint, Pending>();
  readonly #freePages = Array.from({ length: DATA_PAGES }, (_, page) => page);
  /** By queue. */
  #rings: Ring[] = [];
  #slots = 0;
  #id = 0n;
  #isClosed = false;

  static async start(
    host: SimHost,
    address: DeviceAddress,
    model: DiskModel,
    random: Random,
    trims = false,
  ): Promise<ModelGuest> {
    const platform = host.platform(address.frontend);
    return new ModelGuest(platform, await Xenstore.connect(platform), address, model, random, trims);
  }

  private constructor(
    platform: SimPlatform,
    xenstore: Xenstore,
    address: DeviceAddress,
    model: DiskModel,
    random: Random,
    trims: boolean,
  ) {
    this.#operations = trims ? [...OPERATIONS, DISCARD] : OPERATIONS;
    this.#platform = platform;
    this.xenstore = xenstore;
    this.#address = address;
    this.#model = model;
    this.#random = random;
    this.#channels = platform.openEventChannels();
    this.#share = platform.openGrantShare();
    this.#data = this.#share.share(address.backend, DATA_PAGES, "rw");
  }

  /** Queues that it has. */
  get queues(): number {
    return this.#rings.length;
  }

  /** Requests that wait for their answer. */
  get waiting(): number {
    return this.#pending.size;
  }

  /**
   * Forgets what it asked for and makes new rings, as many as it may, on the same pages if they have as many pages.
   * Writes its keys.
   */
  async makeRings(): Promise<void> {
    const offered = async (key: string): Promise<number> =>
      Number(await this.xenstore.tryRead(`${backendDir(this.#address)}/${key}`));
    const queues = Math.max(1, await offered("multi-queue-max-queues"));
    const count = this.#random.pick(QUEUES.filter((it) => it <= queues));
    const order = this.#random.below(1 + Math.min(2, await offered("max-ring-page-order")));
    const former = this.#rings;
    for (const { port } of former) this.#channels.unbind(port);
    this.#rings = Array.from({ length: count }, (_, queue) => this.#makeRing(former[queue]?.pages, order));
    for (const { pages } of former)
      if (!this.#rings.some((ring) => ring.pages === pages)) pages.mapping.close();
    this.#slots = ringSlots(1 << order, SLOT_BYTES);
    for (const { pages: used } of this.#pending.values()) this.#freePages.push(...used);
    this.#pending.clear();
    await this.#writeKeys(order, former.length);
  }

  setState(state: number): Promise<void> {
    return this.xenstore.write(`${frontendDir(this.#address)}/state`, String(state));
  }

  async untilBackend(state: number): Promise<void> {
    const path = `${backendDir(this.#address)}/state`;
    await this.xenstore.waitFor(path, (value) => value === String(state), { timeoutMs: WAIT_MS });
  }

  /** The handshake of a device that is offered. */
  async connect(): Promise<void> {
    await this.untilBackend(2);
    await this.makeRings();
    await this.setState(3);
    await this.untilBackend(4);
    await this.setState(4);
  }

  /** Puts some requests on the rings, as far as there is room. */
  ask(): void {
    if (this.#rings.length === 0) return;
    const count = 1 + this.#random.below(6);
    for (let i = 0; i < count && this.#freePages.length >= 4; i++) this.#put();
    for (const { pages, port, prod } of this.#rings) {
      Atomics.store(pages.mapping.words, 0, prod);
      this.#channels.notify(port);
    }
  }

  /** Takes the answers that are there and checks each. */
  reap(): void {
    for (const ring of this.#rings) {
      const { bytes, words } = ring.pages.mapping;
      const view = new DataView(bytes.buffer, bytes.byteOffset);
      for (const prod = Atomics.load(words, 2); ring.cons !== prod; ring.cons = (ring.cons + 1) >>> 0) {
        const at = this.#slotAt(ring.cons);
        this.#take(view.getBigUint64(at, true), view.getUint8(at + 8), view.getInt16(at + 10, true));
      }
    }
  }

  /** Closing twice is harmless. */
  close(): void {
    if (this.#isClosed) return;
    this.#isClosed = true;
    for (const { pages } of this.#rings.splice(0)) pages.mapping.close();
    this.#data.mapping.close();
    this.#share.close();
    this.#channels.close();
    this.xenstore.close();
    this.#platform.close();
  }

  #makeRing(former: SharedPages | undefined, order: number): Ring {
    const { backend } = this.#address;
    const isSame = former?.refs.length === 1 << order;
    const pages = isSame ? former : this.#share.share(backend, 1 << order, "rw");
    const { bytes, words } = pages.mapping;
    bytes.fill(0, 0, this.#random.pick(CLEARED_BYTES));
    words[1] = words[3] = 1;
    return { pages, port: this.#channels.bindUnbound(backend), prod: 0, cons: 0 };
  }

  /** Of the rings, with those of `former` rings gone; but a kernel that has one ring may leave them. */
  async #writeKeys(order: number, former: number): Promise<void> {
    const count = this.#rings.length;
    const keys: Record<string, string | null> = {
      "ring-page-order": order === 0 ? null : String(order),
      protocol: "x86_64-abi",
      // What it shares it never takes back, so that a server may keep it mapped.
      "feature-persistent": this.#random.pick(["1", "1", "0", null]),
    };
    const add = (dir: string, ring: Ring | undefined): void => {
      const refs = ring?.pages.refs ?? [];
      keys[`${dir}event-channel`] = ring === undefined ? null : String(ring.port);
      keys[`${dir}ring-ref`] = order === 0 && ring !== undefined ? String(refs[0]) : null;
      for (let page = 0; page < 4; page++)
        keys[`${dir}ring-ref${page}`] = order === 0 || page >= refs.length ? null : String(refs[page]);
    };
    add("", count === 1 ? this.#rings[0] : undefined);
    if (count > 1 || this.#random.chance(0.5)) {
      keys["multi-queue-num-queues"] = count === 1 ? null : String(count);
      for (let queue = 0; queue < Math.max(count, former); queue++)
        add(`queue-${queue}/`, count === 1 ? undefined : this.#rings[queue]);
    }
    await this.xenstore.transaction(async (tx) => {
      for (const [key, value] of Object.entries(keys)) {
        const path = `${frontendDir(this.#address)}/${key}`;
        if (value !== null) await tx.write(path, value);
        else if (await tx.exists(path)) await tx.rm(path);
      }
    });
  }

  #slotAt(index: number): number {
    return 64 + (index & (this.#slots - 1)) * SLOT_BYTES;
  }

  #words(page: number): Uint32Array {
    return this.#data.mapping.words.subarray(page * 1024, (page + 1) * 1024);
  }

  #put(): void {
    const random = this.#random;
    const model = this.#model;
    const op = random.pick(this.#operations);
    if (op === DISCARD) return this.#putTrim();
    const count = op === FLUSH ? 0 : 1 + random.below(4);
    const part = random.below(PARTS);
    const blocks = model.blocks / PARTS;
    const block = part * blocks + random.below(blocks - count);
    const ring = this.#rings[part % this.#rings.length];
    if (ring.prod - ring.cons >= this.#slots) return;
    const pages = this.#freePages.splice(0, count);
    const stamps = pages.map((page, index) => {
      if (op !== WRITE) {
        this.#words(page).fill(0xffff_ffff);
        return [...model.expected(block + index)];
      }
      const stamp = model.write(block + index);
      this.#overtake(block + index, stamp);
      this.#words(page).fill(stamp);
      return [stamp];
    });
    this.#pending.set(++this.#id, { op, block, pages, stamps });
    const { view, at } = this.#putHead(ring, op, count, block);
    pages.forEach((page, index) => {
      view.setUint32(at + 24 + index * 8, this.#data.refs[page], true);
      view.setUint8(at + 28 + index * 8, 0);
      view.setUint8(at + 29 + index * 8, 7);
    });
  }

  #putTrim(): void {
    const random = this.#random;
    const part = random.below(PARTS);
    const blocks = this.#model.blocks / PARTS;
    const count = 1 + random.below(Math.min(TRIM_BLOCKS, blocks - 1));
    const block = part * blocks + random.below(blocks - count);
    const ring = this.#rings[part % this.#rings.length];
    if (ring.prod - ring.cons >= this.#slots) return;
    for (let at = block; at < block + count; at++) {
      this.#model.trim(at);
      this.#overtake(at, 0);
    }
    this.#pending.set(++this.#id, { op: DISCARD, block, pages: [], stamps: [] });
    const { view, at } = this.#putHead(ring, DISCARD, 0, block);
    view.setBigUint64(at + 24, BigInt(count * 8), true);
  }

  /** What all requests begin with. Returns where this one is. */
  #putHead(ring: Ring, op: number, count: number, block: number): { view: DataView; at: number } {
    const at = this.#slotAt(ring.prod);
    ring.prod = (ring.prod + 1) >>> 0;
    const view = new DataView(ring.pages.mapping.bytes.buffer);
    view.setUint8(at, op);
    view.setUint8(at + 1, count);
    view.setBigUint64(at + 8, this.#id, true);
    view.setBigUint64(at + 16, BigInt(block * 8), true);
    return { view, at };
  }

  /** A read that waits is carried out again after a kill, perhaps when a write that came after it is done. */
  #overtake(block: number, stamp: number): void {
    for (const other of this.#pending.values())
      if (other.op === READ) other.stamps[block - other.block]?.push(stamp);
  }

  #take(id: bigint, op: number, status: number): void {
    const request = this.#pending.get(id);
    if (request === undefined) throw new Error(`an answer to ${id}, which does not wait for one`);
    const { block, pages, stamps } = request;
    if (op !== request.op || status !== 0)
      throw new Error(`request ${id}, operation ${request.op}, is answered ${status} for operation ${op}`);
    this.#pending.delete(id);
    this.answered++;
    this.#freePages.push(...pages);
    pages.forEach((page, index) => {
      const may = stamps[index];
      if (op === WRITE) this.#model.acknowledge(block + index, may[0]);
      else if (!may.includes(stampOf(this.#words(page))))
        throw new Error(
          `block ${block + index} was read as ${stampOf(this.#words(page))}, not ${may.join(", ")}`,
        );
    });
  }
}
