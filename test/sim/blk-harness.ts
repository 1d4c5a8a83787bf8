// A ring between a raw frontend and a BlockQueue that the test drives step by step: both ends in this
// process, on the simulated platform. The frontend writes whatever bytes the test wants; nothing of
// src/blkfront is used, so that both sides' mistakes cannot cancel out.
import { expect } from "bun:test";
import { closeSync, mkdtempSync, openSync, readSync, rmSync, writeFileSync, writeSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { openFiltered } from "../../src/block/filters/catalogue.ts";
import { closeImage, openImage, type Image } from "../../src/block/image.ts";
import { FileTarget } from "../../src/block/targets/file.ts";
import { BlockQueue } from "../../src/blkback/queue.ts";
import { DEFAULT_OFFER, diskLimits } from "../../src/blkback/features.ts";
import { toDomid, type Domid, type EvtchnPort } from "../../src/core/types.ts";
import type { GrantCopyBatch } from "../../src/native/grant-copy.ts";
import type { BlockTarget } from "../../src/block/target.ts";
import { Reactor, type EngineKind, type IoOp, type OnEnd } from "../../src/native/reactor.ts";
import type { Mapping } from "../../src/native/memory.ts";
import type {
  EventChannels,
  GrantShare,
  GrantTable,
  Platform,
  SharedPages,
} from "../../src/platform/platform.ts";
import { ABI_X86_64, type BlkifAbi } from "../../src/protocol/blkif.ts";
import { SimHost } from "../../src/sim/host.ts";

export const BACK = toDomid(0);
export const FRONT = toDomid(1);

export interface HarnessOptions {
  readonly abi?: BlkifAbi;
  readonly ringPages?: number;
  readonly dataPages?: number;
  readonly imageBytes?: number;
  readonly readOnly?: boolean;
  readonly sectorBytes?: 512 | 4096;
  readonly maxIndirectSegments?: number;
  /** False: the disk does not offer discard. */
  readonly discard?: boolean;
  readonly grantMode?: "copy" | "map";
  readonly engine?: EngineKind;
  readonly filters?: readonly string[];
  /** Instead of a fresh file. */
  readonly imagePath?: string;
  /** What holds the bytes, instead of the image. */
  readonly openDisk?: (onEnd: OnEnd, reactor: Reactor) => BlockTarget;
  /** Told of each batch of copies before it is run, and of each operation before it starts. */
  readonly onCopy?: (batch: GrantCopyBatch) => void;
  readonly onStart?: (op: IoOp, length: number) => void;
}

export interface Segment {
  readonly gref: number;
  readonly first?: number;
  readonly last?: number;
}

export interface Request {
  readonly op: number;
  readonly id?: bigint;
  readonly sector?: number | bigint;
  readonly segments?: readonly Segment[];
  /** Overrides segments.length. */
  readonly count?: number;
}

export interface Response {
  readonly id: bigint;
  readonly op: number;
  readonly status: number;
}

export class RingHarness {
  readonly host: SimHost;
  readonly abi: BlkifAbi;
  readonly slots: number;
  readonly ring: SharedPages;
  readonly data: SharedPages;
  readonly queue: BlockQueue;
  readonly counters = new Float64Array(8192);
  readonly imagePath: string;
  readonly frontPlatform: Platform;
  readonly front: { channels: EventChannels; port: EvtchnPort; share: GrantShare };
  readonly #dir: string;
  readonly #image: Image;
  readonly #back: {
    platform: Platform;
    channels: EventChannels;
    grants: GrantTable;
    ring: Mapping;
    port: EvtchnPort;
  };
  readonly #reactor: Reactor;
  #reqProd = 0;
  #rspCons = 0;

  static async start(options: HarnessOptions = {}): Promise<RingHarness> {
    const host = await SimHost.start({ domains: 3 });
    return new RingHarness(host, options);
  }

  private constructor(host: SimHost, options: HarnessOptions) {
    this.host = host;
    this.abi = options.abi ?? ABI_X86_64;
    this.#dir = mkdtempSync(join(tmpdir(), "xentool-test-"));
    this.imagePath = options.imagePath ?? join(this.#dir, "disk.img");
    if (options.imagePath === undefined)
      writeFileSync(this.imagePath, pattern(options.imageBytes ?? 1 << 20));
    const ringPages = options.ringPages ?? 1;

    this.frontPlatform = host.platform(FRONT);
    const share = this.frontPlatform.openGrantShare();
    this.ring = share.share(BACK, ringPages, "rw");
    this.data = share.share(BACK, options.dataPages ?? 32, "rw");
    const channels = this.frontPlatform.openEventChannels();
    this.front = { channels, port: channels.bindUnbound(BACK), share };
    this.#words[1] = 1;
    this.#words[3] = 1;

    const platform = host.platform(BACK);
    const backChannels = platform.openEventChannels();
    const grants = platform.openGrantTable();
    const { onCopy, onStart } = options;
    if (onCopy !== undefined) {
      const copy = grants.copy.bind(grants);
      grants.copy = (batch) => {
        onCopy(batch);
        return copy(batch);
      };
    }
    this.#back = {
      platform,
      channels: backChannels,
      grants,
      ring: grants.map(FRONT, this.ring.refs, "rw"),
      port: backChannels.bindInterdomain(FRONT, this.front.port),
    };
    const sectorBytes = options.sectorBytes ?? 512;
    this.#image = openImage(this.imagePath, {
      readOnly: options.readOnly ?? false,
      direct: false,
      sectorSizeBytes: sectorBytes,
    });
    const offer = {
      ...DEFAULT_OFFER,
      logicalSectorBytes: sectorBytes,
      maxIndirectSegments: options.maxIndirectSegments ?? 256,
    };
    const image = this.#image;
    const canDiscard = (options.discard ?? true) && image.info.canDiscard;
    const limits = diskLimits(offer, { ...image.info, canDiscard });
    const reactor = Reactor.open(1024, options.engine ?? "uring");
    this.#reactor = reactor;
    const filters = ["assert", ...(options.filters ?? [])];
    const context = { reactor, device: "test", sizeBytes: () => limits.sectors512 * 512 };
    this.queue = new BlockQueue({
      domid: FRONT,
      abi: this.abi,
      ring: this.#back.ring,
      channels: backChannels,
      port: this.#back.port,
      grants,
      reactor,
      openTarget: (onEnd) => {
        const openDisk = (innerEnd: OnEnd): BlockTarget =>
          options.openDisk?.(innerEnd, reactor) ?? new FileTarget(image, reactor, innerEnd);
        const target = openFiltered(filters, openDisk, onEnd, context);
        if (onStart === undefined) return target;
        const start = target.start.bind(target);
        target.start = (op, tag, offset, length, address) => {
          onStart(op, length);
          start(op, tag, offset, length, address);
        };
        return target;
      },
      limits,
      grantMode: options.grantMode ?? "copy",
      counters: this.counters,
    });
    this.slots = 2 ** Math.floor(Math.log2((ringPages * 4096 - 64) / this.abi.slotBytes));
  }

  get #words(): Uint32Array {
    return this.ring.mapping.words;
  }

  get backPlatform(): Platform {
    return this.#back.platform;
  }

  get reqProd(): number {
    return this.#reqProd;
  }

  /** Starts both counters elsewhere: before the first request only, and before the queue attached. */
  setIndex(word: number, value: number): void {
    Atomics.store(this.#words, word, value);
  }

  /** Byte offset of slot `index` in the ring's memory. */
  slotAt(index: number): number {
    return 64 + (index & (this.slots - 1)) * this.abi.slotBytes;
  }

  /** Puts raw request bytes (layout of this ABI) into the next slot. */
  putRaw(bytes: Uint8Array): void {
    this.ring.mapping.bytes.set(bytes.subarray(0, this.abi.slotBytes), this.slotAt(this.#reqProd));
    this.#reqProd = (this.#reqProd + 1) >>> 0;
  }

  /** READ, WRITE, BARRIER, FLUSH. */
  put(request: Request): void {
    const { slot, view, at } = this.#slot(request.op, request.id ?? 0n);
    const segments = request.segments ?? [];
    slot[1] = request.count ?? segments.length;
    view.setBigUint64(at(16), BigInt(request.sector ?? 0), true);
    for (const [index, segment] of segments.slice(0, 11).entries())
      writeSegment(view, at(24) + index * 8, segment);
    this.putRaw(slot);
  }

  putDiscard(sector: number | bigint, count: number | bigint, id = 0n, flag = 0): void {
    const { slot, view, at } = this.#slot(5, id);
    slot[1] = flag;
    view.setBigUint64(at(16), BigInt(sector), true);
    view.setBigUint64(at(24), BigInt(count), true);
    this.putRaw(slot);
  }

  putIndirect(
    inner: number,
    count: number,
    sector: number | bigint,
    grefs: readonly number[],
    id = 0n,
  ): void {
    const { slot, view, at } = this.#slot(6, id);
    slot[1] = inner;
    view.setUint16(2, count, true);
    view.setBigUint64(at(16), BigInt(sector), true);
    for (const [index, gref] of grefs.entries()) view.setUint32(at(28) + index * 4, gref, true);
    this.putRaw(slot);
  }

  /** Writes the segments of an indirect request to data page `page`. */
  fillIndirectPage(page: number, segments: readonly Segment[]): void {
    const view = new DataView(this.data.mapping.bytes.buffer, page * 4096, 4096);
    for (const [index, segment] of segments.entries()) writeSegment(view, index * 8, segment);
  }

  /** Publishes what was put. */
  push(): void {
    Atomics.store(this.#words, 0, this.#reqProd);
  }

  /** Publishes, lets the backend serve, returns its new responses. */
  serve(): Response[] {
    this.push();
    this.queue.step();
    return this.takeResponses();
  }

  takeResponses(): Response[] {
    const prod = Atomics.load(this.#words, 2);
    const view = new DataView(this.ring.mapping.bytes.buffer);
    const taken: Response[] = [];
    for (; this.#rspCons !== prod; this.#rspCons = (this.#rspCons + 1) >>> 0) {
      const at = this.slotAt(this.#rspCons);
      taken.push({
        id: view.getBigUint64(at, true),
        op: view.getUint8(at + 8),
        status: view.getInt16(at + 10, true),
      });
    }
    return taken;
  }

  /** The page behind `data.refs[index]`. */
  page(index: number): Uint8Array {
    return this.data.mapping.bytes.subarray(index * 4096, (index + 1) * 4096);
  }

  ref(index: number): number {
    return this.data.refs[index];
  }

  /** Segments for whole pages `from` to `from + count - 1`. */
  pages(from: number, count: number): Segment[] {
    return Array.from({ length: count }, (_, index) => ({ gref: this.ref(from + index) }));
  }

  readImage(offset: number, length: number): Uint8Array {
    const bytes = new Uint8Array(length);
    const fd = openSync(this.imagePath, "r");
    try {
      readSync(fd, bytes, 0, length, offset);
    } finally {
      closeSync(fd);
    }
    return bytes;
  }

  writeImage(offset: number, bytes: Uint8Array): void {
    const fd = openSync(this.imagePath, "r+");
    try {
      writeSync(fd, bytes, 0, bytes.length, offset);
    } finally {
      closeSync(fd);
    }
  }

  /** Takes everything down and asserts that nothing is left. */
  async close(): Promise<void> {
    this.#reactor.close();
    this.queue.close();
    this.#back.channels.unbind(this.#back.port);
    this.#back.ring.close();
    this.#back.grants.close();
    this.#back.channels.close();
    this.#back.platform.close();
    this.front.channels.close();
    this.data.mapping.close();
    this.ring.mapping.close();
    this.front.share.close();
    this.frontPlatform.close();
    closeImage(this.#image);
    rmSync(this.#dir, { recursive: true });
    expect(await this.host.settle()).toEqual([]);
    await this.host.stop();
  }

  #slot(op: number, id: bigint): { slot: Uint8Array; view: DataView; at: (offset: number) => number } {
    const slot = new Uint8Array(112);
    const view = new DataView(slot.buffer);
    const at = (offset: number): number => offset - this.abi.gapBytes;
    slot[0] = op;
    view.setBigUint64(at(8), id, true);
    return { slot, view, at };
  }
}

function writeSegment(view: DataView, at: number, segment: Segment): void {
  view.setUint32(at, segment.gref, true);
  view.setUint8(at + 4, segment.first ?? 0);
  view.setUint8(at + 5, segment.last ?? 7);
}

/** Bytes in which every sector differs from every other. */
export function pattern(length: number): Uint8Array {
  const words = new Uint32Array(length / 4);
  for (let i = 0; i < words.length; i++) words[i] = Math.imul(i + 1, 2654435761);
  return new Uint8Array(words.buffer);
}

export type { Domid };
