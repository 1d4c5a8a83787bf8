// Every request that was taken off the ring and is not answered yet, in a file that survives the server. Responses
// overwrite slots of requests that are still in flight, so after kill -9 the ring alone does not tell what the
// guest waits for; this does. Its successor executes those again, in their order: the guest has been told of
// none of them, and their pages are still granted. Stores are ordered so that a kill between any two is harmless.
import { closeSync, openSync, readFileSync, renameSync, rmSync, writeFileSync } from "node:fs";
import { XentoolError } from "../core/errors.ts";
import { mapFile, type Mapping } from "../native/memory.ts";
import { REQUEST } from "../protocol/blkif.ts";

const MAGIC = 0x584e_544a;
/** Positions in the header, in doubles. TAKEN and PUSHED count all requests and responses, so they never wrap. */
const HEADER = { magic: 0, slots: 1, taken: 2, pushed: 3, ring: 4 } as const;
const HEADER_BYTES = 256;
/** An entry: sequence and position of its answer (-1: none yet) as doubles, then the request. */
const ENTRY_BYTES = 16 + REQUEST.bytes;
const REQUEST_WORDS = REQUEST.bytes / 4;
const TWO_32 = 2 ** 32;

/** A ring, and where it stands: the journal of another ring, or of an older one, is none of ours. */
export interface RingState {
  readonly refs: readonly number[];
  readonly remotePort: number;
  readonly slots: number;
  readonly reqProd: number;
  readonly rspProd: number;
}

export class Journal {
  /** Requests that a former server left unanswered, in their order, one after the other. */
  readonly unanswered: Uint32Array;
  readonly unansweredCount: number;
  readonly #mapping: Mapping;
  readonly #doubles: Float64Array;
  readonly #words: Uint32Array;
  #taken: number;

  private constructor(mapping: Mapping, unanswered: Uint32Array) {
    this.#mapping = mapping;
    this.#doubles = new Float64Array(mapping.bytes.buffer);
    this.#words = mapping.words;
    this.unanswered = unanswered;
    this.unansweredCount = unanswered.length / REQUEST_WORDS;
    // Those are taken a second time, with the same numbers.
    this.#taken = (this.#doubles[HEADER.taken] as number) - this.unansweredCount;
  }

  /** A journal for a ring that nobody has served before. */
  static create(path: string, ring: RingState): Journal {
    return Journal.#write(path, ring, new Uint32Array(0));
  }

  /**
   * A journal for a ring whose server died, with what it left unanswered. Fails with `protocol` when requests
   * wait and nothing tells which: then nobody can go on there.
   */
  static takeOver(path: string, ring: RingState): Journal {
    if (ring.reqProd === ring.rspProd) return Journal.create(path, ring);
    const unanswered = readUnanswered(path, ring);
    if (unanswered === undefined)
      throw new XentoolError(
        "protocol",
        `${(ring.reqProd - ring.rspProd) >>> 0} requests are on a ring whose former server left no journal: which of ` +
          "them it has carried out cannot be told, so the disk is taken from the guest",
      );
    return Journal.#write(path, ring, unanswered);
  }

  /** Notes the request in slot `slot` of a fetch, kept in table row `row`; `words` are the fetched slots. */
  take(row: number, slot: number, words: Uint32Array): void {
    const at = entryAt(row);
    const doubles = this.#doubles;
    // Not valid before `commit`, because its number is beyond `taken`.
    doubles[at / 8] = this.#taken + slot;
    doubles[at / 8 + 1] = -1;
    const to = at / 4 + 4;
    const from = slot * REQUEST_WORDS;
    for (let i = 0; i < REQUEST_WORDS; i++) this.#words[to + i] = words[from + i] as number;
  }

  /** The `count` requests just noted are taken: from now on they will be answered. Before any of them starts. */
  commit(count: number): void {
    this.#taken += count;
    this.#doubles[HEADER.taken] = this.#taken;
  }

  /** The response to the request in `row` is the one number `position` of the next push. */
  answer(row: number, position: number): void {
    this.#doubles[entryAt(row) / 8 + 1] = (this.#doubles[HEADER.pushed] as number) + position;
  }

  /** `count` responses are published. */
  pushed(count: number): void {
    this.#doubles[HEADER.pushed]! += count;
  }

  /** Unmaps; the file stays for a successor. */
  close(): void {
    this.#mapping.close();
  }

  /** Made beside the old one, which is there until the new one is complete. */
  static #write(path: string, ring: RingState, unanswered: Uint32Array): Journal {
    const fresh = `${path}.new`;
    const fd = openSync(fresh, "w+", 0o600);
    let mapping: Mapping;
    try {
      const bytes = fileBytes(ring.slots);
      // Not a hole: where the file system is full, a store to the mapping would be the end of the process.
      writeFileSync(fd, new Uint8Array(bytes));
      mapping = mapFile(fd, bytes, true);
    } finally {
      closeSync(fd);
    }
    const doubles = new Float64Array(mapping.bytes.buffer);
    const count = unanswered.length / REQUEST_WORDS;
    for (let row = 0; row < ring.slots; row++) doubles[entryAt(row) / 8] = Infinity;
    for (let row = 0; row < count; row++) {
      const at = entryAt(row);
      doubles[at / 8] = ring.rspProd + row;
      doubles[at / 8 + 1] = -1;
      mapping.words.set(unanswered.subarray(row * REQUEST_WORDS, (row + 1) * REQUEST_WORDS), at / 4 + 4);
    }
    identity(ring).forEach((value, index) => (doubles[HEADER.ring + index] = value));
    doubles[HEADER.slots] = ring.slots;
    doubles[HEADER.pushed] = ring.rspProd;
    doubles[HEADER.taken] = ring.rspProd + count;
    doubles[HEADER.magic] = MAGIC;
    renameSync(fresh, path);
    return new Journal(mapping, unanswered);
  }
}

/** Where the journal of the device with these statistics is. */
export function journalPath(statsPath: string): string {
  return statsPath.replace(/\.stats$/, ".journal");
}

/** The guest has let go: nobody will go on there. */
export function removeJournal(path: string): void {
  rmSync(path, { force: true });
}

/** The requests left on `ring`, or undefined when the file is not this ring's or does not add up. */
function readUnanswered(path: string, ring: RingState): Uint32Array | undefined {
  let file: Buffer;
  try {
    file = readFileSync(path);
  } catch {
    return undefined;
  }
  if (file.length !== fileBytes(ring.slots)) return undefined;
  const words = new Uint32Array(file.buffer.slice(file.byteOffset, file.byteOffset + file.length));
  const doubles = new Float64Array(words.buffer);
  const same = identity(ring).every((value, index) => doubles[HEADER.ring + index] === value);
  if (doubles[HEADER.magic] !== MAGIC || doubles[HEADER.slots] !== ring.slots || !same) return undefined;
  const taken = doubles[HEADER.taken] as number;
  const noted = doubles[HEADER.pushed] as number;
  // What the ring says was published may be one push ahead of what could be noted.
  const pushed = noted + ((ring.rspProd - (noted % TWO_32)) >>> 0);
  const rows: number[] = [];
  for (let row = 0; row < ring.slots; row++) {
    const at = entryAt(row) / 8;
    const answeredAt = doubles[at + 1] as number;
    const answered = answeredAt >= 0 && answeredAt < pushed;
    if ((doubles[at] as number) < taken && !answered) rows.push(row);
  }
  if (rows.length !== taken - pushed) return undefined;
  rows.sort((a, b) => (doubles[entryAt(a) / 8] as number) - (doubles[entryAt(b) / 8] as number));
  const unanswered = new Uint32Array(rows.length * REQUEST_WORDS);
  rows.forEach((row, index) => {
    const at = entryAt(row) / 4 + 4;
    unanswered.set(words.subarray(at, at + REQUEST_WORDS), index * REQUEST_WORDS);
  });
  return unanswered;
}

function identity(ring: RingState): number[] {
  return [ring.remotePort, ring.refs.length, ...ring.refs];
}

function entryAt(row: number): number {
  return HEADER_BYTES + row * ENTRY_BYTES;
}

function fileBytes(slots: number): number {
  return Math.ceil(entryAt(slots) / 4096) * 4096;
}
