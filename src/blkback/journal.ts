// Every request that was taken off the ring and is not answered yet, in a file that survives the server. Responses
// overwrite slots of requests that are still in flight, so after kill -9 the ring alone does not tell what the
// guest waits for; this does. Its successor executes those again, in their order: the guest has been told of
// none of them, and their pages are still granted. Stores are ordered so that a kill between any two is harmless.
//
// Journal and ring belong together by a random number that is in both: in the ring's page it stands in padding that
// frontends clear when they make a ring (RING_MARK), so a journal is never taken for that of a later ring, however
// alike its keys are.
import { closeSync, openSync, readFileSync, renameSync, rmSync, writeFileSync } from "node:fs";
import { describeError, XentoolError } from "../core/errors.ts";
import { moduleLogger } from "../core/log.ts";
import { mapFile, type Mapping } from "../native/memory.ts";
import { REQUEST } from "../protocol/blkif.ts";

/** Another one for each layout: a journal of another version is none. */
const MAGIC = 0x584e_544b;
/** Positions in the header, in doubles. TAKEN and PUSHED count all requests and responses, so they never wrap. */
const HEADER = { magic: 0, slots: 1, taken: 2, pushed: 3, mark: 4, flushErrno: 5 } as const;
const HEADER_BYTES = 256;
/** An entry: sequence and position of its answer (-1: none yet) as doubles, then the request. */
const ENTRY_BYTES = 16 + REQUEST.bytes;
const REQUEST_WORDS = REQUEST.bytes / 4;
const TWO_32 = 2 ** 32;

/** Where a ring stands, and its mark: 0 on a ring that none of us has served. */
export interface RingState {
  readonly slots: number;
  readonly reqProd: number;
  readonly rspProd: number;
  readonly mark: number;
}

/** What a server leaves to its successor besides the ring. */
interface Left {
  readonly unanswered: Uint32Array;
  readonly flushErrno: number;
}

const NOTHING: Left = { unanswered: new Uint32Array(0), flushErrno: 0 };

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
    this.#taken = this.#doubles[HEADER.taken] - this.unansweredCount;
  }

  /**
   * The journal of a ring that is to be served from now on, whoever served it before. `setMark` marks the ring; until
   * then nothing has changed for anybody. Fails with `environment` when requests wait and nothing tells which of them
   * a former server has carried out.
   */
  static open(path: string, ring: RingState, setMark: (mark: number) => void): Journal {
    const fresh = `${path}.new`;
    // Its maker was killed after it had marked the ring.
    if (ring.mark !== 0 && readJournal(fresh, ring) !== undefined) renameSync(fresh, path);
    const found = readJournal(path, ring);
    const left = found ?? leftWithout(ring);
    const mark = found === undefined ? newMark() : ring.mark;
    const journal = Journal.#write(fresh, { ...ring, mark }, left);
    if (mark !== ring.mark) setMark(mark);
    renameSync(fresh, path);
    return journal;
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
    for (let i = 0; i < REQUEST_WORDS; i++) this.#words[to + i] = words[from + i];
  }

  /** The `count` requests just noted are taken: from now on they will be answered. Before any of them starts. */
  commit(count: number): void {
    this.#taken += count;
    this.#doubles[HEADER.taken] = this.#taken;
  }

  /** The response to the request in `row` is the one number `position` of the next push. */
  answer(row: number, position: number): void {
    this.#doubles[entryAt(row) / 8 + 1] = this.#doubles[HEADER.pushed] + position;
  }

  /** -errno of the flush that failed on this ring, under this server or a former one; 0: none has. */
  get flushErrno(): number {
    return this.#doubles[HEADER.flushErrno];
  }

  /** A flush failed with -`errno`: no successor is to say OK to the next one. */
  noteFlushFailure(errno: number): void {
    this.#doubles[HEADER.flushErrno] = errno;
  }

  /** `count` responses are published. */
  pushed(count: number): void {
    this.#doubles[HEADER.pushed] += count;
  }

  /** Unmaps; the file stays for a successor. */
  close(): void {
    this.#mapping.close();
  }

  static #write(path: string, ring: RingState, { unanswered, flushErrno }: Left): Journal {
    const fd = openSync(path, "w+", 0o600);
    let mapping: Mapping;
    try {
      const bytes = fileBytes(ring.slots);
      // Not a hole: where the file system is full, a store to the mapping would be the end of the process.
      writeFileSync(fd, new Uint8Array(bytes));
      mapping = mapFile(fd, bytes, true);
    } catch (error) {
      rmSync(path, { force: true });
      throw new XentoolError("environment", `cannot write the journal ${path}`, {}, error);
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
    doubles[HEADER.mark] = ring.mark;
    doubles[HEADER.slots] = ring.slots;
    doubles[HEADER.pushed] = ring.rspProd;
    doubles[HEADER.taken] = ring.rspProd + count;
    doubles[HEADER.flushErrno] = flushErrno;
    doubles[HEADER.magic] = MAGIC;
    return new Journal(mapping, unanswered);
  }
}

/** Where the journal of the device with these statistics is. */
export function journalPath(statsPath: string): string {
  return statsPath.replace(/\.stats$/, ".journal");
}

/** The guest has let go: nobody will go on there. A file that cannot be removed does no harm, no ring has its mark. */
export function removeJournal(path: string): void {
  for (const file of [path, `${path}.new`])
    try {
      rmSync(file, { force: true });
    } catch (error) {
      moduleLogger("blkback").warn(describeError(error));
    }
}

/** A random number but 0. */
function newMark(): number {
  return crypto.getRandomValues(new Uint32Array(1))[0] || 1;
}

/**
 * What is left on a ring that has no journal, as far as its slots do not show it themselves. Answers overwrite
 * requests, so they show it only where there are no answers yet, or nothing waits.
 */
function leftWithout(ring: RingState): Left {
  if (ring.rspProd === 0 || ring.reqProd === ring.rspProd) return NOTHING;
  throw new XentoolError(
    "environment",
    `${(ring.reqProd - ring.rspProd) >>> 0} requests are on a ring whose former server left no journal: which of ` +
      "them it has carried out cannot be told. Put the journal back, or take the disk from the guest by force-close",
  );
}

/** What the former server left on `ring`, or undefined when the file is not this ring's or does not add up. */
function readJournal(path: string, ring: RingState): Left | undefined {
  const words = readWords(path, fileBytes(ring.slots));
  if (words === undefined) return undefined;
  const doubles = new Float64Array(words.buffer);
  const isIts = doubles[HEADER.mark] === ring.mark && doubles[HEADER.slots] === ring.slots;
  if (doubles[HEADER.magic] !== MAGIC || !isIts) return undefined;
  const taken = doubles[HEADER.taken];
  const noted = doubles[HEADER.pushed];
  // What the ring says was published may be one push ahead of what could be noted.
  const pushed = noted + ((ring.rspProd - (noted % TWO_32)) >>> 0);
  // Nothing is answered: the ring itself holds everything, also where a frontend has begun anew on the same page.
  if (pushed === 0) return undefined;
  const rows: number[] = [];
  for (let row = 0; row < ring.slots; row++) {
    const at = entryAt(row) / 8;
    const answeredAt = doubles[at + 1];
    const answered = answeredAt >= 0 && answeredAt < pushed;
    if (doubles[at] < taken && !answered) rows.push(row);
  }
  if (rows.length !== taken - pushed) return undefined;
  rows.sort((a, b) => doubles[entryAt(a) / 8] - doubles[entryAt(b) / 8]);
  const unanswered = new Uint32Array(rows.length * REQUEST_WORDS);
  rows.forEach((row, index) => {
    const at = entryAt(row) / 4 + 4;
    unanswered.set(words.subarray(at, at + REQUEST_WORDS), index * REQUEST_WORDS);
  });
  return { unanswered, flushErrno: doubles[HEADER.flushErrno] };
}

/** A file of just `bytes` bytes; undefined when there is none, and an error when it cannot be read now. */
function readWords(path: string, bytes: number): Uint32Array | undefined {
  let file: Buffer;
  try {
    file = readFileSync(path);
  } catch (error) {
    if ((error as NodeJS.ErrnoException).code === "ENOENT") return undefined;
    throw error;
  }
  if (file.length !== bytes) return undefined;
  return new Uint32Array(file.buffer.slice(file.byteOffset, file.byteOffset + file.length));
}

function entryAt(row: number): number {
  return HEADER_BYTES + row * ENTRY_BYTES;
}

function fileBytes(slots: number): number {
  return Math.ceil(entryAt(slots) / 4096) * 4096;
}
