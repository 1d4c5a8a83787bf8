// Slots, their segments and indirect pages that another thread rewrites all the time, in the middle of everything that
// the backend does with them (XSA-155). What is carried out must be what was checked: no byte beyond a page, the disk
// or the buffer that was made for it, and nothing written to a disk that is read-only.
import { expect, test } from "bun:test";
import { STAT } from "../../src/blkback/stats/stats.ts";
import { PAGE_SIZE } from "../../src/core/types.ts";
import type { GrantCopyBatch } from "../../src/native/grant-copy.ts";
import { Mapping } from "../../src/native/memory.ts";
import { IO_READ, IO_READV, IO_WRITE, IO_WRITEV, type IoOp } from "../../src/native/reactor.ts";
import { ABI_X86_32, ABI_X86_64 } from "../../src/protocol/blkif.ts";
import { copiesOf } from "../unit/blkback-fakes.ts";
import { RingHarness, type HarnessOptions } from "./blk-harness.ts";
import type { Scribble } from "./blkback-scribbler.ts";

const READ = 0;
const WRITE = 1;
const DISK_SECTORS = 2048;
/** As many requests must be admitted, and as many refused: then what is checked did change. */
const OF_EACH = 3000;
/** And in as many batches the memory must have been written to while they were served. */
const OVERLAPS = 300;
const BATCHES_MAX = 100_000;
const INDIRECT_PAGES = [30, 31];
const INDIRECT_SEGMENTS = 600;

type Spot = Scribble["spots"][number];

/**
 * Runs `body` while another thread writes to `spots`, offsets in bytes from the start of `memory`. `scribbled` tells
 * how often it has written to all of them.
 */
async function whileScribbling(
  memory: { readonly address: number; readonly sizeBytes: number },
  spots: readonly { readonly at: number; readonly values: readonly number[] }[],
  body: (scribbled: () => number) => void,
): Promise<void> {
  const control = new Int32Array(new SharedArrayBuffer(8));
  const worker = new Worker(new URL("./blkback-scribbler.ts", import.meta.url));
  const ended = new Promise<void>((resolve, reject) => {
    worker.onmessage = () => resolve();
    worker.onerror = (event) => reject(new Error(event.message));
  });
  const words: Spot[] = spots.map(({ at, values }) => ({ word: at / 4, values }));
  const { address, sizeBytes: bytes } = memory;
  worker.postMessage({ address, bytes, spots: words, control: control.buffer } satisfies Scribble);
  try {
    while (Atomics.load(control, 1) === 0) await Bun.sleep(1);
    body(() => Atomics.load(control, 1));
  } finally {
    Atomics.store(control, 0, 1);
    await ended;
    worker.terminate();
  }
}

/** Bytes of data: copied from and to the guest, written and read. */
type Moved = Record<"in" | "out" | "written" | "read", number>;

/** Bytes of `count` pieces of pages that are mapped, to be transferred with the iovecs at `address`. */
function lengthOf(count: number, address: number, mapped: ReadonlyMap<number, Mapping>): number {
  const vectors = new Mapping(address, count * 16, () => {});
  const words = new BigUint64Array(vectors.bytes.buffer);
  let sum = 0;
  for (let i = 0; i < count; i++) {
    const [base, length] = [Number(words[i * 2]), Number(words[i * 2 + 1])];
    for (let page = base - (base % PAGE_SIZE); page < base + length; page += PAGE_SIZE)
      if (mapped.get(page)?.closed !== false) throw new Error("not a page of the guest's");
    sum += length;
  }
  vectors.close();
  return sum;
}

/** A ring whose copies and operations are checked, with a count of the bytes that go each way. */
class WatchedRing {
  readonly harness: RingHarness;
  /** Data is not copied: what is written and read is in the guest's pages. */
  readonly #inPlace: boolean;
  /** Since the last `serve`. */
  readonly #moved: Moved;

  private constructor(harness: RingHarness, moved: Moved, inPlace: boolean) {
    this.harness = harness;
    this.#inPlace = inPlace;
    this.#moved = moved;
  }

  static async start(options: HarnessOptions): Promise<WatchedRing> {
    const moved: Moved = { in: 0, out: 0, written: 0, read: 0 };
    const indirect = new Set<number>();
    const onCopy = (batch: GrantCopyBatch): void => {
      for (const { toGuest, ref, offset, length } of copiesOf(batch)) {
        if (indirect.has(ref)) continue;
        if (length === 0 || offset + length > PAGE_SIZE)
          throw new Error(`copy of ${length} bytes at ${offset}`);
        moved[toGuest ? "out" : "in"] += length;
      }
    };
    const mapped = new Map<number, Mapping>();
    const onMap = (mapping: Mapping): void => void mapped.set(mapping.address, mapping);
    const onStart = (op: IoOp, length: number, address: number): void => {
      if (op === IO_READV) moved.read += lengthOf(length, address, mapped);
      else if (op === IO_WRITEV) moved.written += lengthOf(length, address, mapped);
      else if (op === IO_WRITE) moved.written += length;
      else if (op === IO_READ) moved.read += length;
      else throw new Error(`operation ${op}`);
    };
    const harness = await RingHarness.start({
      ...options,
      imageBytes: DISK_SECTORS * 512,
      maxIndirectSegments: INDIRECT_SEGMENTS,
      onCopy,
      onMap,
      onStart,
    });
    for (const page of INDIRECT_PAGES) indirect.add(harness.ref(page));
    return new WatchedRing(harness, moved, options.grantMode === "persistent");
  }

  /** Serves what was put: what was written or read is what was checked, and all of it was copied once. */
  serve(): void {
    const { harness } = this;
    const moved = this.#moved;
    const counted = (): number[] => [STAT.writeBytes, STAT.readBytes].map((field) => harness.counters[field]);
    const before = counted();
    harness.serve();
    expect(harness.plane.failure).toBeUndefined();
    const transferred = [moved.written, moved.read];
    expect(transferred).toEqual(counted().map((bytes, index) => bytes - before[index]));
    expect([moved.in, moved.out]).toEqual(this.#inPlace ? [0, 0] : transferred);
    moved.in = moved.out = moved.written = moved.read = 0;
  }

  /** Serves batch after batch that `put` puts, until enough was admitted, refused, and scribbled on meanwhile. */
  serveMany(scribbled: () => number, put: () => void): void {
    const { counters } = this.harness;
    let overlaps = 0;
    const isEnough = (): boolean =>
      [counters[STAT.ok], counters[STAT.errors]].every((count) => Number(count) >= OF_EACH) &&
      overlaps >= OVERLAPS;
    for (let batches = 0; batches < BATCHES_MAX && !isEnough(); batches++) {
      put();
      const before = scribbled();
      this.serve();
      if (scribbled() !== before) overlaps++;
    }
    if (!isEnough())
      throw new Error(
        `${counters[STAT.ok]} admitted, ${counters[STAT.errors]} refused, ${overlaps} overlaps`,
      );
  }
}

/** First and last sector of a segment: whole, parts, and what breaks the rules. */
const PARTS = [0x0700, 0x0700, 0x0000, 0x0303, 0x0700, 0xff00, 0x0800, 0x0005];

test.each([
  ["x86_64", { abi: ABI_X86_64 }],
  ["x86_32", { abi: ABI_X86_32 }],
  ["x86_64, pages kept", { abi: ABI_X86_64, grantMode: "persistent" }],
  ["x86_64, read-only", { abi: ABI_X86_64, readOnly: true }],
] as [string, HarnessOptions][])("slots and their segments, %s", async (_name, options) => {
  const ring = await WatchedRing.start(options);
  const { harness: h } = ring;
  const at = (offset: number): number => offset - h.abi.gapBytes;
  const spots = Array.from({ length: h.slots }, (_, slot) => {
    const base = h.slotAt(slot);
    return [
      // Operation and number of segments.
      { at: base, values: [0x0200, 0x0201, 0x0200, 0x0201, 0x0b00, 0x0c00, 0x0001, 0x024d] },
      // Sector: low and high word.
      { at: base + at(16), values: [slot * 16, slot * 8, DISK_SECTORS - 9, DISK_SECTORS] },
      { at: base + at(20), values: [0, 0, 0, 0, 0, 1, 0x0020_0000] },
      { at: base + at(28), values: PARTS },
      { at: base + at(36), values: PARTS },
    ];
  }).flat();
  await whileScribbling(h.ring.mapping, spots, (scribbled) =>
    ring.serveMany(scribbled, () => {
      for (let slot = 0; slot < h.slots; slot++)
        h.put({
          op: slot % 2 === 0 ? READ : WRITE,
          sector: slot * 16,
          segments: h.pages(slot % 10, 11),
          count: 2,
        });
    }),
  );
  await h.close();
});

test.each(["copy", "persistent"] as const)("indirect pages, %s", async (grantMode) => {
  const ring = await WatchedRing.start({ grantMode });
  const { harness: h } = ring;
  const pages = INDIRECT_PAGES.map((page) => page * PAGE_SIZE);
  for (const page of INDIRECT_PAGES)
    h.fillIndirectPage(
      page,
      Array.from({ length: 512 }, (_, index) => ({ gref: h.ref(index % 28) })),
    );
  const spots = [1, 2, 3, 5, 8, 511, 512, 520].map((index) => ({
    at: pages[index >> 9] + (index & 511) * 8 + 4,
    // Mostly in order, because there are many of them.
    values: [0x0000, 0x0000, 0x0000, 0x0700, 0x0303, 0x0707, 0x0100, 0xff00],
  }));
  await whileScribbling(h.data.mapping, spots, (scribbled) =>
    ring.serveMany(scribbled, () => {
      for (let index = 0; index < 16; index++)
        h.putIndirect(
          index % 2,
          index % 4 === 3 ? 521 : 9,
          0,
          INDIRECT_PAGES.map((page) => h.ref(page)),
        );
    }),
  );
  await h.close();
});
