// A qcow2 image as a block target. A storage daemon has it open, and alone changes its tables; to us it is an NBD
// export. But the bytes of a cluster that the daemon has put in place, and flushed, we read and write ourselves, in the
// same file: without a second program between the guest and its data. What is to be allocated, copied, decompressed or
// trimmed, and whatever else is not plain, goes through the daemon, and so does everything while that is not there.
//
// A cluster is in the map (cluster-map.ts) only while the daemon has nothing to do with it: what it is sent for a
// cluster makes that forgotten, until a flush has written the daemon's tables. So the log of writes, which is sent
// again to a new daemon, never holds an older write than one of ours to the same place. And no cluster is freed, and
// then used for something else, while an operation of ours on it is under way: changes by the daemon wait for those.
import { allocateMemory } from "../../../native/memory.ts";
import {
  IO_DISCARD,
  IO_FLUSH,
  IO_READ,
  IO_READV,
  IO_SECURE_DISCARD,
  IO_WRITE,
  IO_WRITEV,
  type IoOp,
  type OnEnd,
  type Reactor,
} from "../../../native/reactor.ts";
import { shim, type Pointer } from "../../../native/shim.ts";
import type { BlockTarget, ClosableTarget, TargetInfo } from "../../target.ts";
import type { NbdTarget } from "../nbd/target.ts";
import { Vectors } from "../nbd/vectors.ts";
import { MAX_QCOW2_CLUSTER_BYTES } from "../../../protocol/qcow2.ts";
import { NOWHERE, type ClusterMap } from "./cluster-map.ts";
import { Operations } from "./operations.ts";
import { TableReader, type Changes, type TableFile } from "./table-reader.ts";

const ENOMEM = -12;
/** Put where zeroes are read, as often as it takes. */
const ZEROES_BYTES = 64 * 1024;

/** What an NBD target says about what its server may not have written yet. */
export type Daemon = Pick<
  NbdTarget,
  "isServing" | "servings" | "flushed" | "hasUnstable" | "forEachUnstable"
>;

export interface ServerTarget<D extends Daemon = NbdTarget> {
  readonly target: ClosableTarget;
  /** What knows about the server that it leads to. */
  readonly remote: D;
}

export interface Qcow2TargetOptions<D extends Daemon> {
  readonly file: TableFile;
  /** Opens the target that leads to the daemon. It copies the iovecs of an operation when it starts. */
  readonly openDaemon: (onEnd: OnEnd) => ServerTarget<D>;
  /** Operations under way at most. */
  readonly depth: number;
}

export class Qcow2Target<D extends Daemon = NbdTarget> implements BlockTarget, Changes {
  readonly info: TargetInfo;
  readonly daemon: D;
  readonly #reactor: Reactor;
  readonly #onEnd: OnEnd;
  readonly #source: number;
  readonly #outcomes: number;
  readonly #file: number;
  readonly #through: ClosableTarget;
  readonly #tables: TableReader;
  readonly #operations: Operations;
  readonly #zeroes = allocateMemory(ZEROES_BYTES);
  /** By operation, once needed: the iovecs of the part of it that is done at once. */
  readonly #vectors: Vectors[] = [];
  /** Changes for the daemon that wait until nothing of ours is under way where they are. */
  #held: number[] = [];
  #servings = 0;

  constructor({ file, openDaemon, depth }: Qcow2TargetOptions<D>, reactor: Reactor, onEnd: OnEnd) {
    this.#reactor = reactor;
    this.#onEnd = onEnd;
    const { target, remote } = openDaemon((slot, result) => this.#ended(slot, result));
    this.#through = target;
    this.daemon = remote;
    this.info = target.info;
    this.#file = file.file;
    this.#source = reactor.addSource((slot, result) => this.#fileEnded(slot, result));
    this.#outcomes = reactor.addSource(onEnd);
    this.#operations = new Operations(depth);
    this.#tables = new TableReader(file, this, reactor);
  }

  start(op: IoOp, tag: number, offset: number, length: number, address: number): void {
    const slot = this.#operations.take(tag, op);
    if (slot < 0) this.#reactor.finish(this.#outcomes, tag, ENOMEM);
    else if (op === IO_FLUSH) this.#flush(slot);
    else if (op === IO_DISCARD || op === IO_SECURE_DISCARD) this.#change(slot, op, offset, length, length, 0);
    else if (op === IO_READ || op === IO_WRITE) this.#transfer(slot, op, offset, length, address);
    else this.#transferVectors(slot, op, offset, length, address);
  }

  get flushed(): number {
    return this.daemon.flushed;
  }

  forEachUnstable(visit: (offset: number, length: number) => void): void {
    this.daemon.forEachUnstable(visit);
    this.#operations.forEachChangeOnDaemon(visit);
  }

  /** As in NbdTarget. */
  close(isOver: boolean): void {
    this.#through.close(isOver);
    this.#tables.close();
    this.#zeroes.close();
    // Operations on the file may be under way when the daemon is gone for good.
    for (const vectors of this.#vectors) if (vectors !== undefined) this.#reactor.closeLast(vectors);
  }

  #transfer(
    slot: number,
    op: typeof IO_READ | typeof IO_WRITE,
    offset: number,
    most: number,
    address: number,
  ): void {
    const run = this.#locate(offset, most, op === IO_WRITE);
    if (run > 0 && this.#isNowhere) this.#readZeroes(slot, run, address);
    else if (run > 0) this.#startOnFile(slot, op, offset, run, run, address);
    else this.#startOnDaemon(slot, op, offset, -run, -run, address);
  }

  #transferVectors(
    slot: number,
    op: typeof IO_READV | typeof IO_WRITEV,
    offset: number,
    count: number,
    address: number,
  ): void {
    const vectors = (this.#vectors[slot] ??= new Vectors());
    const run = this.#locate(offset, vectors.load(address, count), op === IO_WRITEV);
    const used = vectors.cut(Math.abs(run));
    if (run > 0 && this.#isNowhere) this.#readVectorsOfZeroes(slot, run, used, vectors);
    else if (run > 0) this.#startOnFile(slot, op, offset, run, used, vectors.address);
    else this.#startOnDaemon(slot, op, offset, -run, used, vectors.address);
  }

  /** As `ClusterMap.locate`; has what is not known looked up for the next time. */
  #locate(offset: number, length: number, writes: boolean): number {
    const map = this.#map();
    if (map === undefined) return -length;
    const run = map.locate(offset, length, writes);
    if (run < 0) {
      const table = map.tableOf(offset);
      if (map.isWorthReading(table, this.flushed)) this.#tables.want(table);
    }
    return run;
  }

  /** None while the daemon is not there: until it is back, somebody else may have the image. */
  #map(): ClusterMap | undefined {
    const { isServing, servings } = this.daemon;
    if (isServing && servings !== this.#servings) {
      this.#servings = servings;
      this.#tables.restart();
    }
    return isServing ? this.#tables.map : undefined;
  }

  /** Whether the run that `#locate` has found is of zeroes. */
  get #isNowhere(): boolean {
    return this.#tables.map?.position === NOWHERE;
  }

  #readZeroes(slot: number, bytes: number, address: number): void {
    this.#putZeroes(address, bytes);
    this.#reactor.finish(this.#source, slot, bytes);
  }

  #readVectorsOfZeroes(slot: number, bytes: number, count: number, vectors: Vectors): void {
    for (let i = 0; i < count; i++) this.#putZeroes(vectors.from(i), vectors.size(i));
    this.#reactor.finish(this.#source, slot, bytes);
  }

  #putZeroes(address: number, bytes: number): void {
    const zeroes = this.#zeroes;
    for (let at = 0; at < bytes; at += zeroes.sizeBytes) {
      const count = Math.min(zeroes.sizeBytes, bytes - at);
      shim.xt_memory_copy((address + at) as Pointer, zeroes.address as Pointer, count);
    }
  }

  #startOnFile(slot: number, op: IoOp, offset: number, bytes: number, length: number, address: number): void {
    const { position } = this.#tables.map as ClusterMap;
    this.#operations.onFile(slot, offset, bytes);
    this.#reactor.start(this.#source, slot, this.#file, op, position, length, address);
  }

  #startOnDaemon(
    slot: number,
    op: IoOp,
    offset: number,
    bytes: number,
    length: number,
    address: number,
  ): void {
    if (op === IO_READ || op === IO_READV) this.#through.start(op, slot, offset, length, address);
    else this.#change(slot, op, offset, bytes, length, address);
  }

  /** From now on, where these bytes are is the daemon's matter. */
  #change(slot: number, op: IoOp, offset: number, bytes: number, length: number, address: number): void {
    this.#operations.onDaemon(slot, offset, bytes);
    this.#tables.map?.forget(offset, bytes);
    if (this.#isUnderWay(slot)) {
      this.#operations.keep(slot, length, address);
      this.#held.push(slot);
    } else this.#through.start(op, slot, offset, length, address);
  }

  /** Both: the daemon writes its tables and what it was sent, we what we have written ourselves. */
  #flush(slot: number): void {
    const { isServing, hasUnstable } = this.daemon;
    const asksDaemon = !isServing || hasUnstable;
    this.#operations.parts[slot] = asksDaemon ? 2 : 1;
    if (asksDaemon) this.#through.start(IO_FLUSH, slot, 0, 0, 0);
    this.#reactor.start(this.#source, slot, this.#file, IO_FLUSH, 0, 0, 0);
  }

  #fileEnded(slot: number, result: number): void {
    this.#ended(slot, result);
    if (this.#held.length > 0) this.#goOnWithHeld();
  }

  #ended(slot: number, result: number): void {
    const operations = this.#operations;
    const { tag, parts, error } = operations;
    if (result < 0) error[slot] ||= result;
    if (--parts[slot] > 0) return;
    const outcome = error[slot] === 0 ? result : error[slot];
    const of = tag[slot];
    operations.release(slot);
    this.#onEnd(of, outcome);
  }

  #goOnWithHeld(): void {
    const { op, offset, extent, address } = this.#operations;
    this.#held = this.#held.filter((slot) => {
      if (this.#isUnderWay(slot)) return true;
      this.#through.start(op[slot] as IoOp, slot, offset[slot], extent[slot], address[slot]);
      return false;
    });
  }

  /** Whether something of ours is under way in the clusters of a change. */
  #isUnderWay(slot: number): boolean {
    const bytes = this.#tables.map?.clusterBytes;
    return this.#operations.meetsOneOnFile(slot, bytes ?? MAX_QCOW2_CLUSTER_BYTES);
  }
}
