// Turns: a domain's connections together are served for a short while, then all other domains come first.
// Counted for the domain, not for the connection: it may have as many of those as it likes. What takes longer
// than a turn is a job in steps: it goes on in the next turn, and nothing else of the domain is begun before.

/** Steps taken in a row. A request is one, unless it is a long one. */
const TURN_STEPS = 64;
/** Time that they may take: one can be a thousand times the work of another. */
const TURN_MS = 2;

/** Who waits for a turn. */
export interface Waiter {
  takeTurn(): void;
}

/** Work that may stop after each step. */
export type Job = Generator<void, void>;

export class Turns {
  readonly #now: () => number;
  #steps = 0;
  #ms = 0;
  /** When the step under way began. */
  #begunAt = 0;
  #jobs: Job[] = [];
  readonly #waiting = new Set<Waiter>();
  /** Whether the next turn is on its way. */
  #announced = false;

  /** `now` returns milliseconds of a clock that only goes forward. */
  constructor(now: () => number) {
    this.#now = now;
  }

  /** Whether nothing more of the domain is begun before others were served. */
  get over(): boolean {
    return this.#isSpent || this.#jobs.length > 0;
  }

  /** Time counts from here on, until the steps of the next `run` are done. */
  begin(): void {
    this.#begunAt = this.#now();
  }

  /** Takes the steps of `job`, after those of the jobs before it: as many as the turn has left, the others later. */
  run(job: Job): void {
    if (this.#jobs.push(job) === 1) this.#work();
  }

  /** Returns the jobs that are not done. The caller has to do them from now on. */
  surrender(): Job[] {
    return this.#jobs.splice(0);
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

  get #isSpent(): boolean {
    return this.#steps >= TURN_STEPS || this.#ms >= TURN_MS;
  }

  #work(): void {
    while (this.#jobs.length > 0 && !this.#stepIsLast());
    if (this.#jobs.length > 0) this.#announce();
  }

  /** One step of the first job. True when it was the last of this turn. */
  #stepIsLast(): boolean {
    let done: boolean | undefined = true;
    try {
      done = this.#jobs[0]?.next().done;
    } finally {
      if (done === true) this.#jobs.shift(); // also one that threw
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
