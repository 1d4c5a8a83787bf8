// How much of a domain waits in all its connections together, to be read by the domain or by us, and who of them
// waits until it is less. The limits of a connection alone bound nothing much: a domain has hundreds of them.
import type { Turns, Waiter } from "./turns.ts";

export class Backlog {
  readonly #limit: () => number;
  readonly #turns: Turns;
  readonly #waiting = new Set<Waiter>();
  #bytes = 0;

  /** `limit`: the bytes that are allowed at the moment. Who waited gets one of the `turns`. */
  constructor(limit: () => number, turns: Turns) {
    this.#limit = limit;
    this.#turns = turns;
  }

  /** Nothing more is taken on. */
  get full(): boolean {
    return this.#bytes >= this.#limit();
  }

  /** No room for events: with half of it, those who only watch and do not read never fill it. */
  get fullOfEvents(): boolean {
    return this.#bytes >= this.#limit() / 2;
  }

  /** There are so many bytes more, or less when it is negative. */
  change(bytes: number): void {
    this.#bytes += bytes;
    if (this.#waiting.size === 0 || this.full) return;
    for (const waiter of this.#waiting) this.#turns.wait(waiter);
    this.#waiting.clear();
  }

  /** Has `waiter` take a turn once there is room. */
  wait(waiter: Waiter): void {
    this.#waiting.add(waiter);
  }

  leave(waiter: Waiter): void {
    this.#waiting.delete(waiter);
  }
}
