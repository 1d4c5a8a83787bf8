// Structure-aware fuzz of the block ring: batches of requests, many of them with bytes changed at random, on one or
// several rings, against an oracle that decodes the slots by itself and keeps a model of the disk. Every request must
// get exactly the response the oracle says, on its ring, and the image must be the model's, byte by byte.
import { expect } from "bun:test";
import { ABI_X86_32, ABI_X86_64 } from "../../src/protocol/blkif.ts";
import { pattern, RingHarness } from "../sim/blk-harness.ts";
import { Random } from "../support/random.ts";

const IMAGE_BYTES = 256 * 1024;
const DISK_SECTORS = BigInt(IMAGE_BYTES / 512);
const DATA_PAGES = 64;
const MAX_INDIRECT = 600;
const OKAY = 0;
const ERROR = -1;
const EOPNOTSUPP = -2;

interface Piece {
  readonly page: number;
  readonly first: number;
  readonly last: number;
}

interface Expected {
  readonly id: bigint;
  readonly op: number;
  readonly status: number;
  /** Pages that a read with a bad grant among its good ones may have written to. */
  readonly touched?: number[];
  readonly effect?: {
    readonly kind: "read" | "write" | "discard";
    readonly sector: number;
    readonly sectors: number;
    readonly pieces: Piece[];
  };
}

class Fuzzer {
  readonly #h: RingHarness;
  readonly #random: Random;
  readonly #model = pattern(IMAGE_BYTES);
  readonly #pageOfRef = new Map<number, number>();
  readonly #x86_32: boolean;
  #indirectPage = 0;

  constructor(h: RingHarness, random: Random) {
    this.#h = h;
    this.#random = random;
    this.#x86_32 = h.abi === ABI_X86_32;
    for (let page = 0; page < DATA_PAGES; page++) this.#pageOfRef.set(h.ref(page), page);
  }

  /** One batch; how many requests it had. */
  batch(): number {
    const h = this.#h;
    const count = 1 + this.#random.below(Math.min(h.slots, 24));
    for (let page = 8; page < DATA_PAGES; page++) h.page(page).fill(this.#random.below(256));
    this.#indirectPage = 0;
    const expected = h.rings.map((): Expected[] => []);
    for (let i = 0; i < count; i++) {
      const queue = this.#random.below(h.rings.length);
      const slot = this.#makeSlot();
      expected[queue].push(this.#judge(slot));
      h.rings[queue].putRaw(this.#x86_32 ? toX86_32(slot) : slot);
    }
    const before = h.data.mapping.bytes.slice();
    for (const ring of h.rings) ring.push();
    h.plane.step();
    expect(h.plane.failure).toBeUndefined();
    const key = (it: { id: bigint; op: number; status: number }): string => `${it.id}/${it.op}/${it.status}`;
    for (const [queue, ring] of h.rings.entries())
      expect(ring.takeResponses().map(key).toSorted()).toEqual(expected[queue].map(key).toSorted());
    // Nobody promises an order between rings. Ours looks at them in turn, and at the first one first.
    this.#apply(expected.flat(), before);
    return count;
  }

  #makeSlot(): Uint8Array {
    const random = this.#random;
    const slot = new Uint8Array(112);
    const view = new DataView(slot.buffer);
    const op = random.chance(0.9) ? random.pick([0, 0, 0, 1, 1, 1, 2, 3, 5, 6, 6]) : random.below(256);
    slot[0] = op;
    view.setUint16(2, random.below(65536), true);
    view.setBigUint64(8, random.chance(0.1) ? 0xffff_ffff_ffff_ffffn : BigInt(random.below(2 ** 32)), true);
    const sector = random.chance(0.95)
      ? BigInt(random.below(Number(DISK_SECTORS) + 8))
      : random.pick([1n << 63n, 1n << 55n, (1n << 64n) - 1n, 1n << 53n, DISK_SECTORS]);
    view.setBigUint64(16, sector, true);
    if (op === 5) {
      slot[1] = random.chance(0.9) ? 0 : random.below(256);
      view.setBigUint64(
        24,
        random.chance(0.9) ? BigInt(random.below(64)) : (1n << 64n) - BigInt(1 + random.below(8)),
        true,
      );
    } else if (op === 6) {
      const pages = this.#fillIndirect(view);
      for (const [i, ref] of pages.entries()) view.setUint32(28 + i * 4, ref, true);
    } else {
      const segments = (op === 2 || op === 3) && random.chance(0.5) ? 0 : 1 + random.below(11);
      slot[1] = random.chance(0.95) ? segments : random.below(256);
      for (let i = 0; i < 11; i++) this.#segment(view, 24 + i * 8);
    }
    if (random.chance(0.15)) for (let n = 1 + random.below(4); n > 0; n--) this.#corrupt(slot, view);
    return slot;
  }

  #segment(view: DataView, at: number): void {
    const random = this.#random;
    view.setUint32(
      at,
      random.chance(0.985) ? this.#h.ref(8 + random.below(DATA_PAGES - 8)) : 50_000 + random.below(1000),
      true,
    );
    const first = random.chance(0.5) ? 0 : random.below(8);
    view.setUint8(at + 4, first);
    view.setUint8(at + 5, random.chance(0.985) ? first + random.below(8 - first) : random.below(256));
  }

  /** Changes a byte anywhere but in a grant reference, which could by accident name another live page. */
  #corrupt(slot: Uint8Array, view: DataView): void {
    const at = this.#random.below(112);
    const inGref = slot[0] === 6 ? at >= 28 && at < 60 : at >= 24 && (at - 24) % 8 < 4;
    if (inGref && slot[0] !== 5) view.setUint32(at & ~3, 60_000 + this.#random.below(1000), true);
    else if (at !== 0) slot[at] = this.#random.below(256);
  }

  #fillIndirect(view: DataView): number[] {
    const random = this.#random;
    const count = random.chance(0.8)
      ? 1 + random.below(40)
      : random.chance(0.7)
        ? 1 + random.below(MAX_INDIRECT + 4)
        : random.below(65536);
    view.setUint8(1, random.chance(0.95) ? random.below(2) : random.below(256));
    view.setUint16(2, count, true);
    const refs: number[] = [];
    for (let left = Math.min(count, MAX_INDIRECT); left > 0 && this.#indirectPage < 8; left -= 512) {
      const page = this.#indirectPage++;
      const content = new DataView(this.#h.data.mapping.bytes.buffer, page * 4096, 4096);
      for (let i = 0; i < Math.min(left, 512); i++) this.#segment(content, i * 8);
      refs.push(random.chance(0.97) ? this.#h.ref(page) : 70_000);
    }
    while (refs.length < 8) refs.push(80_000);
    return refs;
  }

  /** What the protocol says must happen, from the bytes of the slot alone. */
  #judge(slot: Uint8Array): Expected {
    const view = new DataView(slot.buffer);
    const id = view.getBigUint64(8, true);
    const op = view.getUint8(0);
    const sector = view.getBigUint64(16, true);
    const fail = (status: number, echo = op): Expected => ({ id, op: echo, status });
    if (op === 5) return this.#judgeDiscard(id, view, sector);
    if (op > 6 || op === 4) return fail(EOPNOTSUPP);
    const echo = op === 6 ? view.getUint8(1) : op;
    const count = op === 6 ? view.getUint16(2, true) : view.getUint8(1);
    if (op === 6 && echo > 1) return fail(ERROR, echo);
    if (op === 6 && (count === 0 || count > MAX_INDIRECT)) return fail(ERROR, echo);
    if (op < 2 && count === 0) return fail(ERROR);
    if (op !== 6 && count > 11) return fail(ERROR);
    if ((op === 2 || op === 3) && count === 0) return fail(OKAY);
    const raw: { ref: number; first: number; last: number }[] = [];
    for (let i = 0; i < count; i++) {
      let from = view;
      let at = 24 + i * 8;
      if (op === 6) {
        const page = this.#pageOfRef.get(view.getUint32(28 + (i >> 9) * 4, true));
        if (page === undefined) return fail(ERROR, echo);
        from = new DataView(this.#h.data.mapping.bytes.buffer, page * 4096, 4096);
        at = (i & 511) * 8;
      }
      raw.push({ ref: from.getUint32(at, true), first: from.getUint8(at + 4), last: from.getUint8(at + 5) });
    }
    if (raw.some((it) => it.first > it.last || it.last > 7)) return fail(ERROR, echo);
    const sectors = raw.reduce((sum, it) => sum + it.last - it.first + 1, 0);
    if (sector + BigInt(sectors) > DISK_SECTORS) return fail(ERROR, echo);
    const pieces = raw.map((it) => ({ page: this.#pageOfRef.get(it.ref), first: it.first, last: it.last }));
    const touched = echo === 0 ? pieces.flatMap((it) => it.page ?? []) : [];
    if (pieces.some((it) => it.page === undefined)) return { ...fail(ERROR, echo), touched };
    const kind = echo === 0 ? "read" : "write";
    return {
      id,
      op: echo,
      status: OKAY,
      effect: { kind, sector: Number(sector), sectors, pieces: pieces as Piece[] },
    };
  }

  #judgeDiscard(id: bigint, view: DataView, sector: bigint): Expected {
    const count = view.getBigUint64(24, true);
    if ((view.getUint8(1) & 1) !== 0) return { id, op: 5, status: EOPNOTSUPP };
    if (sector + count > DISK_SECTORS) return { id, op: 5, status: ERROR };
    return {
      id,
      op: 5,
      status: OKAY,
      effect: { kind: "discard", sector: Number(sector), sectors: Number(count), pieces: [] },
    };
  }

  /**
   * Brings the model up to date and compares. Where a guest's page was used by a read and by another
   * request of the batch, its content is the guest's own race: there the image is taken as it is.
   */
  #apply(expected: readonly Expected[], before: Uint8Array): void {
    const h = this.#h;
    const uses = new Map<number, number>();
    const readInto = new Set<number>();
    for (const { touched } of expected)
      for (const page of touched ?? []) {
        uses.set(page, 2);
        readInto.add(page);
      }
    for (const { effect } of expected)
      for (const piece of effect?.pieces ?? []) {
        uses.set(piece.page, (uses.get(piece.page) ?? 0) + 1);
        if (effect?.kind === "read") readInto.add(piece.page);
      }
    const image = h.readImage(0, IMAGE_BYTES);
    const raced: [number, number][] = [];
    const reads: { page: number; at: number; bytes: Uint8Array }[] = [];
    for (const { effect } of expected) {
      if (effect === undefined) continue;
      let at = effect.sector * 512;
      if (effect.kind === "discard") this.#model.fill(0, at, at + effect.sectors * 512);
      for (const piece of effect.pieces) {
        const length = (piece.last - piece.first + 1) * 512;
        const from = piece.page * 4096 + piece.first * 512;
        if (effect.kind === "read") {
          const bytes = this.#model.slice(at, at + length);
          const isRaced = raced.some(([start, end]) => start < at + length && at < end);
          if (uses.get(piece.page) === 1 && !isRaced)
            reads.push({ page: piece.page, at: piece.first * 512, bytes });
        } else {
          if (readInto.has(piece.page)) raced.push([at, at + length]);
          this.#model.set(before.subarray(from, from + length), at);
        }
        at += length;
      }
    }
    for (const [start, end] of raced) this.#model.set(image.subarray(start, end), start);
    if (Buffer.compare(image, this.#model) !== 0) throw new Error("the image differs from the model");
    for (const { page, at, bytes } of reads)
      if (Buffer.compare(h.page(page).subarray(at, at + bytes.length), bytes) !== 0)
        throw new Error(`page ${page} did not get what was on the disk`);
  }
}

function toX86_32(slot: Uint8Array): Uint8Array {
  const packed = new Uint8Array(112);
  packed.set(slot.subarray(0, 4));
  packed.set(slot.subarray(8), 4);
  return packed;
}

/** Runs at least `cases` requests, in all variants. A failure names the seed that repeats it. */
export async function run(cases: number, seed: number): Promise<void> {
  const variants = [
    { abi: ABI_X86_64, grantMode: "copy" },
    { abi: ABI_X86_32, grantMode: "copy" },
    { abi: ABI_X86_64, grantMode: "map", ringPages: 2 },
    { abi: ABI_X86_64, grantMode: "persistent", ringPages: 2 },
    { abi: ABI_X86_32, grantMode: "persistent", queues: 3 },
    { abi: ABI_X86_32, grantMode: "copy", engine: "sync", ringPages: 4 },
    { abi: ABI_X86_64, grantMode: "copy", queues: 4 },
    { abi: ABI_X86_32, grantMode: "map", queues: 2, ringPages: 2 },
  ] as const;
  for (const [index, variant] of variants.entries()) {
    const variantSeed = (seed + index * 7919) >>> 0;
    const h = await RingHarness.start({
      ...variant,
      imageBytes: IMAGE_BYTES,
      dataPages: DATA_PAGES,
      maxIndirectSegments: MAX_INDIRECT,
    });
    try {
      const fuzzer = new Fuzzer(h, new Random(variantSeed));
      for (let done = 0; done < cases / variants.length;) done += fuzzer.batch();
    } catch (error) {
      throw new Error(
        `block ring, ${h.rings.length} × ${variant.abi.name} ${variant.grantMode}, SEED=${seed}`,
        {
          cause: error,
        },
      );
    } finally {
      await h.close();
    }
  }
}
