// Looks at something that may change while it is looked at. An event only means "look again"; however many come during
// one look, one more follows.
export class Looking {
  readonly #once: () => Promise<void>;
  #isRunning = false;
  #isStale = false;

  /** `once` is one look, and what is to be done about it. It never runs twice at the same time. */
  constructor(once: () => Promise<void>) {
    this.#once = once;
  }

  /** Looks until nothing changed while looking; while another call looks, only has it look again. */
  async look(): Promise<void> {
    this.#isStale = true;
    if (this.#isRunning) return;
    this.#isRunning = true;
    try {
      while (this.#isStale) {
        this.#isStale = false;
        await this.#once();
      }
    } finally {
      this.#isRunning = false;
    }
  }

  /** Whether one more look follows the one that is under way. */
  get isStale(): boolean {
    return this.#isStale;
  }

  /** What the look that is under way has seen is out of date. */
  stale(): void {
    this.#isStale = true;
  }
}
