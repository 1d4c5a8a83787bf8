// Reads a qcow2's tables into its map of clusters, one at a time, beside the guest's requests. The daemon may be
// writing them meanwhile; but then it writes entries that are forgotten, and the same bytes again in all others.
import { moduleLogger } from "../../../core/log.ts";
import { allocateMemory, type Mapping } from "../../../native/memory.ts";
import { IO_READ, type Reactor } from "../../../native/reactor.ts";
import {
  QCOW2_COMPRESSION_TYPE,
  QCOW2_DIRTY,
  readQcow2Header,
  tableOffset,
  zeroesOf,
  type Qcow2Header,
} from "../../../protocol/qcow2.ts";
import { ClusterMap } from "./cluster-map.ts";

const logger = moduleLogger("qcow2");

/** What is read of the header and of the first level's table: whole, aligned blocks, as direct I/O demands. */
const BLOCK_BYTES = 4096;
const ENTRY_BYTES = 8;
/** The first level's tables of all but absurd images are smaller. */
const MOST_TABLES = 1024 * 1024;
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
  /** Has the map forget each change that is not known to be in the file. */
  forgetUnstable(map: ClusterMap): void;
}

type Stage = "idle" | "header" | "first level" | "second level";

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
    const { clusterBits, l1Entries } = this.#header;
    const tableBytes = Math.max(BLOCK_BYTES, 2 ** clusterBits);
    if (this.#table?.sizeBytes !== tableBytes) {
      this.#table?.close();
      this.#table = allocateMemory(tableBytes);
    }
    this.map = new ClusterMap(clusterBits, l1Entries, zeroesOf(this.#header));
  }

  /**
   * Whatever the daemon is told from here on is left out of what is read, and so is what it was told before and may
   * not have written yet.
   */
  #readTable(table: number): void {
    const map = this.map as ClusterMap;
    map.beginReading(table, this.#changes.flushed);
    this.#changes.forgetUnstable(map);
    this.#reading = table;
    this.#read("first level", this.#firstLevelBlock(table), BLOCK_BYTES, this.#block);
  }

  #takeFirstLevel(result: number): void {
    const { l1Offset, clusterBits } = this.#header as Qcow2Header;
    const at = l1Offset + this.#reading * ENTRY_BYTES - this.#firstLevelBlock(this.#reading);
    const view = new DataView(this.#block.bytes.buffer);
    if (result < at + ENTRY_BYTES) return this.#endTable(undefined);
    const offset = tableOffset(view.getUint32(at), view.getUint32(at + 4));
    const bytes = 2 ** clusterBits;
    // No table is one of entries that name nothing.
    if (offset === 0) this.#endTable((this.#table as Mapping).words.fill(0));
    else if (offset % bytes !== 0) this.#endTable(undefined);
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

/** Why nobody but the daemon can follow what is in such an image; undefined: it is as simple as most. */
function whyNot({
  encryption,
  incompatible,
  autoclear,
  l1Entries,
  l1Offset,
  clusterBits,
}: Qcow2Header): string | undefined {
  if (encryption !== 0) return "it is encrypted";
  if ((incompatible & ~HARMLESS) !== 0n) return `its features ${incompatible}`;
  // Bitmaps of what has changed since a backup: only the daemon keeps them.
  if (autoclear !== 0n) return "it has bitmaps for backups, or other features to keep";
  if (2 ** clusterBits < BLOCK_BYTES) return "its clusters are smaller than 4096 bytes";
  if (l1Entries > MOST_TABLES || l1Offset % 2 ** clusterBits !== 0) return "its tables are out of bounds";
  return undefined;
}
