// Sends all that is in the log of writes again, in its order, to a server that may have forgotten it. Records that
// overlap follow one another; others are under way at the same time, because a server may take them in any order.
import { NBD_CMD_WRITE } from "../../../protocol/nbd.ts";
import { INTERNAL, type NbdRequests } from "./requests.ts";
import type { WriteLog } from "./write-log.ts";

/** Records under way at most. */
export const REPLAY_WINDOW = 16;

export class Replay {
  /** Records that were sent. */
  count = 0;
  readonly #log: WriteLog;
  readonly #requests: NbdRequests;
  readonly #send: (slot: number) => void;
  readonly #underWay: number[] = [];
  #at: number;

  constructor(log: WriteLog, requests: NbdRequests, send: (slot: number) => void) {
    this.#log = log;
    this.#requests = requests;
    this.#send = send;
    this.#at = log.first;
  }

  /** Sends what may be sent now. Returns whether everything has been replied to. */
  advance(): boolean {
    const log = this.#log;
    while (this.#at < log.next && this.#underWay.length < REPLAY_WINDOW) {
      const record = this.#at;
      if (!log.isVoid(record)) {
        if (this.#underWay.some((other) => this.#overlap(record, other))) break;
        this.#underWay.push(record);
        this.#send(this.#slotFor(record));
        this.count++;
      }
      this.#at++;
    }
    return this.#at === log.next && this.#underWay.length === 0;
  }

  /** `record` has been replied to. */
  answered(record: number): void {
    this.#underWay.splice(this.#underWay.indexOf(record), 1);
  }

  /** That of the request that the guest still waits for, or another one. */
  #slotFor(record: number): number {
    const log = this.#log;
    const requests = this.#requests;
    const waiting = log.slot(record);
    const command = log.command(record);
    const offset = log.offset(record);
    const length = log.length(record);
    const slot = waiting >= 0 ? waiting : requests.take(INTERNAL, command, offset, length);
    requests.record[slot] = record;
    if (command === NBD_CMD_WRITE) requests.setMemory(slot, log.address(record));
    return slot;
  }

  #overlap(one: number, other: number): boolean {
    const log = this.#log;
    const from = log.offset(one);
    const to = log.offset(other);
    return from < to + log.length(other) && to < from + log.length(one);
  }
}
