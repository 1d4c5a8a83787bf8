// When and how a frontend's data plane sleeps. While responses keep coming the event channel stays masked,
// because a masked port costs nothing; it is unmasked, and the ring's event index armed, just before
// sleeping. Looking at the ring for a moment first may save both sides an event: how long follows what
// recent sleeps would have gained, and is nothing where they were long.
import type { EvtchnPort } from "../core/types.ts";
import type { EventChannels } from "../platform/platform.ts";
import type { FrontRing } from "./front-ring.ts";

const MAX_POLL_MS = 0.1;
const MIN_POLL_MS = 0.01;

export class FrontSleeper {
  readonly #ring: FrontRing;
  readonly #channels: EventChannels;
  readonly #port: EvtchnPort;
  readonly #ports = new Uint32Array(16);
  #masked = false;
  #pollMs = 0;
  #sleptAt = 0;

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
    const waiting = this.#ring.inFlight > 0;
    if (waiting && this.#pollMs > 0 && this.#poll()) return false;
    if (this.#masked) {
      this.#masked = false;
      this.#channels.unmask(this.#port);
    }
    if (this.#ring.finalCheck()) return false;
    this.#sleptAt = waiting ? performance.now() : 0;
    return true;
  }

  /** To be called after sleeping. `byEvent`: `fd` was readable; the port then stays masked until the next sleep. */
  woke(byEvent: boolean): void {
    if (byEvent && this.#channels.pending(this.#ports) > 0) this.#masked = true;
    if (this.#sleptAt === 0) return;
    const slept = performance.now() - this.#sleptAt;
    this.#sleptAt = 0;
    if (slept < MAX_POLL_MS) this.#pollMs = Math.min(MAX_POLL_MS, Math.max(MIN_POLL_MS, this.#pollMs * 2));
    else if (slept > 10 * MAX_POLL_MS) this.#pollMs = 0;
  }

  /** Looks at the ring for a little while; true when something came. */
  #poll(): boolean {
    const until = performance.now() + this.#pollMs;
    do {
      if (this.#ring.hasResponses()) return true;
    } while (performance.now() < until);
    this.#pollMs = this.#pollMs / 2 < MIN_POLL_MS ? 0 : this.#pollMs / 2;
    return false;
  }
}
