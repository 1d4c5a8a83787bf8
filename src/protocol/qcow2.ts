// What a qcow2 image says about where its guest's data are, and which other files it names: the header, and the entries
// of its two levels of tables (QEMU: docs/interop/qcow2.txt). Numbers are big-endian.

/** The largest cluster that the format allows. Header and extensions are in the first one. */
export const MAX_QCOW2_CLUSTER_BYTES = 2 * 1024 * 1024;
/** The fixed part of the header; version 2 has less of it. */
export const QCOW2_HEADER_BYTES = 104;
const V2_HEADER_BYTES = 72;
const MAGIC = 0x5146_49fb;
const MIN_CLUSTER_BITS = 9;
const MAX_CLUSTER_BITS = 21;

/** Bits of `incompatible`. */
export const QCOW2_DIRTY = 1n << 0n;
export const QCOW2_DATA_FILE = 1n << 2n;
export const QCOW2_COMPRESSION_TYPE = 1n << 3n;

export interface Qcow2Header {
  readonly version: number;
  readonly clusterBits: number;
  /** Of the disk in it. */
  readonly sizeBytes: number;
  /** Where the name of the backing file is; 0: there is none. */
  readonly backingOffset: number;
  readonly backingLength: number;
  /** 0: none. */
  readonly encryption: number;
  readonly l1Offset: number;
  readonly l1Entries: number;
  /** The table that names the blocks of refcounts. */
  readonly refcountsOffset: number;
  readonly refcountsClusters: number;
  /** Internal ones. */
  readonly snapshots: number;
  readonly snapshotsOffset: number;
  /** Features without which an image must not be touched, and those that a writer who does not know them clears. */
  readonly incompatible: bigint;
  readonly autoclear: bigint;
  /** Where the header ends and its extensions begin. */
  readonly headerBytes: number;
}

/** Reads the header at the beginning of an image; undefined if it is none. */
export function readQcow2Header(image: Uint8Array): Qcow2Header | undefined {
  const view = new DataView(image.buffer, image.byteOffset, image.byteLength);
  if (image.length < QCOW2_HEADER_BYTES || view.getUint32(0) !== MAGIC) return undefined;
  const version = view.getUint32(4);
  const clusterBits = view.getUint32(20);
  if (version < 2 || version > 3 || clusterBits < MIN_CLUSTER_BITS || clusterBits > MAX_CLUSTER_BITS)
    return undefined;
  const hasFeatures = version === 3;
  return {
    version,
    clusterBits,
    sizeBytes: Number(view.getBigUint64(24)),
    backingOffset: Number(view.getBigUint64(8)),
    backingLength: view.getUint32(16),
    encryption: view.getUint32(32),
    l1Offset: Number(view.getBigUint64(40)),
    l1Entries: view.getUint32(36),
    refcountsOffset: Number(view.getBigUint64(48)),
    refcountsClusters: view.getUint32(56),
    snapshots: view.getUint32(60),
    snapshotsOffset: Number(view.getBigUint64(64)),
    incompatible: hasFeatures ? view.getBigUint64(72) : 0n,
    autoclear: hasFeatures ? view.getBigUint64(88) : 0n,
    headerBytes: hasFeatures ? view.getUint32(100) : V2_HEADER_BYTES,
  };
}

/** A piece of the file. */
export interface Extent {
  readonly offset: number;
  readonly bytes: number;
}

export const QCOW2_ENTRY_BYTES = 8;

/** The tables whose entries name further tables: those of the second level, and the blocks of refcounts. */
export function tablesOfTables(header: Qcow2Header): Extent[] {
  const { l1Offset, l1Entries, refcountsOffset, refcountsClusters, clusterBits } = header;
  return [
    { offset: l1Offset, bytes: l1Entries * QCOW2_ENTRY_BYTES },
    { offset: refcountsOffset, bytes: refcountsClusters * 2 ** clusterBits },
  ];
}

/** More than QEMU writes of one: numbers, an identifier of up to 127 bytes, and a name of up to 255. */
const MOST_SNAPSHOT_BYTES = 2048;

/** Where the table of the snapshots is. It may end earlier, because its entries differ in length. */
export function snapshotTable({ snapshots, snapshotsOffset }: Qcow2Header): Extent {
  return { offset: snapshotsOffset, bytes: snapshots * MOST_SNAPSHOT_BYTES };
}

/** Of an entry of either level, or of the table of refcounts: where what it names is in the file. */
const OFFSET_HIGH_MASK = 0x00ff_ffff;
const OFFSET_LOW_MASK = 0xffff_fe00;
/** Bits of an entry's upper half. */
const COPIED = 0x8000_0000;
const NOT_PLAIN = 0x7f00_0000;

/** The place of the table that an entry of the first level, or of the table of refcounts, names; 0: there is none. */
export function tableOffset(high: number, low: number): number {
  return (high & OFFSET_HIGH_MASK) * 2 ** 32 + ((low & OFFSET_LOW_MASK) >>> 0);
}

/**
 * The number of the cluster in the file that holds what an entry of the second level describes, as it is; 0 for what
 * is compressed, all zeroes, in a backing file, or unknown to us.
 */
export function plainCluster(high: number, low: number, clusterBits: number): number {
  if ((high & NOT_PLAIN) !== 0 || (low & ((1 << clusterBits) - 1)) !== 0) return 0;
  return (high & OFFSET_HIGH_MASK) * 2 ** (32 - clusterBits) + (low >>> clusterBits);
}

/** What stands for zeroes in an image: entries that name nothing; and, from version 3 on, entries with a flag. */
export interface Zeroes {
  readonly unallocated: boolean;
  readonly flagged: boolean;
}

/** Without a backing file, what is not allocated is zeroes. */
export function zeroesOf({ version, backingOffset }: Qcow2Header): Zeroes {
  return { unallocated: backingOffset === 0, flagged: version >= 3 };
}

const ZERO_FLAG = 1;
const LOW_RESERVED = 0x1fe;

/** Whether what an entry of the second level describes reads as zeroes. */
export function isZero(high: number, low: number, { unallocated, flagged }: Zeroes): boolean {
  if ((high & NOT_PLAIN) !== 0 || (low & LOW_RESERVED) !== 0) return false;
  return (low & ZERO_FLAG) !== 0 ? flagged : unallocated && high === 0 && low === 0;
}

/** Whether what the entry names, a cluster or a table, belongs to it alone. */
export function isSoleOwner(high: number): boolean {
  return (high & COPIED) !== 0;
}
