// What has been written to an NBD export and is not known to be stable there, in a file that survives both xentool and
// the server. A server that dies takes with it what it had acknowledged and not yet flushed: from here it is sent
// again.
//
// Every record is written before its request is sent, and its request is sent from here, so that a guest that changes
// its page meanwhile cannot make the two differ. Its number, stored last, commits it: a kill between any two stores
// leaves a log of whole records. Headers are kept apart from data, so that no data can pass for a header. Records
// leave in the order they came, so an older one never outlives a younger one that overlaps it.
import { closeSync, fstatSync, ftruncateSync, rmSync, writeSync } from "node:fs";
import { XentoolError } from "../../../core/errors.ts";
import { mapFile, type Mapping } from "../../../native/memory.ts";
import { makeOwnFile } from "../../../native/own-file.ts";
import { NBD_CMD_TRIM, NBD_CMD_WRITE } from "../../../protocol/nbd.ts";

/** Changes with each layout. */
const MAGIC = 0x584e_5457;
/** Positions in the header, in doubles; the export's digest follows. */
const HEADER = { magic: 0, first: 1, flags: 2 } as const;
const DIGEST_AT = 64;
const DIGEST_BYTES = 32;
const HEADER_BYTES = 4096;
/** Positions in a record's header, in doubles. A command of `VOID` is not sent again. */
const RECORD = { number: 0, command: 1, offset: 2, length: 3, at: 4 } as const;
const RECORD_DOUBLES = 8;
const RECORDS = 8192;
const DATA_AT = HEADER_BYTES + RECORDS * RECORD_DOUBLES * 8;
const DATA_BYTES = 32 * 1024 * 1024;
const VOID = 0;

/** The largest request that is logged. Several fit, so that one does not wait for the log to be empty. */
export const MAX_RECORD_BYTES = 4 * 1024 * 1024;
const NO_SLOT = -1;
/** Until a request is replied to, no flush makes it stable. */
const UNANSWERED = Infinity;

/** What the file held when it was opened. */
export type Found = "no log" | "nothing" | "ours" | "another export's";

export class WriteLog {
  readonly found: Found;
  /** Records from `first` up to `next` are in the log. */
  first: number;
  next: number;
  readonly #path: string;
  readonly #dataBytes: number;
  readonly #mapping: Mapping;
  readonly #doubles: Float64Array;
  /** By record: the flush that makes it stable, and the slot of the request that the guest waits for (-1: none). */
  readonly #stableAfter = new Float64Array(RECORDS);
  readonly #slot = new Int32Array(RECORDS);
  /** Where the next record's data begins, counted on from when the log was last empty. */
  #dataEnd = 0;

  private constructor(path: string, mapping: Mapping, digest: Uint8Array) {
    this.#path = path;
    this.#dataBytes = mapping.sizeBytes - DATA_AT;
    this.#mapping = mapping;
    this.#doubles = new Float64Array(mapping.bytes.buffer);
    const known = mapping.bytes.subarray(DIGEST_AT, DIGEST_AT + DIGEST_BYTES);
    const isOurs = Buffer.compare(known, digest) === 0;
    this.first = this.next = 0;
    const isLog = this.#doubles[HEADER.magic] === MAGIC;
    const count = isLog ? this.#recover() : 0;
    if (count > 0) this.found = isOurs ? "ours" : "another export's";
    else this.found = isLog ? "nothing" : "no log";
    if (this.found === "ours") return;
    // Headers of another layout must not pass for what follows the first record of this one.
    if (!isLog) mapping.bytes.fill(0, 0, DATA_AT);
    // It is emptied before it becomes the log of another export.
    if (!isOurs) this.flags = 0;
    this.first = this.next;
    this.#doubles[HEADER.first] = this.first;
    known.set(digest);
    this.#doubles[HEADER.magic] = MAGIC;
  }

  /**
   * Opens the log of the export `name` at `path`, or makes one. What belongs to another export is dropped. Throws
   * `environment` when there is no room for it.
   */
  static open(path: string, name: string, dataBytes = DATA_BYTES): WriteLog {
    const digest = new Bun.CryptoHasher("sha256").update(name).digest();
    return new WriteLog(path, mapLog(path, DATA_AT + dataBytes), digest);
  }

  /** NBD_FLAG_* of the export, as the guest's first server found them; 0: not known. */
  get flags(): number {
    return this.#doubles[HEADER.flags];
  }

  set flags(flags: number) {
    this.#doubles[HEADER.flags] = flags;
  }

  /** The largest blocks, up to `most` bytes (a power of two), in which all that is in the log is whole. */
  wholeIn(most: number): number {
    let block = most;
    for (let record = this.first; record < this.next; record++)
      while (!this.isVoid(record) && (this.offset(record) % block !== 0 || this.length(record) % block !== 0))
        block /= 2;
    return block;
  }

  get isEmpty(): boolean {
    return this.first === this.next;
  }

  /** Whether it is time for a flush, so that there is room before there is none. */
  get isHalfFull(): boolean {
    if (this.isEmpty) return false;
    return this.next - this.first > RECORDS / 2 || this.#dataEnd - this.#dataBegin > this.#dataBytes / 2;
  }

  /** Makes room for a record, whose data is to be copied to `address` of it before `commit`. False: there is none. */
  reserve(command: number, offset: number, length: number): boolean {
    const bytes = command === NBD_CMD_WRITE ? length : 0;
    // From the beginning again: the pages there are mapped by now, and may still be in the processor's cache.
    if (this.isEmpty) this.#dataEnd = 0;
    const place = this.#dataEnd % this.#dataBytes;
    // The data of a record is in one piece.
    const at = place + bytes > this.#dataBytes ? this.#dataEnd + this.#dataBytes - place : this.#dataEnd;
    if (this.next - this.first === RECORDS) return false;
    if (!this.isEmpty && at + bytes - this.#dataBegin > this.#dataBytes) return false;
    const record = this.#header(this.next);
    const doubles = this.#doubles;
    doubles[record + RECORD.command] = command;
    doubles[record + RECORD.offset] = offset;
    doubles[record + RECORD.length] = length;
    doubles[record + RECORD.at] = at;
    this.#dataEnd = at + bytes;
    return true;
  }

  /** Makes what was reserved a record, for the request in `slot`. Returns its number. */
  commit(slot: number): number {
    const number = this.next++;
    this.#stableAfter[number % RECORDS] = UNANSWERED;
    this.#slot[number % RECORDS] = slot;
    this.#doubles[this.#header(number) + RECORD.number] = number + 1;
    return number;
  }

  /** The address of a record's data. */
  address(record: number): number {
    return this.#mapping.address + DATA_AT + (this.#of(record, RECORD.at) % this.#dataBytes);
  }

  command(record: number): number {
    return this.#of(record, RECORD.command);
  }

  offset(record: number): number {
    return this.#of(record, RECORD.offset);
  }

  length(record: number): number {
    return this.#of(record, RECORD.length);
  }

  slot(record: number): number {
    return this.#slot[record % RECORDS];
  }

  isVoid(record: number): boolean {
    return this.command(record) === VOID;
  }

  /** Calls `visit` with the range of each record that is in the log. */
  forEach(visit: (offset: number, length: number) => void): void {
    for (let record = this.first; record < this.next; record++)
      visit(this.offset(record), this.length(record));
  }

  /** Notes that the server has replied to it: flush number `round`, which is yet to come, will make it stable. */
  answered(record: number, round: number): void {
    this.#stableAfter[record % RECORDS] = round;
    this.#slot[record % RECORDS] = NO_SLOT;
  }

  /**
   * Notes that the server has refused it, as the guest learns, too: it is not sent again. But some of it may have been
   * done, so it stays until flush number `round`.
   */
  refused(record: number, round: number): void {
    this.#doubles[this.#header(record) + RECORD.command] = VOID;
    this.answered(record, round);
  }

  /**
   * Notes that all of it is to be sent again: no earlier reply counts. Otherwise an older record might be carried out
   * again, and a younger one that overlaps it leave the log before it is.
   */
  forgetReplies(): void {
    for (let record = this.first; record < this.next; record++)
      if (!this.isVoid(record)) this.#stableAfter[record % RECORDS] = UNANSWERED;
  }

  /** Drops what flushes up to number `round` made stable, as far as everything before it has left. */
  settle(round: number): void {
    while (this.first < this.next && this.#stableAfter[this.first % RECORDS] <= round) this.first++;
    this.#doubles[HEADER.first] = this.first;
  }

  /** Unmaps the log. The file stays for a successor, unless it is empty and `isOver`. */
  close(isOver: boolean): void {
    if (isOver && this.isEmpty) rmSync(this.#path, { force: true });
    this.#mapping.close();
  }

  get #dataBegin(): number {
    return this.#of(this.first, RECORD.at);
  }

  /** Finds the committed records, in their order; returns how many there are. */
  #recover(): number {
    const first = this.#doubles[HEADER.first];
    if (!Number.isSafeInteger(first) || first < 0) return 0;
    this.first = this.next = first;
    while (this.next - first < RECORDS && this.#isWhole(this.next)) {
      const number = this.next++;
      const bytes = this.command(number) === NBD_CMD_WRITE ? this.length(number) : 0;
      this.#dataEnd = this.#of(number, RECORD.at) + bytes;
      this.answered(number, UNANSWERED);
    }
    return this.next - first;
  }

  /** Also whether it can be one of ours: the file may be the work of a process that its guest had taken over. */
  #isWhole(record: number): boolean {
    if (this.#of(record, RECORD.number) !== record + 1) return false;
    const command = this.command(record);
    if (command !== VOID && command !== NBD_CMD_WRITE && command !== NBD_CMD_TRIM) return false;
    const at = this.#of(record, RECORD.at);
    const numbers = [this.offset(record), this.length(record), at];
    if (!numbers.every((it) => Number.isSafeInteger(it) && it >= 0)) return false;
    const bytes = command === NBD_CMD_WRITE ? this.length(record) : 0;
    return (at % this.#dataBytes) + bytes <= this.#dataBytes;
  }

  #of(record: number, field: number): number {
    return this.#doubles[this.#header(record) + field];
  }

  #header(record: number): number {
    return HEADER_BYTES / 8 + (record % RECORDS) * RECORD_DOUBLES;
  }
}

/** The log of the disk with these statistics. */
export function writeLogPath(statsPath: string): string {
  return statsPath.replace(/\.stats$/, ".writes");
}

function mapLog(path: string, fileBytes: number): Mapping {
  let fd = -1;
  try {
    fd = makeOwnFile(path);
    fill(fd, fileBytes);
    return mapFile(fd, fileBytes, true);
  } catch (error) {
    throw new XentoolError("environment", `cannot make the log of writes ${path}`, { path }, error);
  } finally {
    if (fd >= 0) closeSync(fd);
  }
}

/**
 * Makes the file this long. Written out rather than left as a hole: on a full file system, a store to the mapping
 * would kill the process. What cannot be whole gives back the room that it took, which journals of other disks need.
 */
function fill(fd: number, bytes: number): void {
  const before = fstatSync(fd).size;
  const zeroes = new Uint8Array(1024 * 1024);
  try {
    for (let at = before; at < bytes;)
      at += writeSync(fd, zeroes, 0, Math.min(zeroes.length, bytes - at), at);
  } catch (error) {
    ftruncateSync(fd, before);
    throw error;
  }
}
