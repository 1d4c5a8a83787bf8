// The trees that guests' transactions began with, oldest first. Each keeps alive what has been replaced since, so
// those that fall too far behind are given up: their transactions have to be done again, as after any conflict.
// A domain that holds several loses the older ones much earlier than one that holds a single one.

/** How much the tree may turn over (StoreTree.turnover) after a domain's newest snapshot, and after its other ones. */
const NEWEST_LAG_MAX = 32 * 1024 * 1024;
const LAG_MAX = 8 * 1024 * 1024;

export interface Snapshot {
  /** Whose it is. */
  readonly domain: object;
  /** StoreTree.turnover when it was taken. */
  readonly turnover: number;
  /** Lets go of its trees. It is no longer among the snapshots. */
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

  /** Gives up those that are too far behind a tree with this turnover. */
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
