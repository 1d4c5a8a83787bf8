// Turns: a domain's connections together are served for a short while, then all other domains come first.
// Counted for the domain, not for the connection: it may have as many of those as it likes.

/** Requests served in a row. */
const TURN_REQUESTS = 64;
/** Time that they may take: one request can be a thousand times the work of another. */
const TURN_MS = 2;

/** Who waits for a turn. */
export interface Waiter {
  takeTurn(): void;
}

export class Turns {
  #requests = 0;
  #ms = 0;
  readonly #waiting = new Set<Waiter>();
  /** Whether the next turn is on its way. */
  #announced = false;

  /** Whether nothing more of the domain is served before others were. */
  get over(): boolean {
    return this.#requests >= TURN_REQUESTS || this.#ms >= TURN_MS;
  }

  /** A request was served and took `ms`. */
  spend(ms: number): void {
    this.#requests++;
    this.#ms += ms;
  }

  /** Has `waiter` take its turn, after those who wait already. */
  wait(waiter: Waiter): void {
    this.#waiting.add(waiter);
    this.#announce();
  }

  isWaiting(waiter: Waiter): boolean {
    return this.#waiting.has(waiter);
  }

  leave(waiter: Waiter): void {
    this.#waiting.delete(waiter);
  }

  #announce(): void {
    if (this.#announced) return;
    this.#announced = true;
    setImmediate(() => this.#begin());
  }

  #begin(): void {
    this.#announced = false;
    this.#requests = 0;
    this.#ms = 0;
    for (const waiter of this.#waiting) {
      if (this.over) break;
      this.#waiting.delete(waiter);
      waiter.takeTurn();
    }
    if (this.#waiting.size > 0) this.#announce();
  }
}
