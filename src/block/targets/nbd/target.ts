// An NBD export as a block target. When a connection is lost, the target is lost: what is under way, and everything
// after it, fails. So a guest learns from the next flush that what it wrote before may be gone (io-failures.ts of
// blkback), instead of going on without it on a server that came back.
import {
  IO_DISCARD,
  IO_FLUSH,
  IO_READ,
  IO_READV,
  IO_SECURE_DISCARD,
  IO_WRITEV,
  Timer,
  type IoOp,
  type OnEnd,
  type Reactor,
} from "../../../native/reactor.ts";
import {
  NBD_CMD_FLUSH,
  NBD_CMD_READ,
  NBD_CMD_TRIM,
  NBD_CMD_WRITE,
  NBD_FLAG_CAN_MULTI_CONN,
  NBD_FLAG_READ_ONLY,
  NBD_FLAG_SEND_FLUSH,
  NBD_FLAG_SEND_TRIM,
} from "../../../protocol/nbd.ts";
import type { BlockTarget, TargetInfo } from "../../target.ts";
import { NbdConnection, type ConnectionOwner } from "./connection.ts";
import type { SeenExport } from "./handshake.ts";
import { NbdRequests } from "./requests.ts";
import type { NbdAddress } from "./uri.ts";

const EIO = -5;
const ENOMEM = -12;
const EROFS = -30;
const EOPNOTSUPP = -95;
/** No limit of the protocol, but servers have theirs. */
const MAX_TRIM_BYTES = 1024 * 1024 * 1024;

export interface NbdTargetOptions {
  /** With a number or a path, not a name. */
  readonly address: NbdAddress;
  /** The export as it was when it was offered. What is started must be whole blocks of it. */
  readonly seen: SeenExport;
  readonly readOnly: boolean;
  /** Used only where the server says that a flush on one counts for all. */
  readonly connections: number;
  /** Operations under way at most. */
  readonly depth: number;
  /** How long the server may be silent while something is under way. */
  readonly silenceMs: number;
  /** The server is lost, and with it perhaps what it had not flushed. */
  readonly onLost?: (why: string) => void;
}

export class NbdTarget implements BlockTarget, ConnectionOwner {
  readonly info: TargetInfo;
  /** Why the server is lost. */
  failure: string | undefined;
  readonly #options: NbdTargetOptions;
  readonly #reactor: Reactor;
  readonly #source: number;
  readonly #requests: NbdRequests;
  readonly #connections: NbdConnection[] = [];
  readonly #timer = new Timer(() => this.#checkSilence());

  constructor(options: NbdTargetOptions, reactor: Reactor, onEnd: OnEnd) {
    const { seen } = options;
    this.#options = options;
    this.#reactor = reactor;
    this.#source = reactor.addSource(onEnd);
    this.info = infoOf(seen, options.readOnly);
    this.#requests = new NbdRequests(options.depth);
    const count = (seen.flags & NBD_FLAG_CAN_MULTI_CONN) === 0 ? 1 : options.connections;
    try {
      for (let number = 0; number < count; number++)
        this.#connections.push(new NbdConnection(number, options.address, reactor, this.#requests, this));
    } catch (error) {
      this.close();
      throw error;
    }
    reactor.setTimer(this.#timer, options.silenceMs);
  }

  start(op: IoOp, tag: number, offset: number, length: number, address: number): void {
    const refusal = this.#refusal(op);
    if (refusal <= 0) {
      this.#reactor.finish(this.#source, tag, refusal);
      return;
    }
    const requests = this.#requests;
    const slot = requests.take(tag, commandOf(op), offset, length);
    if (slot < 0) {
      this.#reactor.finish(this.#source, tag, ENOMEM);
      return;
    }
    const most = this.#options.seen.maxBlockBytes;
    if (op === IO_READV || op === IO_WRITEV) requests.setVectors(slot, address, length, most);
    else if (op === IO_DISCARD) this.#nextTrim(slot, length);
    else if (op !== IO_FLUSH) {
      requests.length[slot] = Math.min(length, most);
      requests.setMemory(slot, address);
    }
    this.#send(slot);
  }

  replied(slot: number): void {
    const requests = this.#requests;
    const error = requests.error[slot];
    if (error === 0 && requests.rest[slot] > 0) {
      requests.offset[slot] += requests.length[slot];
      requests.sent[slot] = 0;
      this.#nextTrim(slot, requests.rest[slot]);
      this.#send(slot);
      return;
    }
    const command = requests.command[slot];
    const transfers = command === NBD_CMD_READ || command === NBD_CMD_WRITE;
    this.#end(slot, error !== 0 ? error : transfers ? requests.length[slot] : 0);
  }

  accept(seen: SeenExport): string | undefined {
    const before = this.#options.seen;
    if (seen.sizeBytes !== before.sizeBytes)
      return `the export has ${seen.sizeBytes} bytes now, not ${before.sizeBytes}`;
    if (seen.flags !== before.flags) return "what the server can do with the export has changed";
    if (seen.minBlockBytes !== before.minBlockBytes || seen.maxBlockBytes !== before.maxBlockBytes)
      return "the export's block sizes have changed";
    return undefined;
  }

  lost(why: string): void {
    if (this.failure !== undefined) return;
    this.failure = why;
    this.#options.onLost?.(`the NBD server is lost: ${why}`);
    for (const connection of this.#connections) connection.close();
    for (let slot = 0; slot < this.#requests.slots; slot++)
      if (this.#requests.connection[slot] >= 0) this.#end(slot, EIO);
  }

  /** Leaves the server. Nothing may be under way. */
  close(): void {
    for (const connection of this.#connections) connection.close();
    this.#requests.close();
  }

  /** Positive if `op` is to be sent; otherwise its result. */
  #refusal(op: IoOp): number {
    const { flags } = this.#options.seen;
    if (this.failure !== undefined) return EIO;
    if (op === IO_READ || op === IO_READV) return 1;
    // A server without flushes promises nothing about them, and there is nothing to ask it for.
    if (op === IO_FLUSH) return flags & NBD_FLAG_SEND_FLUSH;
    if (this.info.readOnly) return EROFS;
    if (op === IO_DISCARD) return this.info.canDiscard ? 1 : EOPNOTSUPP;
    return op === IO_SECURE_DISCARD ? EOPNOTSUPP : 1;
  }

  #nextTrim(slot: number, left: number): void {
    const requests = this.#requests;
    requests.length[slot] = Math.min(left, MAX_TRIM_BYTES);
    requests.rest[slot] = left - requests.length[slot];
  }

  /** On the connection with the least to do. */
  #send(slot: number): void {
    let best = this.#connections[0];
    for (const connection of this.#connections) if (connection.inFlight < best.inFlight) best = connection;
    best.send(slot);
    if (this.#timer.dueMs === Infinity) this.#reactor.setTimer(this.#timer, this.#options.silenceMs);
  }

  #end(slot: number, result: number): void {
    const tag = this.#requests.tag[slot];
    this.#requests.release(slot);
    this.#reactor.finish(this.#source, tag, result);
  }

  #checkSilence(): void {
    if (this.failure !== undefined) return;
    const { silenceMs } = this.#options;
    let leftMs = Infinity;
    for (const { inFlight, isReady, heardMs } of this.#connections)
      if (inFlight > 0 || !isReady) leftMs = Math.min(leftMs, heardMs + silenceMs - this.#reactor.nowMs);
    if (leftMs <= 0) this.lost(`nothing came from it for ${silenceMs} ms`);
    else if (leftMs < Infinity) this.#reactor.setTimer(this.#timer, leftMs);
  }
}

/** What a guest may know of an export. */
export function infoOf(seen: SeenExport, readOnly: boolean): TargetInfo {
  const { sizeBytes, flags, minBlockBytes, preferredBlockBytes } = seen;
  const isReadOnly = readOnly || (flags & NBD_FLAG_READ_ONLY) !== 0;
  return {
    // What follows the last whole block cannot be reached.
    sizeBytes: sizeBytes - (sizeBytes % Math.max(512, minBlockBytes)),
    readOnly: isReadOnly,
    canDiscard: !isReadOnly && (flags & NBD_FLAG_SEND_TRIM) !== 0,
    canSecureDiscard: false,
    discardGranularityBytes: Math.max(512, minBlockBytes),
    physicalSectorBytes: Math.min(4096, Math.max(512, preferredBlockBytes)),
  };
}

function commandOf(op: IoOp): number {
  switch (op) {
    case IO_READ:
    case IO_READV:
      return NBD_CMD_READ;
    case IO_FLUSH:
      return NBD_CMD_FLUSH;
    case IO_DISCARD:
      return NBD_CMD_TRIM;
    default:
      return NBD_CMD_WRITE;
  }
}
