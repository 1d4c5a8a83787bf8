// The trees that guests' transactions started from, oldest first. Each keeps alive everything that was replaced since.
// Those that fall too far behind are therefore dropped, and their transactions must be repeated as after any conflict.
// A domain that holds several loses its older ones much earlier than its newest.
import { LAG_MAX, NEWEST_LAG_MAX } from "../bounds.ts";

export interface Snapshot {
  /** The domain that owns it. */
  readonly domain: object;
  /** StoreTree.turnover when the snapshot was taken. */
  readonly turnover: number;
  /** Releases its trees. It has been removed from the snapshots before. */
  expire(): void;
}

export class Snapshots {
  readonly #oldestFirst = new Set<Snapshot>();
  readonly #newest = new Map<object, Snapshot>();

  get count(): number {
    return this.#oldestFirst.size;
  }

  add(snapshot: Snapshot): void {
    this.#oldestFirst.add(snapshot);
    this.#newest.set(snapshot.domain, snapshot);
  }

  delete(snapshot: Snapshot): void {
    this.#oldestFirst.delete(snapshot);
    if (this.#isNewest(snapshot)) this.#newest.delete(snapshot.domain);
  }

  /** Drops the snapshots that are too far behind a tree with this turnover. */
  trim(turnover: number): void {
    for (const snapshot of this.#oldestFirst) {
      const lag = turnover - snapshot.turnover;
      if (lag <= LAG_MAX) break;
      if (lag <= NEWEST_LAG_MAX && this.#isNewest(snapshot)) continue;
      this.delete(snapshot);
      snapshot.expire();
    }
  }

  #isNewest(snapshot: Snapshot): boolean {
    return this.#newest.get(snapshot.domain) === snapshot;
  }
}
