// Turns: a domain's connections together are served for a short while, then all other domains come first. Turns count
// per domain, because a domain may have as many connections as it likes. Work that takes longer than a turn is a job in
// steps: it continues in the next turn, and the domain starts nothing else before it is done.
import { TURN_MS, TURN_STEPS } from "../bounds.ts";

/** A client waiting for a turn. */
export interface Waiter {
  takeTurn(): void;
}

/** Work that may be interrupted after each step. */
export type Job = Generator<void, void>;

export class Turns {
  readonly #now: () => number;
  #steps = 0;
  #ms = 0;
  /** When the current step began. */
  #begunAt = 0;
  #jobs: Job[] = [];
  readonly #waiting = new Set<Waiter>();
  /** Whether the next turn has been scheduled. */
  #announced = false;

  /** `now` returns the milliseconds of a monotonic clock. */
  constructor(now: () => number) {
    this.#now = now;
  }

  /** Whether the domain must start nothing more until others were served. */
  get over(): boolean {
    return this.#isSpent || this.#jobs.length > 0;
  }

  /** Starts the time measurement for the steps of the next `run`. */
  begin(): void {
    this.#begunAt = this.#now();
  }

  /** Runs the steps of `job` after those of earlier jobs: as many as fit in this turn, the rest later. */
  run(job: Job): void {
    if (this.#jobs.push(job) === 1) this.#work();
  }

  /** Returns the unfinished jobs, which the caller must run from now on. */
  surrender(): Job[] {
    return this.#jobs.splice(0);
  }

  /** Queues `waiter` for a turn, after those already waiting. */
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

  get #isSpent(): boolean {
    return this.#steps >= TURN_STEPS || this.#ms >= TURN_MS;
  }

  #work(): void {
    while (this.#jobs.length > 0 && !this.#stepIsLast());
    if (this.#jobs.length > 0) this.#announce();
  }

  /** Runs one step of the first job. Returns true if it was the last of this turn. */
  #stepIsLast(): boolean {
    let done: boolean | undefined = true;
    try {
      done = this.#jobs[0]?.next().done;
    } finally {
      if (done === true) this.#jobs.shift(); // also if it threw
      const now = this.#now();
      this.#steps++;
      this.#ms += now - this.#begunAt;
      this.#begunAt = now;
    }
    return this.#isSpent;
  }

  #announce(): void {
    if (this.#announced) return;
    this.#announced = true;
    setImmediate(() => this.#beginTurn());
  }

  #beginTurn(): void {
    this.#announced = false;
    this.#steps = 0;
    this.#ms = 0;
    this.begin();
    this.#work();
    for (const waiter of this.#waiting) {
      if (this.over) break;
      this.#waiting.delete(waiter);
      waiter.takeTurn();
    }
    if (this.#waiting.size > 0) this.#announce();
  }
}
