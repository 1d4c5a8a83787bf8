// Where in a qcow2's file the guest's data are, as far as it is known: a cache of the tables of the image's second
// level, of which each entry is for one cluster. An entry is known only while the daemon, which alone changes the
// tables, has no reason to change it: what it is sent for a cluster makes it forgotten.
import {
  isSoleOwner,
  isZero,
  plainCluster,
  QCOW2_ENTRY_BYTES as ENTRY_BYTES,
  type Zeroes,
} from "../../../protocol/qcow2.ts";

/** Memory for the tables of one image: enough for those of 512 GiB with clusters of 64 KiB. */
const CACHE_BYTES = 32 * 1024 * 1024;
/** Below two: nothing is known of a cluster; and nothing is to be learnt from the table that is being read. */
const UNKNOWN = 0;
const CHANGING = 1;
/** The cluster reads as zeroes, and is nowhere. */
const ZERO = 0xffff_ffff;
/** Otherwise twice the number of its cluster in the file, plus one if it may be written in place. */
const MAY_WRITE = 1;
const MOST_CLUSTERS = 2 ** 31 - 1;
/** The position of zeroes. */
export const NOWHERE = -1;
const NO_TABLE = -1;

export interface ClusterMapOptions {
  readonly clusterBits: number;
  /** Tables of the second level, and how many of them are kept at most (two or more). */
  readonly tables: number;
  readonly mostTables?: number;
  /** Which of their entries stand for zeroes. */
  readonly zeroes: Zeroes;
  /** Clusters of the file that hold the image's own tables: an entry that names one of them is not taken. */
  readonly own: ReadonlySet<number>;
}

export class ClusterMap {
  /** Where in the file the run begins that `locate` has found; NOWHERE: it is of zeroes. */
  position = 0;
  readonly clusterBytes: number;
  readonly #clusterBits: number;
  readonly #zeroes: Zeroes;
  readonly #own: ReadonlySet<number>;
  readonly #perTable: number;
  readonly #mostTables: number;
  /** By the table's number: its place among those that are kept. */
  readonly #places: Int32Array;
  readonly #tables: Uint32Array[] = [];
  /** By place: the table's number, whether it was used lately, and whether it has entries that have changed since. */
  readonly #numbers: number[] = [];
  readonly #isUsed: boolean[] = [];
  readonly #isOutdated: boolean[] = [];
  /** By place: the flush that had ended last when it was read. */
  readonly #readAfter: number[] = [];
  #hand = 0;
  #reading = NO_TABLE;

  constructor({ clusterBits, tables, mostTables, zeroes, own }: ClusterMapOptions) {
    this.#clusterBits = clusterBits;
    this.#zeroes = zeroes;
    this.#own = own;
    this.clusterBytes = 2 ** clusterBits;
    this.#perTable = this.clusterBytes / ENTRY_BYTES;
    this.#mostTables = mostTables ?? Math.max(2, Math.floor(CACHE_BYTES / (this.#perTable * 4)));
    this.#places = new Int32Array(tables).fill(NO_TABLE);
  }

  /**
   * Looks for the `length` bytes of the disk at `offset`. Positive: so many of them are in one piece in the file, at
   * `position`, and may be read or, if it `writes`, written there; or they are zeroes. Negative: so many are the
   * daemon's to transfer.
   */
  locate(offset: number, length: number, writes: boolean): number {
    const bytes = this.clusterBytes;
    let cluster = Math.floor(offset / bytes);
    const within = offset - cluster * bytes;
    const least = writes ? MAY_WRITE : 0;
    let value = this.#usable(cluster, least);
    let run = bytes - within;
    if (value === 0) {
      while (run < length && this.#usable(++cluster, least) === 0) run += bytes;
      return -Math.min(run, length);
    }
    if (value === ZERO) this.position = NOWHERE;
    else this.position = (value >>> 1) * bytes + within;
    while (run < length) {
      const next = this.#usable(++cluster, least);
      if (value === ZERO ? next !== ZERO : next === ZERO || next >>> 1 !== (value >>> 1) + 1) break;
      value = next;
      run += bytes;
    }
    return Math.min(run, length);
  }

  /** The table that describes the byte at `offset`. */
  tableOf(offset: number): number {
    return Math.floor(offset / (this.clusterBytes * this.#perTable));
  }

  /** Whether reading the table may tell more than is known, now that flush number `flushed` was the last to end. */
  isWorthReading(table: number, flushed: number): boolean {
    if (table >= this.#places.length) return false;
    const place = this.#places[table];
    return place === NO_TABLE || (this.#isOutdated[place] && this.#readAfter[place] < flushed);
  }

  /** From now on until `endReading`, what is forgotten is not learnt again from what is read of `table`. */
  beginReading(table: number, flushed: number): void {
    const place = this.#places[table] === NO_TABLE ? this.#makePlace(table) : this.#places[table];
    this.#isOutdated[place] = false;
    this.#readAfter[place] = flushed;
    this.#reading = table;
  }

  /**
   * Learns from a table as it is in the file, in words of this machine's order; none: nothing is to be learnt. Clusters
   * beyond `fileBytes`, and the image's own, are left out.
   */
  endReading(words: Uint32Array | undefined, fileBytes: number): void {
    const place = this.#places[this.#reading];
    this.#reading = NO_TABLE;
    const entries = this.#tables[place];
    const most = Math.min(MOST_CLUSTERS, Math.floor(fileBytes / this.clusterBytes));
    for (let i = 0; i < entries.length; i++) {
      if (entries[i] === CHANGING) entries[i] = UNKNOWN;
      else if (entries[i] === UNKNOWN && words !== undefined) {
        const high = swapped(words[2 * i]);
        const low = swapped(words[2 * i + 1]);
        const cluster = plainCluster(high, low, this.#clusterBits);
        if (isZero(high, low, this.#zeroes)) entries[i] = ZERO;
        else if (cluster > 0 && cluster < most && !this.#own.has(cluster))
          entries[i] = cluster * 2 + (isSoleOwner(high) ? MAY_WRITE : 0);
      }
    }
  }

  /** Forgets where the `length` bytes at `offset` are, because the daemon is told to change them. */
  forget(offset: number, length: number): void {
    const bytes = this.clusterBytes;
    const perTable = this.#perTable;
    const end = Math.ceil((offset + length) / bytes);
    let cluster = Math.floor(offset / bytes);
    while (cluster < end) {
      const table = Math.floor(cluster / perTable);
      const first = table * perTable;
      const next = Math.min(end, first + perTable);
      const place = this.#places[table] ?? NO_TABLE;
      if (place !== NO_TABLE) {
        this.#tables[place].fill(table === this.#reading ? CHANGING : UNKNOWN, cluster - first, next - first);
        this.#isOutdated[place] = true;
      }
      cluster = next;
    }
  }

  /** The same in the table that is being read, and in no other: what is idle costs nothing. */
  forgetInReading(offset: number, length: number): void {
    const tableBytes = this.clusterBytes * this.#perTable;
    const from = Math.max(offset, this.#reading * tableBytes);
    const to = Math.min(offset + length, (this.#reading + 1) * tableBytes);
    if (from < to) this.forget(from, to - from);
  }

  #usable(cluster: number, least: number): number {
    const table = Math.floor(cluster / this.#perTable);
    const place = this.#places[table] ?? NO_TABLE;
    if (place === NO_TABLE) return 0;
    this.#isUsed[place] = true;
    const value = this.#tables[place][cluster - table * this.#perTable];
    if (value === ZERO) return least === 0 ? ZERO : 0;
    return value > CHANGING && (value & MAY_WRITE) >= least ? value : 0;
  }

  /** A new place, or that of a table that has not been used for longest, roughly. */
  #makePlace(table: number): number {
    let place = this.#tables.length;
    if (place < this.#mostTables) this.#tables.push(new Uint32Array(this.#perTable));
    else {
      while (this.#isUsed[this.#hand]) this.#passHand();
      place = this.#hand;
      this.#passHand();
      this.#places[this.#numbers[place]] = NO_TABLE;
      this.#tables[place].fill(UNKNOWN);
    }
    this.#numbers[place] = table;
    this.#places[table] = place;
    this.#isUsed[place] = true;
    return place;
  }

  #passHand(): void {
    this.#isUsed[this.#hand] = false;
    this.#hand = (this.#hand + 1) % this.#mostTables;
  }
}

function swapped(word: number): number {
  return (word << 24) | ((word & 0xff00) << 8) | ((word >>> 8) & 0xff00) | (word >>> 24);
}
