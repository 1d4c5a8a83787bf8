// Counts the bytes queued on all of a domain's connections together, waiting to be read by the domain or by us, and
// keeps the connections that wait for the count to drop. Limits per connection would bound little: a domain has
// hundreds of connections.
import type { Turns, Waiter } from "./turns.ts";

export class Backlog {
  readonly #limit: () => number;
  readonly #turns: Turns;
  readonly #waiting = new Set<Waiter>();
  #bytes = 0;

  /** `limit` returns the bytes currently allowed. A waiter that may continue takes one of the `turns`. */
  constructor(limit: () => number, turns: Turns) {
    this.#limit = limit;
    this.#turns = turns;
  }

  /** Nothing more is accepted. */
  get full(): boolean {
    return this.#bytes >= this.#limit();
  }

  /** No more room for events. They get only half, so that clients that watch but never read cannot fill it. */
  get fullOfEvents(): boolean {
    return this.#bytes >= this.#limit() / 2;
  }

  /** Adds `bytes`, which may be negative, to the count. */
  change(bytes: number): void {
    this.#bytes += bytes;
    if (this.#waiting.size === 0 || this.full) return;
    for (const waiter of this.#waiting) this.#turns.wait(waiter);
    this.#waiting.clear();
  }

  /** Lets `waiter` take a turn once there is room. */
  wait(waiter: Waiter): void {
    this.#waiting.add(waiter);
  }

  leave(waiter: Waiter): void {
    this.#waiting.delete(waiter);
  }
}
