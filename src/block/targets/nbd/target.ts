// An NBD export as a block target that loses nothing when its server dies. What the guest writes is in the log of
// writes (write-log.ts) until a flush has made it stable. When a connection is lost, all are made anew (link.ts), the
// log is sent again in its order (replay.ts), and only then comes what waits. So the guest sees latency, nothing else.
import {
  IO_DISCARD,
  IO_FLUSH,
  IO_READ,
  IO_READV,
  IO_SECURE_DISCARD,
  IO_WRITEV,
  type IoOp,
  type OnEnd,
  type Reactor,
} from "../../../native/reactor.ts";
import { moduleLogger } from "../../../core/log.ts";
import { errnoText } from "../../../native/shim.ts";
import {
  NBD_CMD_FLUSH,
  NBD_CMD_READ,
  NBD_CMD_TRIM,
  NBD_CMD_WRITE,
  NBD_ESHUTDOWN,
  NBD_FLAG_READ_ONLY,
  NBD_FLAG_SEND_FLUSH,
  NBD_FLAG_SEND_TRIM,
} from "../../../protocol/nbd.ts";
import type { BlockTarget, TargetInfo } from "../../target.ts";
import { mostAtOnce } from "./export-check.ts";
import { FlushRounds } from "./flush-rounds.ts";
import type { SeenExport } from "./handshake.ts";
import { NbdLink, type LinkOptions, type LinkOwner } from "./link.ts";
import { Replay, REPLAY_WINDOW } from "./replay.ts";
import { INTERNAL, NbdRequests, NO_RECORD } from "./requests.ts";
import type { WriteLog } from "./write-log.ts";
import { counted } from "../../../core/counted.ts";

const logger = moduleLogger("nbd");

const EIO = -5;
const ENOMEM = -12;
const EROFS = -30;
const EOPNOTSUPP = -95;
/** The largest trim in one command. The protocol has no limit, but servers have theirs. */
const MAX_TRIM_BYTES = 1024 * 1024 * 1024;

/** What is started must be whole blocks of the export. */
export interface NbdTargetOptions extends LinkOptions {
  readonly readOnly: boolean;
  /** Operations under way at most. */
  readonly depth: number;
  /** Where what is not stable at the server is kept; an export that is only read needs none. */
  readonly log: WriteLog | undefined;
}

export class NbdTarget implements BlockTarget, LinkOwner {
  readonly info: TargetInfo;
  readonly #flags: number;
  readonly #mostBytes: number;
  readonly #reactor: Reactor;
  readonly #source: number;
  readonly #requests: NbdRequests;
  readonly #log: WriteLog | undefined;
  readonly #link: NbdLink;
  readonly #flushes: FlushRounds;
  /** Requests that wait for the server, or for room in the log; in their order. */
  #waiting: number[] = [];
  #replay: Replay | undefined;
  #isServing = false;
  #servings = 0;

  constructor(options: NbdTargetOptions, reactor: Reactor, onEnd: OnEnd) {
    const { seen, depth, log } = options;
    this.#flags = seen.flags;
    this.#mostBytes = mostAtOnce(seen);
    this.#reactor = reactor;
    this.#log = log;
    this.#source = reactor.addSource(onEnd);
    this.info = infoOf(seen, options.readOnly);
    // Besides the guest's, those that are sent again, and a flush for each connection.
    this.#requests = new NbdRequests(depth + REPLAY_WINDOW + options.connections);
    this.#link = new NbdLink(options, reactor, this.#requests, this);
    this.#flushes = new FlushRounds(this.#requests, this.#link, (slots, error) =>
      this.#flushed(slots, error),
    );
    // What a former target has left there may not have been replied to, or not all of it.
    this.#link.open(log?.isEmpty === false);
  }

  /** Why the server is not there. */
  get failure(): string | undefined {
    return this.#link.failure;
  }

  /** False while the server is not there: what is started now waits. */
  get isServing(): boolean {
    return this.#isServing;
  }

  /** How often the server has begun to serve: another number, and it may have lost what it did not flush. */
  get servings(): number {
    return this.#servings;
  }

  /** The number of the last flush that succeeded. */
  get flushed(): number {
    return this.#flushes.done;
  }

  /** Whether something has been written or trimmed, perhaps in part, that no flush has made stable at the server. */
  get hasUnstable(): boolean {
    return this.#log?.isEmpty === false;
  }

  /** Calls `visit` for the range of each such change. */
  forEachUnstable(visit: (offset: number, length: number) => void): void {
    this.#log?.forEach(visit);
  }

  /** The server is not there, and nothing comes from it any more: what has been started can only be sent again. */
  get isStuck(): boolean {
    return !this.#isServing && !this.#link.isEnding;
  }

  /** The server has been given up, and may still reply. */
  get isEnding(): boolean {
    return this.#link.isEnding;
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
    if (op === IO_READV || op === IO_WRITEV) requests.setVectors(slot, address, length, this.#mostBytes);
    else if (op === IO_DISCARD) this.#nextTrim(slot, length);
    else if (op !== IO_FLUSH) {
      requests.length[slot] = Math.min(length, this.#mostBytes);
      requests.setMemory(slot, address);
    }
    const queues = this.#waiting.length > 0 && requests.changes(slot);
    if (queues || !this.#goOn(slot)) this.#waiting.push(slot);
  }

  replied(slot: number): void {
    const requests = this.#requests;
    const error = requests.error[slot];
    if (error === -NBD_ESHUTDOWN) {
      this.#link.fail("the server is shutting down");
      return this.#putBack(slot);
    }
    if (requests.command[slot] === NBD_CMD_FLUSH) return this.#flushes.replied(slot);
    if (requests.changes(slot) && !this.#changed(slot)) return this.#putBack(slot);
    if (requests.tag[slot] === INTERNAL) requests.release(slot);
    else if (error === 0 && requests.rest[slot] > 0) {
      requests.offset[slot] += requests.length[slot];
      requests.detach(slot);
      this.#nextTrim(slot, requests.rest[slot]);
      if (!this.#goOn(slot)) this.#waiting.push(slot);
    } else {
      const transfers = requests.command[slot] !== NBD_CMD_TRIM;
      this.#end(slot, error !== 0 ? error : transfers ? requests.length[slot] : 0);
    }
    if (this.#replay !== undefined) this.#advance(this.#replay);
    else if (this.#waiting.length > 0) this.#goOnWithWaiting();
  }

  up(): void {
    const [first] = this.#link.connections;
    if (this.#log === undefined) return this.#serve(0);
    // All on the connection that was there first: when it has replied, the server is still the one that the others
    // were made to, too.
    const canTrim = (this.#flags & NBD_FLAG_SEND_TRIM) !== 0;
    const how = { mostBytes: this.#mostBytes, canTrim, round: this.#nextRound };
    this.#replay = new Replay(this.#log, this.#requests, how, (slot) => this.#link.sendOn(first, slot));
    this.#advance(this.#replay);
  }

  ending(): void {
    this.#isServing = false;
    this.#replay = undefined;
  }

  down(): void {
    this.#waiting.push(...this.#flushes.down());
    const { connection, slots } = this.#requests;
    for (let slot = 0; slot < slots; slot++) if (connection[slot] >= 0) this.#putBack(slot);
  }

  gaveUp(): void {
    this.#isServing = false;
    const { tag, slots } = this.#requests;
    for (let slot = 0; slot < slots; slot++) if (tag[slot] >= 0) this.#end(slot, EIO);
    this.#waiting = [];
  }

  /** Sets the longest wait from now on for a server that is not there. */
  limitHold(ms: number): void {
    this.#link.limitHold(ms);
  }

  /** Sets the longest that a server that is there may be silent from now on. */
  limitSilence(ms: number): void {
    this.#link.limitSilence(ms);
  }

  /** Has the disk left to another server of it: replies of one that has been given up are waited for `ms` at most. */
  limitEnding(ms: number): void {
    this.#link.limitEnding(ms);
    // What is being sent again must not be carried out after newer writes of the other one.
    if (this.#replay !== undefined) this.#link.fail("the disk is left to another server");
  }

  /** Ends all connections, and gives up what is under way. `isOver`: no other server of the same disk is to go on. */
  close(isOver: boolean): void {
    this.#link.close();
    this.#log?.close(isOver);
    this.#requests.close();
  }

  /** Positive if `op` is to be sent; otherwise its result. */
  #refusal(op: IoOp): number {
    if (this.#link.isOver) return EIO;
    if (op === IO_READ || op === IO_READV) return 1;
    // A server without flushes promises nothing about them, and there is nothing to ask it for: its replies count.
    if (op === IO_FLUSH) return this.#flushes.errno === 0 ? this.#flags & NBD_FLAG_SEND_FLUSH : EIO;
    if (this.info.readOnly || this.#log === undefined) return EROFS;
    if (op === IO_DISCARD && !this.info.canDiscard) return EOPNOTSUPP;
    return op === IO_SECURE_DISCARD ? EOPNOTSUPP : 1;
  }

  /** Sends the request in `slot`, if the server is there and the log has room. */
  #goOn(slot: number): boolean {
    if (!this.#isServing) return false;
    const requests = this.#requests;
    if (requests.command[slot] === NBD_CMD_FLUSH) this.#flushes.ask(slot);
    else if (!requests.changes(slot)) this.#link.send(slot);
    else return this.#change(slot);
    return true;
  }

  /** Copies a change into the log, and sends it from there. */
  #change(slot: number): boolean {
    const log = this.#log as WriteLog;
    const requests = this.#requests;
    const { command, offset, length } = requests;
    // After a failed flush nothing leaves the log any more, so there might never be room.
    if (this.#flushes.errno !== 0) {
      this.#end(slot, EIO);
      return true;
    }
    if (!log.reserve(command[slot], offset[slot], length[slot])) {
      this.#shorten();
      return false;
    }
    if (command[slot] === NBD_CMD_WRITE) {
      const to = log.address(log.next);
      requests.copyTo(slot, to);
      requests.setMemory(slot, to);
    }
    requests.record[slot] = log.commit(slot);
    this.#link.send(slot);
    if (log.isHalfFull) this.#shorten();
    return true;
  }

  /** Of a server without flushes, the log becomes shorter with each reply. */
  #shorten(): void {
    if ((this.#flags & NBD_FLAG_SEND_FLUSH) !== 0) this.#flushes.want();
  }

  /** Has the request in `slot`, which no connection carries any more, sent again. */
  #putBack(slot: number): void {
    const requests = this.#requests;
    if (requests.tag[slot] === INTERNAL) return requests.release(slot);
    requests.detach(slot);
    // What has a record is sent again with the others.
    if (requests.record[slot] === NO_RECORD) this.#waiting.push(slot);
  }

  /** The flush that will make stable what has been replied to; a server without flushes has done that itself. */
  get #nextRound(): number {
    return this.#flags & NBD_FLAG_SEND_FLUSH ? this.#flushes.next : 0;
  }

  /** Takes the reply to a change. False: the server cannot be used any more. */
  #changed(slot: number): boolean {
    const log = this.#log as WriteLog;
    const requests = this.#requests;
    const record = requests.record[slot];
    const error = requests.error[slot];
    const isAgain = requests.tag[slot] === INTERNAL;
    // A trim may be left undone: nobody relies on what its range holds afterwards.
    if (error !== 0 && isAgain && requests.command[slot] === NBD_CMD_WRITE) {
      this.#link.fail(`it does not take again what it had taken before: ${errnoText(error)}`);
      return false;
    }
    requests.record[slot] = NO_RECORD;
    // Other pieces of it may be under way, or all of it is sent once more on the next connection.
    const isWhole = this.#replay?.answered(record) ?? !isAgain;
    if (!isWhole) return true;
    if (error !== 0) log.refused(record, this.#nextRound);
    else log.answered(record, this.#nextRound);
    log.settle(this.#flushes.done);
    return true;
  }

  #advance(replay: Replay): void {
    if (replay.advance()) this.#serve(replay.count);
  }

  /** Sends what waits, now that the server has everything that it may have forgotten. */
  #serve(sentAgain: number): void {
    this.#replay = undefined;
    // Of a server without flushes, no reply may be awaited that would drop what was not sent again.
    this.#log?.settle(this.#flushes.done);
    this.#isServing = true;
    this.#servings++;
    if (sentAgain > 0) logger.info(`${counted(sentAgain, "write")} sent again that nothing had flushed`);
    this.#link.settled();
    this.#goOnWithWaiting();
  }

  #goOnWithWaiting(): void {
    this.#waiting = this.#waiting.filter((slot) => !this.#goOn(slot));
  }

  #flushed(slots: readonly number[], error: number): void {
    for (const slot of slots) this.#end(slot, error);
    if (error === 0) this.#log?.settle(this.#flushes.done);
    this.#goOnWithWaiting();
  }

  #nextTrim(slot: number, left: number): void {
    const requests = this.#requests;
    requests.length[slot] = Math.min(left, MAX_TRIM_BYTES);
    requests.rest[slot] = left - requests.length[slot];
  }

  #end(slot: number, result: number): void {
    const tag = this.#requests.tag[slot];
    this.#requests.release(slot);
    this.#reactor.finish(this.#source, tag, result);
  }
}

/** An export as a guest may see it. */
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
