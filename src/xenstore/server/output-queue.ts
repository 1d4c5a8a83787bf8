// What one connection has yet to take: replies, and watch events, both in order. Bounded against clients
// that do not read: replies by not reading further requests (the connection sees to that), events by
// merging equal ones, by a limit, and by age; both by what the whole domain has left unread.
import type { Backlog } from "./backlog.ts";

interface Entry {
  readonly bytes: Uint8Array;
  /** Identity of a watch event that may be merged; undefined: a reply, or an event that counts each time. */
  readonly key: string | undefined;
  readonly isEvent: boolean;
  readonly queuedAtMs: number;
}

/** As C xenstored: events that a domain left unread for so long are thrown away when new ones come. */
const EVENT_AGE_MS_MAX = 20_000;

/** About what an entry takes beside its bytes. */
const ENTRY_BYTES = 256;

export class OutputQueue {
  #entries: Entry[] = [];
  /** Bytes of the first entry that are out already. */
  #sentOfFirst = 0;
  readonly #mergeable = new Set<string>();
  #replies = 0;
  #events = 0;
  /** This queue's part of the backlog. */
  #weight = 0;
  /** Events lost to the limits or to their age. */
  droppedEvents = 0;
  readonly #now: () => number;
  readonly #backlog: Backlog;

  constructor(now: () => number, backlog: Backlog) {
    this.#now = now;
    this.#backlog = backlog;
  }

  /** Replies that are not wholly out. */
  get replyCount(): number {
    return this.#replies;
  }

  /** Events that are not wholly out. */
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

  /** `key`: equal events have equal keys; undefined: never merged. `expires`: whether age matters. */
  pushEvent(bytes: Uint8Array, key: string | undefined, limit: number, expires: boolean): void {
    if (key !== undefined && this.#mergeable.has(key)) return;
    if (expires) this.#dropOld();
    // Who has taken all the rest is given this one too: it is on its way at once.
    if (this.#events >= limit || (this.#backlog.fullOfEvents && !this.empty)) {
      this.droppedEvents++;
      return;
    }
    this.#add({ bytes, key, isEvent: true, queuedAtMs: this.#now() });
    this.#events++;
    if (key !== undefined) this.#mergeable.add(key);
  }

  /** Gives bytes to `write`, which answers how many it took, until it takes no more or nothing is left. */
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

/** The memory that an entry is counted as. */
function weight({ bytes, key }: Entry): number {
  return ENTRY_BYTES + bytes.length + (key?.length ?? 0);
}
