// The parts of a qcow2 with small clusters, for tests that write one by hand.
import { readSync, writeSync } from "node:fs";

export const CLUSTER = 4096;
export const PER_TABLE = CLUSTER / 8;
/** In an entry: what it names is nobody else's. */
export const COPIED = 1n << 63n;

/** Where things are, in clusters of the file. */
export interface Header {
  readonly tables: number;
  readonly l1At: number;
  readonly refcountsAt?: number;
  readonly refcountClusters?: number;
  readonly snapshotsAt?: number;
  readonly snapshots?: number;
}

/** Writes the first cluster. */
export function writeHeader(fd: number, { tables, l1At, ...rest }: Header): void {
  const { refcountsAt = 0, refcountClusters = 0, snapshotsAt = 0, snapshots = 0 } = rest;
  const header = Buffer.alloc(CLUSTER);
  header.writeUInt32BE(0x5146_49fb, 0);
  header.writeUInt32BE(3, 4);
  header.writeUInt32BE(12, 20);
  header.writeBigUInt64BE(BigInt(tables * PER_TABLE * CLUSTER), 24);
  header.writeUInt32BE(tables, 36);
  header.writeBigUInt64BE(BigInt(l1At * CLUSTER), 40);
  header.writeBigUInt64BE(BigInt(refcountsAt * CLUSTER), 48);
  header.writeUInt32BE(refcountClusters, 56);
  header.writeUInt32BE(snapshots, 60);
  header.writeBigUInt64BE(BigInt(snapshotsAt * CLUSTER), 64);
  header.writeUInt32BE(104, 100);
  writeSync(fd, header, 0, CLUSTER, 0);
}

/** The entry that names cluster `host` of the file. */
export function entryFor(host: number, flags = COPIED): bigint {
  return BigInt(host * CLUSTER) | flags;
}

/** Reads entry number `index` of the table in cluster `table`. */
export function readEntry(fd: number, table: number, index: number): bigint {
  const bytes = Buffer.alloc(8);
  readSync(fd, bytes, 0, 8, table * CLUSTER + index * 8);
  return bytes.readBigUInt64BE();
}

export function writeEntry(fd: number, table: number, index: number, entry: bigint): void {
  const bytes = Buffer.alloc(8);
  bytes.writeBigUInt64BE(entry);
  writeSync(fd, bytes, 0, 8, table * CLUSTER + index * 8);
}
