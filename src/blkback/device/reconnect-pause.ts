// Limits how often a guest that reconnects in a loop is connected. After each failure, whoever caused it, the pause
// grows. After a while without trouble it starts over.
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

  /** The guest is now connected, or about to fail. */
  connecting(): void {
    this.#connectedAtMs = performance.now();
  }

  failed(): void {
    this.#pauseMs = Math.min(LONGEST_MS, this.#pauseMs * 2);
  }
}
