// The bell of a shared ring: how a data plane, of either end, learns that the other put something there. The event
// channel stays masked while there is work, because a masked port costs neither side anything. Only just before a sleep
// is it unmasked and the ring's event index armed; then one more look shows what came in between. Looking at the ring
// for a moment before that may spare both sides an event, so there is a look while recent sleeps were short.
import { AdaptivePoll } from "../core/adaptive-poll.ts";
import type { EvtchnPort } from "../core/types.ts";
import type { EventChannels } from "./platform.ts";

/** An end of a ring, as far as its bell is concerned. */
export interface Belled {
  /** Whether the other end put something there, looking for up to `us` microseconds. */
  hasNews(us: number): boolean;
  /** Asks for an event with the next news. Returns true when there are some already: then do not sleep. */
  finalCheck(): boolean;
}

/** More than the ports of one ring: what else is delivered is read with it. */
const PORTS_AT_ONCE = 16;

export class Doorbell {
  /** How long to look before a sleep. A `maxUs` of 0 means never. */
  readonly poll: AdaptivePoll;
  readonly #ring: Belled;
  readonly #channels: EventChannels;
  readonly #port: EvtchnPort;
  readonly #ports = new Uint32Array(PORTS_AT_ONCE);
  #masked = false;
  #lookedAtMs = 0;

  /** The bell of `ring`, which rings `port` of `channels`. Looks take up to `maxPollUs`. */
  constructor(ring: Belled, channels: EventChannels, port: EvtchnPort, maxPollUs: number) {
    this.#ring = ring;
    this.#channels = channels;
    this.#port = port;
    this.poll = new AdaptivePoll(maxPollUs);
  }

  /** Becomes readable when the bell rings after `arm` allowed a sleep. */
  get fd(): number {
    return this.#channels.fd;
  }

  /** Looks for news for as long as that pays. A sleep that follows counts from `nowMs`. */
  look(nowMs: number): boolean {
    this.#lookedAtMs = nowMs;
    return this.#ring.hasNews(this.poll.us);
  }

  /** Returns true when the caller may sleep: the bell will ring for whatever comes from here on. */
  arm(): boolean {
    if (this.#masked) {
      this.#masked = false;
      this.#channels.unmask(this.#port);
    }
    return !this.#ring.finalCheck();
  }

  /** Reads the delivered ports, which stay masked until the next `arm`. Returns whether the bell rang. */
  take(): boolean {
    if (this.#channels.pending(this.#ports) <= 0) return false;
    this.#masked = true;
    return true;
  }

  /** Learns from a sleep that ended at `nowMs` because there was work. */
  slept(nowMs: number): void {
    this.poll.slept((nowMs - this.#lookedAtMs) * 1000);
  }
}
