// How often a guest that reconnects in a loop is connected. After a failure, whoever's fault, it is tried more and more
// seldom. After a while without trouble it is as if new.
const FIRST_MS = 100;
const LONGEST_MS = 2000;
const FORGIVEN_AFTER_MS = 30_000;

export class ReconnectPause {
  #pauseMs = FIRST_MS;
  #connectedAtMs = -Infinity;

  /** How long the guest must still wait. */
  remainingMs(): number {
    const since = performance.now() - this.#connectedAtMs;
    if (since > FORGIVEN_AFTER_MS) this.#pauseMs = FIRST_MS;
    return Math.max(0, this.#pauseMs - since);
  }

  /** The guest is connected now, or that fails soon. */
  connecting(): void {
    this.#connectedAtMs = performance.now();
  }

  failed(): void {
    this.#pauseMs = Math.min(LONGEST_MS, this.#pauseMs * 2);
  }
}
