// A peer that connects and closes in a loop must not make us spawn commands, write to xenstore and log as fast
// as it can: what it can make happen again and again is held up, longer each time.
import { pause } from "../core/deadline.ts";

export const PAUSE_MIN_MS = 100;
export const PAUSE_MAX_MS = 1000;

export class Pace {
  #pauseMs = 0;
  #lastAt = -Infinity;

  /**
   * Resolves at once the first time, and when the last time is a second ago; else after a pause of 100 ms, and
   * of twice as much each further time, up to a second. False, and at once, when `signal` is aborted.
   */
  async next(signal: AbortSignal): Promise<boolean> {
    const soon = performance.now() - this.#lastAt < PAUSE_MAX_MS;
    this.#pauseMs = soon ? Math.min(Math.max(2 * this.#pauseMs, PAUSE_MIN_MS), PAUSE_MAX_MS) : 0;
    if (soon) await pause(this.#pauseMs, signal);
    this.#lastAt = performance.now();
    return !signal.aborted;
  }
}
