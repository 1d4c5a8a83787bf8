// The bells of shared rings: how a data plane, of either end, learns that the other put something on one of them. An
// event channel stays masked while there is work, because a masked port costs neither side anything. Only just
// before a sleep are the ports unmasked and the rings' event indices armed; then one more look shows what came in
// between. Looking at the rings for a moment before that may spare both sides an event, so there is a look while
// recent sleeps were short.
import { AdaptivePoll } from "../core/adaptive-poll.ts";
import type { EvtchnPort } from "../core/types.ts";
import { check } from "../native/shim.ts";
import type { EventChannels } from "./platform.ts";

/** An end of a ring, as far as its bell is concerned. */
export interface Belled {
  /** Whether the other end put something there, looking for up to `us` microseconds. */
  hasNews(us: number): boolean;
  /** Asks for an event with the next news. Returns true when there are some already: then do not sleep. */
  finalCheck(): boolean;
}

export interface Bell {
  readonly ring: Belled;
  /** The port that the ring's other end notifies. */
  readonly port: EvtchnPort;
}

/** When there are several rings, a look goes round, and stays this long with each. */
const GLANCE_US = 2;

export class Doorbell {
  /** How long to look before a sleep. A `maxUs` of 0 means never. */
  readonly poll: AdaptivePoll;
  readonly #bells: readonly Bell[];
  readonly #channels: EventChannels;
  readonly #ports: Uint32Array;
  /** By bell: 1 while its port is masked. */
  readonly #masked: Uint8Array;
  #lookedAtMs = 0;

  /** `bells` are all the ports of `channels`. Looks take up to `maxPollUs`; for `paysUs` see AdaptivePoll. */
  constructor(bells: readonly Bell[], channels: EventChannels, maxPollUs: number, paysUs = maxPollUs) {
    this.#bells = bells;
    this.#channels = channels;
    this.#ports = new Uint32Array(bells.length);
    this.#masked = new Uint8Array(bells.length);
    this.poll = new AdaptivePoll(maxPollUs, paysUs);
  }

  /** Becomes readable when a bell rings after `arm` allowed a sleep. */
  get fd(): number {
    return this.#channels.fd;
  }

  /** Whether there are news on any ring now. */
  hasNews(): boolean {
    return this.#look(0);
  }

  /** Looks for news for as long as that pays. A sleep that follows counts from `nowMs`. */
  look(nowMs: number): boolean {
    this.#lookedAtMs = nowMs;
    const { us } = this.poll;
    const found = this.#look(us);
    if (us > 0) this.poll.ended(found);
    return found;
  }

  /** Returns true when the caller may sleep: a bell will ring for whatever comes from here on. */
  arm(): boolean {
    const masked = this.#masked;
    let hasNews = false;
    for (let i = 0; i < masked.length; i++) {
      const { ring, port } = this.#bells[i];
      if (masked[i] !== 0) {
        masked[i] = 0;
        this.#channels.unmask(port);
      }
      if (ring.finalCheck()) hasNews = true;
    }
    return !hasNews;
  }

  /**
   * Reads the delivered ports, which stay masked until the next `arm`. Returns whether a bell rang. Throws `io` when
   * they cannot be read: they would wake us for ever.
   */
  take(): boolean {
    const count = check(this.#channels.pending(this.#ports), "read the event channel");
    for (let i = 0; i < count; i++)
      this.#masked[this.#bells.findIndex(({ port }) => port === this.#ports[i])] = 1;
    return count > 0;
  }

  /** Learns from a sleep that ended at `nowMs` because there was work. */
  slept(nowMs: number): void {
    this.poll.slept((nowMs - this.#lookedAtMs) * 1000);
  }

  #look(us: number): boolean {
    const bells = this.#bells;
    const glanceUs = bells.length === 1 ? us : Math.min(us, GLANCE_US);
    for (let spentUs = 0; ; spentUs += glanceUs * bells.length) {
      for (let i = 0; i < bells.length; i++) if (bells[i].ring.hasNews(glanceUs)) return true;
      if (spentUs + glanceUs * bells.length >= us) return false;
    }
  }
}
