// When and how a frontend's data plane sleeps. While responses keep coming the event channel stays masked, because a
// masked port costs nothing. Just before sleeping it is unmasked and the ring's event index is armed. Polling the
// ring for a moment first may save both sides an event, so it does that while recent waits were short.
import { AdaptivePoll } from "../core/adaptive-poll.ts";
import type { EvtchnPort } from "../core/types.ts";
import type { EventChannels } from "../platform/platform.ts";
import type { FrontRing } from "./front-ring.ts";

export class FrontSleeper {
  /** Its `maxUs` is 0 until the queue's user sets it: sleep at once. */
  readonly poll = new AdaptivePoll(0);
  readonly #ring: FrontRing;
  readonly #channels: EventChannels;
  readonly #port: EvtchnPort;
  readonly #ports = new Uint32Array(16);
  #masked = false;
  #lookedAtMs = 0;

  constructor(ring: FrontRing, channels: EventChannels, port: EvtchnPort) {
    this.#ring = ring;
    this.#channels = channels;
    this.#port = port;
  }

  /** Becomes readable when responses arrive after `maySleep` allowed sleeping. */
  get fd(): number {
    return this.#channels.fd;
  }

  /** True when the caller may sleep: an event will come for any further response of the backend. */
  maySleep(): boolean {
    if (this.#ring.inFlight > 0) {
      this.#lookedAtMs = performance.now();
      if (this.#ring.hasResponses(this.poll.us)) return false;
    }
    if (this.#masked) {
      this.#masked = false;
      this.#channels.unmask(this.#port);
    }
    return !this.#ring.finalCheck();
  }

  /** Must be called after sleeping. `byEvent`: `fd` was readable; the port then stays masked until the next sleep. */
  woke(byEvent: boolean): void {
    if (byEvent && this.#channels.pending(this.#ports) > 0) this.#masked = true;
    if (byEvent) this.poll.slept((performance.now() - this.#lookedAtMs) * 1000);
  }
}
