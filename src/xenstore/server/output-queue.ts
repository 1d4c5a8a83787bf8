// One connection's unread output: replies and watch events, in order. It is bounded against clients that do not read.
// Replies are bounded because the connection stops reading requests; events by merging equal ones, by a limit and by
// age; both by what the whole domain has left unread.
import type { Backlog } from "./backlog.ts";
import { ENTRY_BYTES, EVENT_AGE_MS_MAX } from "../bounds.ts";

interface Entry {
  readonly bytes: Uint8Array;
  /** Identity of a mergeable watch event; undefined for a reply or for an event that must not be merged. */
  readonly key: string | undefined;
  readonly isEvent: boolean;
  readonly queuedAtMs: number;
}

export class OutputQueue {
  #entries: Entry[] = [];
  /** Bytes of the first entry that were sent already. */
  #sentOfFirst = 0;
  readonly #mergeable = new Set<string>();
  #replies = 0;
  #events = 0;
  /** This queue's share of the backlog. */
  #weight = 0;
  /** Events lost to the limits or to age. */
  droppedEvents = 0;
  readonly #now: () => number;
  readonly #backlog: Backlog;

  constructor(now: () => number, backlog: Backlog) {
    this.#now = now;
    this.#backlog = backlog;
  }

  /** Replies not completely sent. */
  get replyCount(): number {
    return this.#replies;
  }

  /** Events not completely sent. */
  get eventCount(): number {
    return this.#events;
  }

  get empty(): boolean {
    return this.#entries.length === 0;
  }

  pushReply(bytes: Uint8Array): void {
    this.#add({ bytes, key: undefined, isEvent: false, queuedAtMs: 0 });
    this.#replies++;
  }

  /** Equal events have equal `key`s; undefined: never merged. `expires`: whether age matters. */
  pushEvent(bytes: Uint8Array, key: string | undefined, limit: number, expires: boolean): void {
    if (key !== undefined && this.#mergeable.has(key)) return;
    if (expires) this.#dropOld();
    // A client that has read everything else gets this event too, because it is sent immediately.
    if (this.#events >= limit || (this.#backlog.fullOfEvents && !this.empty)) {
      this.droppedEvents++;
      return;
    }
    this.#add({ bytes, key, isEvent: true, queuedAtMs: this.#now() });
    this.#events++;
    if (key !== undefined) this.#mergeable.add(key);
  }

  /** Passes bytes to `write`, which returns how many it took, until it takes no more or nothing is left. */
  drain(write: (bytes: Uint8Array) => number): void {
    const entries = this.#entries;
    let done = 0;
    for (const entry of entries) {
      const rest = this.#sentOfFirst === 0 ? entry.bytes : entry.bytes.subarray(this.#sentOfFirst);
      const taken = write(rest);
      if (this.#entries !== entries) return; // cleared: the write found the channel dead
      if (taken > 0 && entry.key !== undefined) this.#mergeable.delete(entry.key);
      if (taken < rest.length) {
        this.#sentOfFirst += Math.max(0, taken);
        break;
      }
      this.#sentOfFirst = 0;
      this.#forget(entry);
      done++;
    }
    entries.splice(0, done);
  }

  clear(): void {
    this.#entries = [];
    this.#sentOfFirst = 0;
    this.#mergeable.clear();
    this.#replies = 0;
    this.#events = 0;
    this.#weigh(-this.#weight);
  }

  #add(entry: Entry): void {
    this.#entries.push(entry);
    this.#weigh(weight(entry));
  }

  #dropOld(): void {
    const oldest = this.#entries.find((entry) => entry.isEvent);
    const limit = this.#now() - EVENT_AGE_MS_MAX;
    if (oldest === undefined || oldest.queuedAtMs > limit) return;
    this.#entries = this.#entries.filter((entry, index) => {
      const begun = index === 0 && this.#sentOfFirst > 0;
      if (!entry.isEvent || entry.queuedAtMs > limit || begun) return true;
      if (entry.key !== undefined) this.#mergeable.delete(entry.key);
      this.#forget(entry);
      this.droppedEvents++;
      return false;
    });
  }

  #forget(entry: Entry): void {
    if (entry.isEvent) this.#events--;
    else this.#replies--;
    this.#weigh(-weight(entry));
  }

  #weigh(change: number): void {
    this.#weight += change;
    this.#backlog.change(change);
  }
}

/** The memory charged for an entry, in bytes. */
function weight({ bytes, key }: Entry): number {
  return ENTRY_BYTES + bytes.length + (key?.length ?? 0);
}
