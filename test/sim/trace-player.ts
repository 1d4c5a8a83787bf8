// Plays a golden trace (test/traces) against a served device: what a frontend of the field writes to xenstore, key by
// key, and what it waits for; then its I/O, byte by byte.
import { expect } from "bun:test";
import { readFileSync } from "node:fs";
import { backendDir, frontendDir, type DeviceAddress } from "../../src/blkback/address.ts";
import type { EvtchnPort } from "../../src/core/types.ts";
import type { EventChannels, GrantShare, SharedPages } from "../../src/platform/platform.ts";
import type { SimPlatform } from "../../src/platform/sim.ts";
import { ABI_X86_32, ABI_X86_64, type BlkifAbi } from "../../src/protocol/blkif.ts";
import type { SimHost } from "../../src/sim/host.ts";
import { Xenstore } from "../../src/xenstore/client.ts";
import type { XenstoreOperations } from "../../src/xenstore/operations.ts";
import { RawRing, type Request, type Segment } from "./blk-raw-ring.ts";

const WAIT_MS = 10_000;
const DATA_PAGES = 4;
const READ = 0;
const WRITE = 1;
const FLUSH = 3;

/** What a trace asks of the world around the frontend. */
export interface TraceWorld {
  readonly host: SimHost;
  readonly address: DeviceAddress;
  readonly imagePath: string;
  /** Kills the server, or starts the next one. */
  stopServer(): Promise<void>;
  startServer(): Promise<void>;
  /** The toolstack asks the guest to let go of the disk. */
  close(): Promise<void>;
  /** How the device ended, once it has. */
  ended(): Promise<string>;
}

interface Step {
  readonly line: number;
  readonly verb: string;
  readonly words: readonly string[];
}

interface TraceRing {
  readonly pages: SharedPages;
  readonly port: EvtchnPort;
  readonly raw: RawRing;
}

/** The steps of a trace, one a line; what begins with # is for people. */
export function readTrace(text: string): Step[] {
  const lines = text.split("\n").map((line) => line.trim());
  return lines.flatMap((line, index) => {
    if (line === "" || line.startsWith("#")) return [];
    const [verb, ...words] = line.split(/\s+/);
    return [{ line: index + 1, verb, words }];
  });
}

/** What a server must offer for the trace: the word of `offers queues N`, or one queue. */
export function queuesOf(steps: readonly Step[]): number {
  return Number(steps.find(({ verb }) => verb === "offers")?.words[1] ?? 1);
}

export class TracePlayer {
  readonly #world: TraceWorld;
  readonly #xenstore: Xenstore;
  readonly #platform: SimPlatform;
  readonly #channels: EventChannels;
  readonly #share: GrantShare;
  readonly #data: SharedPages;
  readonly #verbs: Readonly<Record<string, (words: readonly string[]) => Promise<void> | void>> = {
    offers: () => {},
    layout: ([name]) => this.#chooseLayout(name),
    ids: ([first]) => void (this.#id = BigInt(first)),
    rings: ([count, order, where]) => this.#makeRings(Number(count), Number(order), where),
    write: ([key, ...value]) => this.#store.write(this.#path(key), this.#valueOf(value.join(" "))),
    empty: ([key]) => this.#store.write(this.#path(key), ""),
    rm: ([key]) => this.#store.rm(this.#path(key)),
    state: ([state]) => this.#store.write(this.#path("state"), state),
    backend: (states) => this.#untilBackend(states),
    reads: ([key, value]) => this.#expectKey(key, value),
    io: () => this.#io(),
    server: ([what]) => (what === "stops" ? this.#world.stopServer() : this.#world.startServer()),
    toolstack: () => this.#world.close(),
    ends: ([how]) => this.#expectEnd(how),
  };
  #abi: BlkifAbi = ABI_X86_64;
  #store: XenstoreOperations;
  #rings: TraceRing[] = [];
  #id = 1n;
  #fill = 0;

  static async start(world: TraceWorld): Promise<TracePlayer> {
    const platform = world.host.platform(world.address.frontend);
    return new TracePlayer(world, platform, await Xenstore.connect(platform));
  }

  private constructor(world: TraceWorld, platform: SimPlatform, xenstore: Xenstore) {
    this.#world = world;
    this.#platform = platform;
    this.#xenstore = xenstore;
    this.#store = xenstore;
    this.#channels = platform.openEventChannels();
    this.#share = platform.openGrantShare();
    this.#data = this.#share.share(world.address.backend, DATA_PAGES, "rw");
  }

  /** Plays all of it. A failure names the line. */
  async play(steps: readonly Step[]): Promise<void> {
    const verbs = steps.map(({ verb }) => verb);
    if (!verbs.includes("io") || !["io", "ends"].includes(verbs.at(-1) ?? ""))
      throw new Error("a trace ends with io, or after it with the end of the device");
    for (let at = 0; at < steps.length; at++) {
      const { verb, line } = steps[at];
      try {
        if (verb === "begin") at = await this.#transaction(steps, at + 1);
        else await this.#step(steps[at]);
      } catch (error) {
        throw new Error(`line ${line}: ${verb}`, { cause: error });
      }
    }
  }

  close(): void {
    for (const { pages } of this.#rings) pages.mapping.close();
    this.#data.mapping.close();
    this.#share.close();
    this.#channels.close();
    this.#xenstore.close();
    this.#platform.close();
  }

  async #step({ verb, words }: Step): Promise<void> {
    const act = this.#verbs[verb];
    if (act === undefined) throw new Error(`there is no verb ${verb}`);
    await act(words);
  }

  /** The steps from `first` to `commit` in one transaction. Returns the place of `commit`. */
  async #transaction(steps: readonly Step[], first: number): Promise<number> {
    const end = steps.findIndex(({ verb }, at) => at >= first && verb === "commit");
    if (end < 0) throw new Error("there is no commit");
    await this.#xenstore.transaction(async (tx) => {
      this.#store = tx;
      for (const step of steps.slice(first, end)) await this.#step(step);
    });
    this.#store = this.#xenstore;
    return end;
  }

  #path(key: string): string {
    return `${frontendDir(this.#world.address)}/${key}`;
  }

  /** `page(1,0)`: the reference of queue 1's first page. `port(1)`: its port. Everything else as it is. */
  #valueOf(text: string): string {
    const [, what, queue, page] = /^(page|port)\((\d+)(?:,(\d+))?\)$/.exec(text) ?? [];
    if (what === undefined) return text;
    const ring = this.#rings[Number(queue)];
    return String(what === "port" ? ring.port : ring.pages.refs[Number(page)]);
  }

  #chooseLayout(name: string): void {
    this.#abi = name === "x86_32" ? ABI_X86_32 : ABI_X86_64;
  }

  /** Makes `count` rings of 2^order pages, each on pages of its own or, with `again`, on those of the last ones. */
  #makeRings(count: number, order: number, where: string | undefined): void {
    const { backend } = this.#world.address;
    const former = this.#rings;
    for (const { port } of former) this.#channels.unbind(port);
    this.#rings = Array.from({ length: count }, (_, queue) => {
      const kept = where === "again" ? former[queue]?.pages : undefined;
      const pages = kept ?? this.#share.share(backend, 1 << order, "rw");
      pages.mapping.bytes.fill(0);
      return { pages, port: this.#channels.bindUnbound(backend), raw: new RawRing(pages, this.#abi) };
    });
    for (const { pages } of former)
      if (!this.#rings.some((ring) => ring.pages === pages)) pages.mapping.close();
  }

  async #untilBackend(states: readonly string[]): Promise<void> {
    const path = `${backendDir(this.#world.address)}/state`;
    await this.#xenstore.waitFor(path, (value) => states.includes(value ?? "0"), { timeoutMs: WAIT_MS });
  }

  async #expectKey(key: string, value: string): Promise<void> {
    const found = await this.#xenstore.tryRead(`${backendDir(this.#world.address)}/${key}`);
    if (value === undefined) expect(found).not.toBeNull();
    else expect(found).toBe(value);
  }

  async #expectEnd(how: string): Promise<void> {
    expect(await this.#world.ended()).toBe(how);
  }

  /**
   * On each ring: a page and a half are written, made durable, and read through the next ring; then the ring is
   * filled up. The image is what was written.
   */
  async #io(): Promise<void> {
    const { refs, mapping } = this.#data;
    for (const [queue, ring] of this.#rings.entries()) {
      const sector = 16 * (1 + (this.#fill % 64));
      const byte = (++this.#fill % 255) + 1;
      const halves = (first: number): Segment[] => [
        { gref: refs[first], first: 2, last: 7 },
        { gref: refs[first + 1], first: 0, last: 5 },
      ];
      mapping.bytes.fill(byte, 0, 2 * 4096).fill(0, 2 * 4096);
      await this.#ask(ring, [{ op: WRITE, sector, segments: halves(0) }]);
      await this.#ask(ring, [{ op: FLUSH }]);
      const next = this.#rings[(queue + 1) % this.#rings.length];
      await this.#ask(next, [{ op: READ, sector, segments: halves(2) }]);
      const written = new Uint8Array(12 * 512).fill(byte);
      expect(mapping.bytes.slice(2 * 4096 + 1024, 4 * 4096 - 1024)).toEqual(written);
      const image = readFileSync(this.#world.imagePath);
      expect(new Uint8Array(image.subarray(sector * 512, (sector + 12) * 512))).toEqual(written);
      const read = { op: READ, sector: 0, segments: [{ gref: refs[3] }] };
      await this.#ask(
        ring,
        Array.from({ length: ring.raw.slots }, () => read),
      );
      expect(mapping.bytes.slice(3 * 4096)).toEqual(new Uint8Array(image.subarray(0, 4096)));
    }
  }

  /** Puts requests on a ring at once, and waits for an answer to each. */
  async #ask({ raw, port }: TraceRing, requests: readonly Request[]): Promise<void> {
    const waiting = new Map<bigint, number>();
    for (const request of requests) {
      waiting.set(this.#id, request.op);
      raw.put({ ...request, id: this.#id++ });
    }
    raw.push();
    this.#channels.notify(port);
    for (const deadline = performance.now() + WAIT_MS; waiting.size > 0; await Bun.sleep(1)) {
      if (performance.now() > deadline) throw new Error(`${waiting.size} requests are not answered`);
      for (const { id, op, status } of raw.takeResponses()) {
        expect([op, status]).toEqual([waiting.get(id) ?? -1, 0]);
        waiting.delete(id);
      }
    }
  }
}
