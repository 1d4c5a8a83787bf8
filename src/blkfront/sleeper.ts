// When and how a frontend's data plane sleeps. While responses keep coming the event channel stays masked,
// because a masked port costs nothing; it is unmasked, and the ring's event index armed, just before
// sleeping. Looking at the ring for a moment first may save both sides an event: how long follows how long
// recent waits were, and is nothing where they were too long for that.
import type { EvtchnPort } from "../core/types.ts";
import type { EventChannels } from "../platform/platform.ts";
import type { FrontRing } from "./front-ring.ts";

const MIN_POLL_MS = 0.01;

export class FrontSleeper {
  /** Bound of looking before sleeping; 0: sleep at once. */
  maxPollMs = 0;
  readonly #ring: FrontRing;
  readonly #channels: EventChannels;
  readonly #port: EvtchnPort;
  readonly #ports = new Uint32Array(16);
  #masked = false;
  #pollMs = 0;
  /** When the current wait began, 0: nothing is awaited. */
  #waitedFrom = 0;

  constructor(ring: FrontRing, channels: EventChannels, port: EvtchnPort) {
    this.#ring = ring;
    this.#channels = channels;
    this.#port = port;
  }

  /** Becomes readable when responses came after `maySleep` allowed to sleep. */
  get fd(): number {
    return this.#channels.fd;
  }

  /** True when the caller may sleep: an event will come for what the backend answers from here on. */
  maySleep(): boolean {
    this.#waitedFrom = 0;
    if (this.#ring.inFlight > 0 && this.#poll()) return false;
    if (this.#masked) {
      this.#masked = false;
      this.#channels.unmask(this.#port);
    }
    return !this.#ring.finalCheck();
  }

  /** To be called after sleeping. `byEvent`: `fd` was readable; the port then stays masked until the next sleep. */
  woke(byEvent: boolean): void {
    if (byEvent && this.#channels.pending(this.#ports) > 0) this.#masked = true;
    if (this.#waitedFrom === 0 || !byEvent) return;
    const waited = performance.now() - this.#waitedFrom;
    if (waited < this.maxPollMs)
      this.#pollMs = Math.min(this.maxPollMs, Math.max(MIN_POLL_MS, this.#pollMs * 2));
    else this.#pollMs = this.#pollMs / 2 < MIN_POLL_MS ? 0 : this.#pollMs / 2;
  }

  /** Looks at the ring for a little while; true when something came. */
  #poll(): boolean {
    this.#waitedFrom = performance.now();
    const until = this.#waitedFrom + this.#pollMs;
    do {
      if (this.#ring.hasResponses()) return true;
    } while (performance.now() < until);
    return false;
  }
}
