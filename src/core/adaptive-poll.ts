// Looking for work a little while before sleeping: it spares both sides an event when work comes at once, and
// is a waste when it does not. How long to look follows how long recent waits were: longer while they are
// shorter than the bound, and soon nothing when they are not, so that what is idle costs nothing.

const MIN_POLL_MS = 0.01;

export class AdaptivePoll {
  /** Bound of looking; 0: never. */
  maxMs: number;
  #pollMs = 0;
  /** When the current wait began; 0: there is none. */
  #waitedFrom = 0;

  constructor(maxMs: number) {
    this.maxMs = maxMs;
  }

  /**
   * Looks for a while; true when `hasWork`, which is told for how many microseconds it may look, said so.
   * Otherwise the caller sleeps, and says so with `slept`. The caller tells the time, because in a guest of Xen
   * asking for it is a system call.
   */
  look(hasWork: (us: number) => boolean, nowMs: number): boolean {
    if (this.maxMs === 0) return hasWork(0);
    this.#waitedFrom = nowMs;
    return hasWork(this.#pollMs * 1000);
  }

  /** To be called when the sleep after a `look` in vain ended because there was work. */
  slept(nowMs: number): void {
    if (this.#waitedFrom === 0) return;
    const waited = nowMs - this.#waitedFrom;
    this.#waitedFrom = 0;
    if (waited < this.maxMs) this.#pollMs = Math.min(this.maxMs, Math.max(MIN_POLL_MS, this.#pollMs * 2));
    else this.#pollMs = this.#pollMs / 2 < MIN_POLL_MS ? 0 : this.#pollMs / 2;
  }
}
