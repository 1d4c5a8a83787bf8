// Every request that was taken off the ring and is not yet answered, in a file that survives the server. Responses
// overwrite the slots of requests that are still in flight, so after kill -9 the ring alone does not show which
// requests the guest is waiting for; the journal does. A successor executes those again, in order: the guest has had
// no response to any of them, and their pages are still granted. Stores are ordered so that a kill between any two of
// them is harmless.
//
// The journal and its ring are tied together by a random number stored in both. In the ring's page it is in padding
// that frontends clear when they create a ring (RING_MARK), so a journal is never mistaken for that of a later ring,
// however similar the keys are.
import {
  closeSync,
  existsSync,
  ftruncateSync,
  readdirSync,
  renameSync,
  rmSync,
  writeFileSync,
} from "node:fs";
import { basename, dirname, join } from "node:path";
import { describeError, XentoolError } from "../../core/errors.ts";
import { moduleLogger } from "../../core/log.ts";
import { mapFile, type Mapping } from "../../native/memory.ts";
import { makeOwnFile, readOwnFile } from "../../native/own-file.ts";
import { REQUEST } from "../../protocol/blkif.ts";
import { counted } from "../../core/counted.ts";
import { MAX_RING_SLOTS } from "../bounds.ts";

/** Changes with each layout: a journal of another version counts as none. */
const MAGIC = 0x584e_544b;
/** Positions in the header, in doubles. `taken` and `pushed` count all requests and responses, so they never wrap. */
const HEADER = { magic: 0, slots: 1, taken: 2, pushed: 3, mark: 4, flushErrno: 5 } as const;
const HEADER_BYTES = 256;
/**
 * An entry: the request's sequence number and the position of its response (-1: none yet) as doubles, then the
 * request.
 */
const ENTRY_BYTES = 16 + REQUEST.bytes;
const REQUEST_WORDS = REQUEST.bytes / 4;

/** A ring's indices and its mark, which is 0 on a ring that no xentool server has served. */
export interface RingState {
  readonly slots: number;
  readonly reqProd: number;
  readonly rspProd: number;
  readonly mark: number;
}

/** What a server leaves to its successor, besides the ring. */
interface Left {
  readonly unanswered: Uint32Array;
  readonly flushErrno: number;
  /** How many responses it has published, more than 2^32 where the ring's index has wrapped. */
  readonly pushed: number;
}

const NO_REQUESTS = new Uint32Array(0);

export class Journal {
  /** Requests that a former server left unanswered, in order, back to back. */
  readonly unanswered: Uint32Array;
  readonly unansweredCount: number;
  readonly #mapping: Mapping;
  readonly #doubles: Float64Array;
  /**
   * Signed, as are the slots that are copied here: of an unsigned word above 2^31 JavaScriptCore makes a double, and
   * the loop in `take` was compiled and thrown away again for seconds on end.
   */
  readonly #words: Int32Array;
  #taken: number;

  private constructor(mapping: Mapping, unanswered: Uint32Array) {
    this.#mapping = mapping;
    this.#doubles = new Float64Array(mapping.bytes.buffer);
    this.#words = new Int32Array(mapping.bytes.buffer);
    this.unanswered = unanswered;
    this.unansweredCount = unanswered.length / REQUEST_WORDS;
    // The unanswered requests are taken a second time, with the same numbers.
    this.#taken = this.#doubles[HEADER.taken] - this.unansweredCount;
  }

  /**
   * Opens the journal of a ring that is to be served from now on, whoever served it before. `setMark` marks the ring;
   * until it is called, nothing has changed for anybody. Throws `environment` when requests are waiting and nothing
   * shows which of them a former server has carried out.
   */
  static open(path: string, ring: RingState, setMark: (mark: number) => void): Journal {
    const fresh = `${path}.new`;
    // The server that wrote it was killed after it had marked the ring.
    if (ring.mark !== 0 && readJournal(fresh, ring) !== undefined) renameSync(fresh, path);
    const found = readJournal(path, ring);
    const left = found ?? leftWithout(ring);
    const mark = found === undefined ? newMark() : ring.mark;
    const journal = Journal.#write(fresh, { ...ring, mark }, left);
    if (mark !== ring.mark) setMark(mark);
    renameSync(fresh, path);
    return journal;
  }

  /** Records the request in slot `slot` of a fetch, which is kept in table row `row`; `words` are the fetched slots. */
  take(row: number, slot: number, words: Int32Array): void {
    const at = entryAt(row);
    const doubles = this.#doubles;
    // Not valid before `commit`, because its number is not below `taken`.
    doubles[at / 8] = this.#taken + slot;
    doubles[at / 8 + 1] = -1;
    const to = at / 4 + 4;
    const from = slot * REQUEST_WORDS;
    for (let i = 0; i < REQUEST_WORDS; i++) this.#words[to + i] = words[from + i];
  }

  /**
   * Marks the `count` requests just recorded as taken: from now on they will be answered. Call it before any of them
   * starts.
   */
  commit(count: number): void {
    this.#taken += count;
    this.#doubles[HEADER.taken] = this.#taken;
  }

  /** Records that the response to the request in `row` is number `position` of the next push. */
  answer(row: number, position: number): void {
    this.#doubles[entryAt(row) / 8 + 1] = this.#doubles[HEADER.pushed] + position;
  }

  /** -errno of the flush that failed on this ring, under this server or a former one; 0 if none has. */
  get flushErrno(): number {
    return this.#doubles[HEADER.flushErrno];
  }

  /** Records that a flush failed with -`errno`, so that no successor reports the next one as OK. */
  noteFlushFailure(errno: number): void {
    this.#doubles[HEADER.flushErrno] = errno;
  }

  /** Records that `count` responses are published. */
  pushed(count: number): void {
    this.#doubles[HEADER.pushed] += count;
  }

  /** Unmaps the journal; the file stays for a successor. */
  close(): void {
    this.#mapping.close();
  }

  static #write(path: string, ring: RingState, { unanswered, flushErrno, pushed }: Left): Journal {
    const fd = makeOwnFile(path);
    let mapping: Mapping;
    try {
      ftruncateSync(fd);
      const bytes = fileBytes(ring.slots);
      // Written out rather than left as a hole: on a full file system, a store to the mapping would kill the process.
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
      doubles[at / 8] = pushed + row;
      doubles[at / 8 + 1] = -1;
      mapping.words.set(unanswered.subarray(row * REQUEST_WORDS, (row + 1) * REQUEST_WORDS), at / 4 + 4);
    }
    doubles[HEADER.mark] = ring.mark;
    doubles[HEADER.slots] = ring.slots;
    doubles[HEADER.pushed] = pushed;
    doubles[HEADER.taken] = pushed + count;
    doubles[HEADER.flushErrno] = flushErrno;
    doubles[HEADER.magic] = MAGIC;
    return new Journal(mapping, unanswered);
  }
}

/** Path of the journal of queue `queue` of the device with these statistics. */
export function journalPath(statsPath: string, queue: number): string {
  const path = statsPath.replace(/\.stats$/, ".journal");
  return queue === 0 ? path : `${path}.${queue}`;
}

/** The journals that belong to the device with these statistics. */
export function journalsOf(statsPath: string): string[] {
  const first = basename(journalPath(statsPath, 0));
  const dir = dirname(statsPath);
  if (!existsSync(dir)) return [];
  const names = readdirSync(dir).filter((name) => name === first || name.startsWith(`${first}.`));
  return names.map((name) => join(dir, name));
}

/**
 * Removes the device's journals once the guest has let go and nobody will continue on its rings. A file that cannot
 * be removed does no harm, because no ring has its mark.
 */
export function removeJournals(statsPath: string): void {
  try {
    for (const path of journalsOf(statsPath)) rmSync(path, { force: true });
  } catch (error) {
    moduleLogger("blkback").warn(describeError(error));
  }
}

/**
 * Whether a ring with this mark may belong to the journal at `path`: it has the journal's mark, or none because nobody
 * has served it yet. A mark that is not the journal's is that of another ring.
 */
export function mayBelong(path: string, mark: number): boolean {
  return mark === 0 || [path, `${path}.new`].some((it) => markIn(it) === mark);
}

/** The mark in a journal of this version; undefined when there is none. */
function markIn(path: string): number | undefined {
  const file = readOwnFile(path, fileBytes(MAX_RING_SLOTS));
  if (file === undefined || file.length < HEADER_BYTES) return undefined;
  const doubles = new Float64Array(file.buffer.slice(file.byteOffset, file.byteOffset + HEADER_BYTES));
  return doubles[HEADER.magic] === MAGIC ? doubles[HEADER.mark] : undefined;
}

/** A random number other than 0. */
function newMark(): number {
  return crypto.getRandomValues(new Uint32Array(1))[0] || 1;
}

/**
 * What is left on a ring without a journal, as far as its slots show it. Responses overwrite requests, so the slots
 * show it only where there are no responses yet, or nothing is waiting.
 */
function leftWithout(ring: RingState): Left {
  if (ring.rspProd === 0 || ring.reqProd === ring.rspProd)
    return { unanswered: NO_REQUESTS, flushErrno: 0, pushed: ring.rspProd };
  throw new XentoolError(
    "environment",
    `${counted((ring.reqProd - ring.rspProd) >>> 0, "request")} on a ring whose former server left no journal: ` +
      "what it has carried out cannot be told. Put the journal back, or take the disk from the guest by force-close",
  );
}

/**
 * What the former server left on `ring`, or undefined when the file does not belong to this ring or is inconsistent.
 */
function readJournal(path: string, ring: RingState): Left | undefined {
  const words = readWords(path, fileBytes(ring.slots));
  if (words === undefined) return undefined;
  const doubles = new Float64Array(words.buffer);
  const isIts = doubles[HEADER.mark] === ring.mark && doubles[HEADER.slots] === ring.slots;
  if (doubles[HEADER.magic] !== MAGIC || !isIts) return undefined;
  const taken = doubles[HEADER.taken];
  const noted = doubles[HEADER.pushed];
  // The ring's count of published responses may be one push ahead of what could be recorded.
  const pushed = noted + ((ring.rspProd - noted) >>> 0);
  const flushErrno = doubles[HEADER.flushErrno];
  // Nothing is answered: the ring itself holds everything, even if a frontend has started anew on the same page. But
  // what a failed flush has lost may have been answered on another ring of the disk, whose journal does not know of it.
  if (pushed === 0) return { unanswered: NO_REQUESTS, flushErrno, pushed };
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
  return { unanswered, flushErrno, pushed };
}

/** Reads a file of exactly `bytes` bytes. Returns undefined if there is none; throws if it cannot be read now. */
function readWords(path: string, bytes: number): Uint32Array | undefined {
  const file = readOwnFile(path, bytes);
  if (file?.length !== bytes) return undefined;
  return new Uint32Array(file.buffer.slice(file.byteOffset, file.byteOffset + file.length));
}

function entryAt(row: number): number {
  return HEADER_BYTES + row * ENTRY_BYTES;
}

function fileBytes(slots: number): number {
  return Math.ceil(entryAt(slots) / 4096) * 4096;
}
