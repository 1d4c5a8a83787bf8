// Reads a qcow2's tables into its map of clusters, one at a time, beside the guest's requests. The daemon may be
// writing them meanwhile; but then it writes entries that are forgotten, and the same bytes again in all others. A
// table that may be shared is not read: with the first change, the daemon makes a copy of it, and may free it.
import { moduleLogger } from "../../../core/log.ts";
import { allocateMemory, type Mapping } from "../../../native/memory.ts";
import { IO_READ, type Reactor } from "../../../native/reactor.ts";
import {
  isSoleOwner,
  QCOW2_COMPRESSION_TYPE,
  QCOW2_DIRTY,
  QCOW2_ENTRY_BYTES as ENTRY_BYTES,
  readQcow2Header,
  snapshotTable,
  tableOffset,
  tablesOfTables,
  zeroesOf,
  type Extent,
  type Qcow2Header,
} from "../../../protocol/qcow2.ts";
import { ClusterMap } from "./cluster-map.ts";

const logger = moduleLogger("qcow2");

/** What is read of the header and of the first level's table: whole, aligned blocks, as direct I/O demands. */
const BLOCK_BYTES = 4096;
/** The first level, and the tables of refcounts and of snapshots, are smaller in all but absurd images. */
const MOST_BYTES = 8 * 1024 * 1024;
/** Tables that wait to be read; there is no harm in asking again. */
const MOST_WAITING = 64;
/** Features that change nothing about where plain clusters are, or who may write them. */
const HARMLESS = QCOW2_DIRTY | QCOW2_COMPRESSION_TYPE;

export interface TableFile {
  /** Its number in the reactor. */
  readonly file: number;
  readonly sizeBytes: () => number;
}

/** What the reader has to know of the changes that the daemon was sent. */
export interface Changes {
  /** The number of the last flush that ended. */
  readonly flushed: number;
  /** Calls `visit` for the range of each change that is not known to be in the file. */
  forEachUnstable(visit: (offset: number, length: number) => void): void;
}

type Stage = "idle" | "header" | "own tables" | "first level" | "second level";

export class TableReader {
  /** None before the header has been read, and of an image that only the daemon can follow. */
  map: ClusterMap | undefined;
  readonly #reactor: Reactor;
  readonly #source: number;
  readonly #file: TableFile;
  readonly #changes: Changes;
  readonly #block: Mapping;
  #table: Mapping | undefined;
  #header: Qcow2Header | undefined;
  /**
   * Clusters that hold the image's own tables. When an image is corrupt, entries may name them as the guest's; such
   * ones are left to the daemon, which refuses to write there.
   */
  #own = new Set<number>();
  /** Of the tables that name them: what is still to be read, the last piece first. */
  #unread: Extent[] = [];
  readonly #waiting: number[] = [];
  #stage: Stage = "idle";
  #reading = 0;
  /** What is being read is of before the last `restart`. */
  #isStale = false;

  constructor(file: TableFile, changes: Changes, reactor: Reactor) {
    this.#file = file;
    this.#changes = changes;
    this.#reactor = reactor;
    this.#source = reactor.addSource((_, result) => this.#ended(result));
    this.#block = allocateMemory(BLOCK_BYTES);
  }

  /** Forgets everything, because the image may be another one by now, and begins with its header. */
  restart(): void {
    this.map = undefined;
    this.#waiting.length = 0;
    this.#isStale = this.#stage !== "idle";
    if (!this.#isStale) this.#readHeader();
  }

  /** Has the table with this number read. */
  want(table: number): void {
    const waiting = this.#waiting;
    if (waiting.length === MOST_WAITING || waiting.includes(table)) return;
    if (this.#stage === "idle") this.#readTable(table);
    else if (table !== this.#reading) waiting.push(table);
  }

  /** A table may be being read: nobody waits for that. */
  close(): void {
    this.#reactor.closeLast(this.#block);
    if (this.#table !== undefined) this.#reactor.closeLast(this.#table);
  }

  #ended(result: number): void {
    const stage = this.#stage;
    this.#stage = "idle";
    if (this.#isStale) {
      this.#isStale = false;
      this.#readHeader();
    } else if (stage === "header") this.#takeHeader(result);
    else if (stage === "own tables") this.#takeOwnTables(result);
    else if (stage === "first level") this.#takeFirstLevel(result);
    else this.#takeTable(result);
  }

  #readHeader(): void {
    this.#read("header", 0, BLOCK_BYTES, this.#block);
  }

  #takeHeader(result: number): void {
    const header = result < BLOCK_BYTES ? undefined : readQcow2Header(this.#block.bytes);
    const reason = header === undefined ? "its header cannot be read" : whyNot(header);
    if (reason !== undefined) return logger.info(`all data go through the storage daemon: ${reason}`);
    this.#header = header as Qcow2Header;
    const clusterBytes = 2 ** this.#header.clusterBits;
    if (this.#table?.sizeBytes !== clusterBytes) {
      this.#table?.close();
      this.#table = allocateMemory(clusterBytes);
    }
    const named = tablesOfTables(this.#header).flatMap((table) => clustersOf(table, clusterBytes));
    const all = [...named, ...clustersOf(snapshotTable(this.#header), clusterBytes)];
    this.#own = new Set(all.map(({ offset }) => offset / clusterBytes));
    this.#unread = named;
    this.#readOwnTables();
  }

  /** Looks for the image's own tables; afterwards, entries can be told from those that name them. */
  #readOwnTables(): void {
    const { clusterBits, l1Entries } = this.#header as Qcow2Header;
    const next = this.#unread.at(-1);
    if (next === undefined) {
      const zeroes = zeroesOf(this.#header as Qcow2Header);
      this.map = new ClusterMap({ clusterBits, tables: l1Entries, zeroes, own: this.#own });
    } else {
      const length = Math.ceil(next.bytes / BLOCK_BYTES) * BLOCK_BYTES;
      this.#read("own tables", next.offset, length, this.#table as Mapping);
    }
  }

  #takeOwnTables(result: number): void {
    if (result < 0) return logger.info("all data go through the storage daemon: its tables cannot be read");
    const { bytes } = this.#unread.pop() as Extent;
    const view = new DataView((this.#table as Mapping).bytes.buffer);
    // The file may end in its first level's table, as a new one does.
    for (let at = 0; at + ENTRY_BYTES <= Math.min(result, bytes); at += ENTRY_BYTES) {
      const offset = tableOffset(view.getUint32(at), view.getUint32(at + 4));
      if (offset !== 0) this.#addOwn(offset);
    }
    this.#readOwnTables();
  }

  #addOwn(offset: number): void {
    const { clusterBits } = this.#header as Qcow2Header;
    this.#own.add(Math.floor(offset / 2 ** clusterBits));
  }

  /**
   * Whatever the daemon is told from here on is left out of what is read, and so is what it was told before and may
   * not have written yet.
   */
  #readTable(table: number): void {
    const map = this.map as ClusterMap;
    map.beginReading(table, this.#changes.flushed);
    this.#changes.forEachUnstable((offset, length) => map.forgetInReading(offset, length));
    this.#reading = table;
    this.#read("first level", this.#firstLevelBlock(table), BLOCK_BYTES, this.#block);
  }

  #takeFirstLevel(result: number): void {
    const { l1Offset, clusterBits } = this.#header as Qcow2Header;
    const at = l1Offset + this.#reading * ENTRY_BYTES - this.#firstLevelBlock(this.#reading);
    const view = new DataView(this.#block.bytes.buffer);
    if (result < at + ENTRY_BYTES) return this.#endTable(undefined);
    const high = view.getUint32(at);
    const offset = tableOffset(high, view.getUint32(at + 4));
    const bytes = 2 ** clusterBits;
    // No table is one of entries that name nothing.
    if (offset === 0) return this.#endTable((this.#table as Mapping).words.fill(0));
    // It may have been made just now.
    this.#addOwn(offset);
    // Without the mark, it may be another thing before it is read.
    if (!isSoleOwner(high) || offset % bytes !== 0) this.#endTable(undefined);
    else this.#read("second level", offset, bytes, this.#table as Mapping);
  }

  #takeTable(result: number): void {
    const { clusterBits } = this.#header as Qcow2Header;
    this.#endTable(result < 2 ** clusterBits ? undefined : this.#table?.words);
  }

  #endTable(words: Uint32Array | undefined): void {
    this.map?.endReading(words, this.#file.sizeBytes());
    const next = this.#waiting.shift();
    if (next !== undefined) this.#readTable(next);
  }

  #firstLevelBlock(table: number): number {
    const at = (this.#header as Qcow2Header).l1Offset + table * ENTRY_BYTES;
    return Math.floor(at / BLOCK_BYTES) * BLOCK_BYTES;
  }

  #read(stage: Stage, offset: number, length: number, to: Mapping): void {
    this.#stage = stage;
    this.#reactor.start(this.#source, 0, this.#file.file, IO_READ, offset, length, to.address);
  }
}

/** The clusters of a table; of the last one, what it has of it. */
function clustersOf({ offset, bytes }: Extent, clusterBytes: number): Extent[] {
  return Array.from({ length: Math.ceil(bytes / clusterBytes) }, (_, i) => ({
    offset: offset + i * clusterBytes,
    bytes: Math.min(clusterBytes, bytes - i * clusterBytes),
  }));
}

/** Why nobody but the daemon can follow what is in such an image; undefined: it is as simple as most. */
function whyNot(header: Qcow2Header): string | undefined {
  const { encryption, incompatible, autoclear, clusterBits } = header;
  if (encryption !== 0) return "it is encrypted";
  if ((incompatible & ~HARMLESS) !== 0n) return `its features ${incompatible}`;
  // Bitmaps of what has changed since a backup: only the daemon keeps them.
  if (autoclear !== 0n) return "it has bitmaps for backups, or other features to keep";
  if (2 ** clusterBits < BLOCK_BYTES) return "its clusters are smaller than 4096 bytes";
  const isAbsurd = ({ offset, bytes }: Extent): boolean =>
    bytes > MOST_BYTES || offset % 2 ** clusterBits !== 0;
  if ([...tablesOfTables(header), snapshotTable(header)].some(isAbsurd))
    return "its tables are out of bounds";
  return undefined;
}
