// Sends all that is in the log of writes again, in its order, to a server that may have forgotten it. Records that
// overlap follow one another; others are under way at the same time, because a server may take them in any order. A
// record that a former server of the disk left may be more than this NBD server takes at once, and is sent in pieces.
import { NBD_CMD_TRIM, NBD_CMD_WRITE } from "../../../protocol/nbd.ts";
import { INTERNAL, type NbdRequests } from "./requests.ts";
import type { WriteLog } from "./write-log.ts";

/** Records under way at most. */
export const REPLAY_WINDOW = 16;

export interface ReplayOptions {
  /** The largest payload of a request. */
  readonly mostBytes: number;
  /** False: trims are left out, because nobody relies on what they leave. */
  readonly canTrim: boolean;
  /** The flush that makes stable what was done, perhaps in part, of records that are left out. */
  readonly round: number;
}

export class Replay {
  /** Records that were sent. */
  count = 0;
  readonly #log: WriteLog;
  readonly #requests: NbdRequests;
  readonly #options: ReplayOptions;
  readonly #send: (slot: number) => void;
  /** The records of requests under way: of one in pieces, as often as there are pieces. */
  readonly #underWay: number[] = [];
  /** The next record to be sent, and how much of it has been. */
  #at: number;
  #sentBytes = 0;

  constructor(log: WriteLog, requests: NbdRequests, options: ReplayOptions, send: (slot: number) => void) {
    this.#log = log;
    this.#options = options;
    this.#requests = requests;
    this.#send = send;
    this.#at = log.first;
    log.forgetReplies();
  }

  /** Sends what may be sent now. Returns whether everything has been replied to. */
  advance(): boolean {
    const log = this.#log;
    while (this.#at < log.next && this.#underWay.length < REPLAY_WINDOW) {
      const record = this.#at;
      if (this.#isLeftOut(record)) {
        // What a former server of the disk left may be half done at this very NBD server.
        log.refused(record, this.#options.round);
        this.#next();
      } else if (this.#underWay.some((other) => other !== record && this.#overlap(record, other))) break;
      else this.#sendSome(record);
    }
    return this.#at === log.next && this.#underWay.length === 0;
  }

  /** Takes the reply to a request of `record`. Returns whether all of the record has been replied to. */
  answered(record: number): boolean {
    this.#underWay.splice(this.#underWay.indexOf(record), 1);
    return record !== this.#at && !this.#underWay.includes(record);
  }

  #isLeftOut(record: number): boolean {
    const log = this.#log;
    return log.isVoid(record) || (!this.#options.canTrim && log.command(record) === NBD_CMD_TRIM);
  }

  #next(): void {
    this.#at++;
    this.#sentBytes = 0;
  }

  #sendSome(record: number): void {
    const log = this.#log;
    const isWrite = log.command(record) === NBD_CMD_WRITE;
    const left = log.length(record) - this.#sentBytes;
    const length = isWrite ? Math.min(left, this.#options.mostBytes) : left;
    const slot = this.#slotFor(record, length);
    if (isWrite) this.#requests.setMemory(slot, log.address(record) + this.#sentBytes);
    this.#underWay.push(record);
    this.#sentBytes += length;
    if (length === left) {
      this.count++;
      this.#next();
    }
    this.#send(slot);
  }

  /**
   * The slot of the request that the guest still waits for, if this server can take it as it is; otherwise another
   * one.
   */
  #slotFor(record: number, length: number): number {
    const log = this.#log;
    const requests = this.#requests;
    const waiting = log.slot(record);
    const at = log.offset(record) + this.#sentBytes;
    const slot = waiting >= 0 ? waiting : requests.take(INTERNAL, log.command(record), at, length);
    requests.record[slot] = record;
    return slot;
  }

  #overlap(one: number, other: number): boolean {
    const log = this.#log;
    const from = log.offset(one);
    const to = log.offset(other);
    return from < to + log.length(other) && to < from + log.length(one);
  }
}
