// A storage daemon in small, for tests that make it do its worst: it keeps its changes of the tables in memory and
// writes them when it likes, uses freed clusters at once for something else, answers in any order, fails half-way, and
// dies. It has a log of writes in front of it, as an NBD target has.
import { readSync, writeSync } from "node:fs";
import type { ClosableTarget, TargetInfo } from "../../src/block/target.ts";
import type { Daemon } from "../../src/block/targets/qcow2/target.ts";
import {
  IO_DISCARD,
  IO_FLUSH,
  IO_READ,
  IO_READV,
  IO_WRITEV,
  type IoOp,
  type OnEnd,
} from "../../src/native/reactor.ts";
import { toArrayBuffer } from "../../src/native/shim.ts";
import type { Random } from "../support/random.ts";
import { CLUSTER, COPIED, entryFor, PER_TABLE, readEntry, writeEntry, writeHeader } from "./qcow2-image.ts";

export const TABLES = 3;
const L1_AT = 1;
const FIRST_TABLE = 2;
const FIRST_DATA = FIRST_TABLE + TABLES;
const FILE_CLUSTERS = FIRST_DATA + 160;
const ENOSPC = -28;
const ZERO_FLAG = 1n;

interface Pending {
  readonly op: IoOp;
  readonly tag: number;
  readonly offset: number;
  readonly pieces: readonly Uint8Array[];
  readonly length: number;
  record: LogRecord | undefined;
  round: number;
}

interface LogRecord {
  readonly op: IoOp;
  readonly offset: number;
  readonly length: number;
  readonly data: Uint8Array;
  stableAfter: number;
  /** It was refused, and is not carried out again. */
  isVoid: boolean;
}

export class ModelDaemon implements ClosableTarget, Daemon {
  readonly info: TargetInfo;
  isServing = true;
  servings = 1;
  flushed = 0;
  #nextFlush = 1;
  readonly #fd: number;
  readonly #random: Random;
  readonly #onEnd: OnEnd;
  /** What it is asked and has not answered; what waits is not in the log yet. */
  #asked: Pending[] = [];
  #waiting: Pending[] = [];
  #flushing: Pending | undefined;
  #log: LogRecord[] = [];
  /** Entries by guest cluster, as in its memory; those that the file has not, in the order of their changes. */
  readonly #entries = new Map<number, bigint>();
  #dirty: { cluster: number; entry: bigint }[] = [];
  /** The first level, in memory and in the file at once. */
  readonly #firstLevel: bigint[] = [];
  #free: number[] = [];
  readonly #own = new Set<number>();
  /** Clusters of a snapshot: they are shared for ever. */
  readonly #shared = new Set<number>();

  constructor(fd: number, random: Random, onEnd: OnEnd) {
    this.#fd = fd;
    this.#random = random;
    this.#onEnd = onEnd;
    const sizeBytes = TABLES * PER_TABLE * CLUSTER;
    this.info = {
      sizeBytes,
      readOnly: false,
      canDiscard: true,
      canSecureDiscard: false,
      discardGranularityBytes: 512,
      physicalSectorBytes: 512,
    };
  }

  /** Makes the image, with `clusters` allocated: some shared by a snapshot, some without the mark of a sole owner. */
  static format(fd: number, clusters: readonly number[], random: Random): { shared: number[] } {
    for (let at = 0; at < FILE_CLUSTERS; at++) writeSync(fd, Buffer.alloc(CLUSTER), 0, CLUSTER, at * CLUSTER);
    writeHeader(fd, { tables: TABLES, l1At: L1_AT });
    for (let table = 0; table < TABLES; table++) writeEntry(fd, L1_AT, table, entryFor(FIRST_TABLE + table));
    const shared: number[] = [];
    clusters.forEach((cluster, index) => {
      const host = FIRST_DATA + index;
      const kind = random.below(4);
      if (kind === 0) shared.push(host);
      writeEntry(fd, ...placeOf(fd, cluster), entryFor(host, kind < 2 ? 0n : COPIED));
    });
    return { shared };
  }

  open(shared: readonly number[]): void {
    for (const host of shared) this.#shared.add(host);
    this.#load();
  }

  get hasUnstable(): boolean {
    return this.#log.length > 0;
  }

  forEachUnstable(visit: (offset: number, length: number) => void): void {
    for (const { offset, length } of this.#log) visit(offset, length);
  }

  start(op: IoOp, tag: number, offset: number, length: number, address: number): void {
    const pieces = piecesOf(op, length, address);
    const bytes = op === IO_DISCARD ? length : pieces.reduce((sum, piece) => sum + piece.length, 0);
    const pending: Pending = { op, tag, offset, pieces, length: bytes, record: undefined, round: 0 };
    if (!this.isServing || this.#waiting.length > 0 || this.#random.chance(0.1)) this.#waiting.push(pending);
    else this.#send(pending);
  }

  close(): void {}

  /** Does something that it has to do, if there is anything. */
  step(): void {
    if (!this.isServing) return this.#revive();
    const random = this.#random;
    if (random.chance(0.02)) return this.#die();
    if (random.chance(0.1)) this.#persist(random.below(this.#dirty.length + 1));
    if (random.chance(0.05)) this.#useForItself();
    for (const pending of this.#waiting.splice(0)) this.#send(pending);
    if (this.#flushing !== undefined && random.chance(0.3)) return this.#endFlush();
    const at = random.below(this.#asked.length);
    const [pending] = this.#asked.splice(at, 1);
    if (pending !== undefined) this.#answer(pending);
  }

  /** Everything is answered. */
  get isIdle(): boolean {
    const nothing = this.#asked.length + this.#waiting.length === 0 && this.#flushing === undefined;
    return this.isServing && nothing;
  }

  /** While it is dead, somebody else has the image, and makes a snapshot. Returns the clusters that are shared now. */
  takeSnapshot(): number[] {
    for (const [cluster, entry] of this.#entries) {
      if (hostOf(entry) === 0) continue;
      this.#shared.add(hostOf(entry));
      this.#entries.set(cluster, entry & ~COPIED);
      writeEntry(this.#fd, ...placeOf(this.#fd, cluster), entry & ~COPIED);
    }
    for (const [table, entry] of this.#firstLevel.entries()) {
      this.#shared.add(hostOf(entry));
      this.#setTable(table, entry & ~COPIED);
    }
    return [...this.#shared];
  }

  /** The same somebody is killed in the middle of removing a snapshot: tables are not marked that nothing shares. */
  loseMarks(): void {
    for (const [table, entry] of this.#firstLevel.entries())
      if (this.#random.chance(0.5)) this.#setTable(table, entry & ~COPIED);
  }

  /** Throws when somebody else wrote where it keeps what is its own. */
  check(): void {
    const bytes = Buffer.alloc(CLUSTER);
    for (const host of this.#own) {
      readSync(this.#fd, bytes, 0, CLUSTER, host * CLUSTER);
      if (!bytes.equals(ownBytes(host))) throw new Error(`cluster ${host} of the daemon was written`);
    }
  }

  /** The disk as the tables in the file have it: what is left when the host loses power. */
  static readStable(fd: number, offset: number, length: number): Buffer {
    const bytes = Buffer.alloc(length);
    const host = hostOf(readEntry(fd, ...placeOf(fd, Math.floor(offset / CLUSTER))));
    if (host > 0) readSync(fd, bytes, 0, length, host * CLUSTER + (offset % CLUSTER));
    return bytes;
  }

  #send(pending: Pending): void {
    const { op, offset, length, pieces } = pending;
    if (op === IO_FLUSH) {
      if (this.#flushing !== undefined) return void this.#waiting.push(pending);
      pending.round = this.#nextFlush++;
      this.#flushing = pending;
      return;
    }
    if (op !== IO_READ && op !== IO_READV) {
      pending.record = {
        op,
        offset,
        length,
        data: Buffer.concat(pieces),
        stableAfter: Infinity,
        isVoid: false,
      };
      this.#log.push(pending.record);
    }
    this.#asked.push(pending);
  }

  #answer(pending: Pending): void {
    const { op, tag, length, record } = pending;
    if (record === undefined) {
      this.#read(pending);
      return this.#onEnd(tag, length);
    }
    if (this.#random.chance(0.02)) {
      // Some of it is done.
      const part = this.#random.below(length / 512) * 512;
      this.#carryOut(record, part);
      record.isVoid = true;
      record.stableAfter = this.#nextFlush;
      this.#settle();
      return this.#onEnd(tag, ENOSPC);
    }
    this.#carryOut(record, length);
    record.stableAfter = this.#nextFlush;
    this.#settle();
    this.#onEnd(tag, op === IO_DISCARD ? 0 : length);
  }

  #endFlush(): void {
    const { tag, round } = this.#flushing as Pending;
    this.#persist(this.#dirty.length);
    this.#flushing = undefined;
    this.flushed = round;
    this.#settle();
    this.#onEnd(tag, 0);
  }

  #settle(): void {
    while (this.#log.length > 0 && (this.#log[0] as LogRecord).stableAfter <= this.flushed) this.#log.shift();
  }

  #read({ offset, pieces }: Pending): void {
    let at = offset;
    for (const piece of pieces)
      for (let done = 0; done < piece.length;) {
        const within = at % CLUSTER;
        const count = Math.min(CLUSTER - within, piece.length - done);
        const host = hostOf(this.#entry(Math.floor(at / CLUSTER)));
        if (host === 0) piece.fill(0, done, done + count);
        else readSync(this.#fd, piece, done, count, host * CLUSTER + within);
        done += count;
        at += count;
      }
  }

  #carryOut({ op, offset, data }: LogRecord, length: number): void {
    if (op === IO_DISCARD) {
      const end = Math.floor((offset + length) / CLUSTER);
      for (let cluster = Math.ceil(offset / CLUSTER); cluster < end; cluster++) this.#drop(cluster);
      return;
    }
    for (let done = 0; done < length;) {
      const at = offset + done;
      const count = Math.min(CLUSTER - (at % CLUSTER), length - done);
      const host = this.#ownPlace(Math.floor(at / CLUSTER));
      writeSync(this.#fd, data, done, count, host * CLUSTER + (at % CLUSTER));
      done += count;
    }
  }

  /** The cluster of the file that `cluster` may be written to: as before, or a new one with the same bytes. */
  #ownPlace(cluster: number): number {
    const entry = this.#entry(cluster);
    const host = hostOf(entry);
    if (host > 0 && (entry & COPIED) !== 0n) return host;
    const next = this.#free.shift() as number;
    const bytes = Buffer.alloc(CLUSTER);
    if (host > 0) readSync(this.#fd, bytes, 0, CLUSTER, host * CLUSTER);
    writeSync(this.#fd, bytes, 0, CLUSTER, next * CLUSTER);
    this.#set(cluster, BigInt(next * CLUSTER) | COPIED);
    if (host > 0 && !this.#shared.has(host)) {
      // Or its bytes would be lost with the entry that nothing has replaced yet.
      this.#persist(this.#dirty.length);
      this.#release(host);
    }
    return next;
  }

  #drop(cluster: number): void {
    const host = hostOf(this.#entry(cluster));
    this.#set(cluster, this.#random.chance(0.5) ? ZERO_FLAG : 0n);
    if (host > 0) this.#release(host);
  }

  /** Freed clusters come first when one is needed. */
  #release(host: number): void {
    if (this.#shared.has(host)) return;
    this.#free.unshift(host);
    if (this.#random.chance(0.5)) this.#useForItself();
  }

  #useForItself(): void {
    const [other] = this.#own;
    if (this.#own.size > 3 && other !== undefined) {
      this.#own.delete(other);
      this.#free.push(other);
    }
    if (this.#free.length < 8) return;
    const host = this.#free.shift() as number;
    writeSync(this.#fd, ownBytes(host), 0, CLUSTER, host * CLUSTER);
    this.#own.add(host);
  }

  #entry(cluster: number): bigint {
    return this.#entries.get(cluster) ?? 0n;
  }

  #set(cluster: number, entry: bigint): void {
    this.#ownTable(Math.floor(cluster / PER_TABLE));
    this.#entries.set(cluster, entry);
    this.#dirty.push({ cluster, entry });
  }

  /** Before it changes a table that may be shared, it makes a copy; whoever else shares it has the old one. */
  #ownTable(table: number): void {
    const entry = this.#firstLevel[table];
    if ((entry & COPIED) !== 0n) return;
    // Or an entry in the file might still name the cluster that becomes a table.
    this.#persist(this.#dirty.length);
    const next = this.#free.shift() as number;
    const bytes = Buffer.alloc(CLUSTER);
    readSync(this.#fd, bytes, 0, CLUSTER, hostOf(entry) * CLUSTER);
    writeSync(this.#fd, bytes, 0, CLUSTER, next * CLUSTER);
    this.#setTable(table, entryFor(next));
    this.#release(hostOf(entry));
  }

  #setTable(table: number, entry: bigint): void {
    this.#firstLevel[table] = entry;
    writeEntry(this.#fd, L1_AT, table, entry);
  }

  #persist(count: number): void {
    for (const { cluster, entry } of this.#dirty.splice(0, count))
      writeEntry(this.#fd, ...placeOf(this.#fd, cluster), entry);
  }

  #die(): void {
    this.isServing = false;
    const back = [...this.#asked.splice(0), ...(this.#flushing === undefined ? [] : [this.#flushing])];
    this.#flushing = undefined;
    this.#waiting.unshift(...back.filter(({ record }) => record === undefined));
    this.#asked = back.filter(({ record }) => record !== undefined);
    this.#load();
  }

  /** Everything in the log is carried out again, in its order. */
  #revive(): void {
    for (const record of this.#log) {
      if (record.isVoid) continue;
      // A trim may be left undone, or half done.
      const fails = record.op === IO_DISCARD && this.#random.chance(0.1);
      this.#carryOut(record, fails ? this.#random.below(record.length / 512) * 512 : record.length);
      record.isVoid = fails;
      record.stableAfter = this.#nextFlush;
    }
    for (const { op, tag, length } of this.#asked.splice(0)) {
      this.#onEnd(tag, op === IO_DISCARD ? 0 : length);
    }
    this.#settle();
    this.isServing = true;
    this.servings++;
  }

  /** Its tables as they are in the file; what they do not use is free. */
  #load(): void {
    this.#entries.clear();
    this.#dirty = [];
    this.#own.clear();
    const used = new Set(this.#shared);
    const bytes = Buffer.alloc(CLUSTER);
    for (let table = 0; table < TABLES; table++) {
      const host = hostOf((this.#firstLevel[table] = readEntry(this.#fd, L1_AT, table)));
      used.add(host);
      readSync(this.#fd, bytes, 0, CLUSTER, host * CLUSTER);
      for (let index = 0; index < PER_TABLE; index++) {
        const entry = bytes.readBigUInt64BE(index * 8);
        if (entry === 0n) continue;
        this.#entries.set(table * PER_TABLE + index, entry);
        if (hostOf(entry) > 0) used.add(hostOf(entry));
      }
    }
    this.#free = [];
    for (let host = FIRST_TABLE; host < FILE_CLUSTERS; host++) if (!used.has(host)) this.#free.push(host);
  }
}

function piecesOf(op: IoOp, length: number, address: number): Uint8Array[] {
  if (op === IO_FLUSH || op === IO_DISCARD) return [];
  if (op !== IO_READV && op !== IO_WRITEV) return [memoryAt(address, length)];
  const vectors = new DataView(toArrayBuffer(address, 0, length * 16));
  return Array.from({ length }, (_, at) =>
    memoryAt(Number(vectors.getBigUint64(at * 16, true)), Number(vectors.getBigUint64(at * 16 + 8, true))),
  );
}

function memoryAt(address: number, length: number): Uint8Array {
  return new Uint8Array(toArrayBuffer(address, 0, length));
}

function hostOf(entry: bigint): number {
  return (entry & ZERO_FLAG) === 0n ? Number((entry & 0x00ff_ffff_ffff_fe00n) / BigInt(CLUSTER)) : 0;
}

/** The table of a cluster of the disk, as the file has it, and the number of its entry there. */
function placeOf(fd: number, cluster: number): [table: number, index: number] {
  const table = hostOf(readEntry(fd, L1_AT, Math.floor(cluster / PER_TABLE)));
  return [table, cluster % PER_TABLE];
}

/** What fills a cluster that the daemon uses for itself: whoever takes it for a table is led to the next one. */
function ownBytes(host: number): Buffer {
  const bytes = Buffer.alloc(8);
  bytes.writeBigUInt64BE(entryFor(host + 1));
  return Buffer.alloc(CLUSTER, bytes);
}
