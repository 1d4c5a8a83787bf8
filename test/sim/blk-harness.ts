// Rings between a raw frontend and a BackDataPlane that the test drives step by step: both ends in this process, on the
// simulated platform.
import { expect } from "bun:test";
import { closeSync, openSync, readSync, writeFileSync, writeSync } from "node:fs";
import { join } from "node:path";
import { openFiltered } from "../../src/block/filters/catalogue.ts";
import { closeImage, openImage, type Image } from "../../src/block/image.ts";
import { FileTarget } from "../../src/block/targets/file.ts";
import type { GrantMode } from "../../src/blkback/data-plane/data/path.ts";
import { BackDataPlane } from "../../src/blkback/data-plane/data-plane.ts";
import { DEFAULT_OFFER, offeredDisk } from "../../src/blkback/device/features.ts";
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
import { RawRing, writeSegment, type Response, type Segment } from "./blk-raw-ring.ts";
import { removeDirectory, temporaryDirectory } from "../support/temporary.ts";

export const BACK = toDomid(0);
export const FRONT = toDomid(1);

export interface HarnessOptions {
  readonly abi?: BlkifAbi;
  readonly ringPages?: number;
  readonly queues?: number;
  readonly dataPages?: number;
  readonly imageBytes?: number;
  readonly readOnly?: boolean;
  readonly sectorBytes?: 512 | 4096;
  readonly maxIndirectSegments?: number;
  /** False: the disk does not offer discard. */
  readonly discard?: boolean;
  readonly grantMode?: GrantMode;
  readonly engine?: EngineKind;
  readonly filters?: readonly string[];
  /** Instead of a fresh file. */
  readonly imagePath?: string;
  /** What holds the bytes, instead of the image. */
  readonly openDisk?: (onEnd: OnEnd, reactor: Reactor) => BlockTarget;
  /** Told of each batch of copies before it is run, of pages mapped, and of each operation before it starts. */
  readonly onCopy?: (batch: GrantCopyBatch) => void;
  readonly onMap?: (mapping: Mapping) => void;
  readonly onStart?: (op: IoOp, length: number, address: number) => void;
}

export class RingHarness extends RawRing {
  readonly host: SimHost;
  /** The rings of all queues; the first one is this harness itself. */
  readonly rings: readonly RawRing[];
  readonly data: SharedPages;
  readonly plane: BackDataPlane;
  /** By queue. */
  readonly laneCounters: readonly Float64Array[];
  readonly imagePath: string;
  readonly frontPlatform: Platform;
  readonly front: { channels: EventChannels; port: EvtchnPort; share: GrantShare };
  readonly #dir: string;
  readonly #image: Image;
  readonly #back: {
    platform: Platform;
    channels: EventChannels;
    grants: GrantTable;
    lanes: { ring: Mapping; port: EvtchnPort }[];
  };
  readonly #reactor: Reactor;

  static async start(options: HarnessOptions = {}): Promise<RingHarness> {
    const host = await SimHost.start({ domains: 3 });
    const platform = host.platform(FRONT);
    const front = { platform, share: platform.openGrantShare(), channels: platform.openEventChannels() };
    return new RingHarness(host, front, options);
  }

  private constructor(
    host: SimHost,
    front: { platform: Platform; share: GrantShare; channels: EventChannels },
    options: HarnessOptions,
  ) {
    const { share, channels } = front;
    const abi = options.abi ?? ABI_X86_64;
    const shareRing = (): SharedPages => share.share(BACK, options.ringPages ?? 1, "rw");
    super(shareRing(), abi);
    const others = Array.from({ length: (options.queues ?? 1) - 1 }, () => new RawRing(shareRing(), abi));
    this.rings = [this, ...others];
    this.laneCounters = this.rings.map(() => new Float64Array(8192));
    this.host = host;
    this.#dir = temporaryDirectory();
    this.imagePath = options.imagePath ?? join(this.#dir, "disk.img");
    if (options.imagePath === undefined)
      writeFileSync(this.imagePath, pattern(options.imageBytes ?? 1 << 20));

    this.frontPlatform = front.platform;
    this.data = share.share(BACK, options.dataPages ?? 32, "rw");
    const ports = this.rings.map(() => channels.bindUnbound(BACK));
    this.front = { channels, port: ports[0], share };

    const platform = host.platform(BACK);
    const backChannels = platform.openEventChannels();
    const grants = platform.openGrantTable();
    const { onCopy, onMap, onStart } = options;
    if (onMap !== undefined) {
      const map = grants.map.bind(grants);
      grants.map = (...mapArguments) => {
        const mapping = map(...mapArguments);
        onMap(mapping);
        return mapping;
      };
    }
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
      lanes: this.rings.map(({ ring }, queue) => ({
        ring: grants.map(FRONT, ring.refs, "rw"),
        port: backChannels.bindInterdomain(FRONT, ports[queue]),
      })),
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
    const disk = offeredDisk(offer, { ...image.info, canDiscard });
    const reactor = Reactor.open(1024, options.engine ?? "uring");
    this.#reactor = reactor;
    const filters = ["assert", ...(options.filters ?? [])];
    const context = { reactor, device: "test", sizeBytes: () => disk.sectors512 * 512 };
    this.plane = new BackDataPlane({
      domid: FRONT,
      abi: this.abi,
      lanes: this.#back.lanes.map((lane, index) => ({
        ...lane,
        queue: this.rings.length > 1 ? index : undefined,
        counters: this.laneCounters[index],
      })),
      channels: backChannels,
      grants,
      reactor,
      openTarget: (onEnd) => {
        const openDisk = (innerEnd: OnEnd): BlockTarget =>
          options.openDisk?.(innerEnd, reactor) ?? new FileTarget(image, reactor, innerEnd);
        const target = openFiltered(filters, openDisk, onEnd, context);
        if (onStart === undefined) return target;
        const start = target.start.bind(target);
        target.start = (op, tag, offset, length, address) => {
          onStart(op, length, address);
          start(op, tag, offset, length, address);
        };
        return target;
      },
      disk,
      grantMode: options.grantMode ?? "copy",
    });
  }

  get backPlatform(): Platform {
    return this.#back.platform;
  }

  /** Writes the segments of an indirect request to data page `page`. */
  fillIndirectPage(page: number, segments: readonly Segment[]): void {
    const view = new DataView(this.data.mapping.bytes.buffer, page * 4096, 4096);
    for (const [index, segment] of segments.entries()) writeSegment(view, index * 8, segment);
  }

  /** Of the disk, and of its first queue. */
  get counters(): Float64Array {
    return this.laneCounters[0];
  }

  /** Publishes, lets the backend serve, returns its new responses. */
  serve(): Response[] {
    this.push();
    this.plane.step();
    return this.takeResponses();
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
    this.plane.close();
    for (const { ring, port } of this.#back.lanes) {
      this.#back.channels.unbind(port);
      ring.close();
    }
    this.#back.grants.close();
    this.#back.channels.close();
    this.#back.platform.close();
    this.front.channels.close();
    this.data.mapping.close();
    for (const { ring } of this.rings) ring.mapping.close();
    this.front.share.close();
    this.frontPlatform.close();
    closeImage(this.#image);
    removeDirectory(this.#dir);
    expect(await this.host.settle()).toEqual([]);
    await this.host.stop();
  }
}

/** Bytes in which every sector differs from every other. */
export function pattern(length: number): Uint8Array {
  const words = new Uint32Array(length / 4);
  for (let i = 0; i < words.length; i++) words[i] = Math.imul(i + 1, 2654435761);
  return new Uint8Array(words.buffer);
}

export type { Domid };
