// A peer that connects and closes in a loop must not make us spawn commands, write to xenstore and log as fast as it
// can. Whatever a peer can trigger repeatedly is delayed, longer each time.
import { pause } from "../core/deadline.ts";
import { PAUSE_MAX_MS, PAUSE_MIN_MS } from "./bounds.ts";

export class Pace {
  #pauseMs = 0;
  #lastAt = -Infinity;

  /**
   * Resolves at once the first time, and when the last time was at least a second ago. Otherwise it pauses for
   * 100 ms, doubled each further time, up to a second. Returns false at once when `signal` is aborted.
   */
  async next(signal: AbortSignal): Promise<boolean> {
    const soon = performance.now() - this.#lastAt < PAUSE_MAX_MS;
    this.#pauseMs = soon ? Math.min(Math.max(2 * this.#pauseMs, PAUSE_MIN_MS), PAUSE_MAX_MS) : 0;
    if (soon) await pause(this.#pauseMs, signal);
    this.#lastAt = performance.now();
    return !signal.aborted;
  }
}
