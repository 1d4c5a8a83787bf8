// How an end of a vchan waits: it looks at the ring for as long as that pays, asks the peer for an event, and sleeps in
// the reactor. While it looks, it also asks the reactor now and then. Both that and letting other threads run take
// system calls, which are expensive in a PV guest, so they get only a small share of the time.
import type { EvtchnPort } from "../core/types.ts";
import type { Mapping } from "../native/memory.ts";
import type { Reactor } from "../native/reactor.ts";
import { check, shim } from "../native/shim.ts";
import { Doorbell, type Belled } from "../platform/doorbell.ts";
import type { EventChannels } from "../platform/platform.ts";
import {
  LOOK_CHECK_SHARE,
  LOOK_CHECK_US_MAX,
  LOOK_CHECK_US_MIN,
  LOOK_PAYS_US,
  LOOK_US_MAX,
  SLEEP_MS_MAX,
} from "./bounds.ts";

/** The ring's bell. What counts as news is set before each wait. */
class VchanRing implements Belled {
  wants = 0;
  readonly #state: Mapping;

  constructor(state: Mapping) {
    this.#state = state;
  }

  hasNews(us: number): boolean {
    return shim.xt_vchan_look(this.#state.bytes, this.wants, us) !== 0;
  }

  finalCheck(): boolean {
    return shim.xt_vchan_arm(this.#state.bytes, this.wants) !== 0;
  }
}

export class VchanSleeper {
  /** Events that woke us. */
  events = 0;
  readonly #reactor: Reactor;
  readonly #ring: VchanRing;
  readonly #doorbell: Doorbell;
  #rang = false;
  /** How long to look between two times of asking the reactor. */
  #checkUs = LOOK_CHECK_US_MIN;

  /** `state` is the struct xt_vchan, `port` the only port of `channels`. With `looks` false, it never looks. */
  constructor(reactor: Reactor, state: Mapping, channels: EventChannels, port: EvtchnPort, looks: boolean) {
    this.#reactor = reactor;
    this.#ring = new VchanRing(state);
    this.#doorbell = new Doorbell(
      [{ ring: this.#ring, port }],
      channels,
      looks ? LOOK_US_MAX : 0,
      LOOK_PAYS_US,
    );
    reactor.watch(channels.fd, () => {
      if (!this.#doorbell.take()) return;
      this.#rang = true;
      this.events++;
    });
  }

  /**
   * Waits until the peer has done one of `wants` since the last sample, has ended its stream or closed, the reactor
   * has found something else, `timeoutMs` has passed (-1: never), or a signal has come. Returns false for the last
   * two.
   */
  wait(wants: number, timeoutMs: number): boolean {
    this.#ring.wants = wants;
    // If nothing is expected of the peer, looking at its ring cannot spare us a sleep.
    const us = wants === 0 ? 0 : this.#doorbell.poll.us;
    const lookUs = Math.floor(timeoutMs < 0 ? us : Math.min(us, timeoutMs * 1000));
    if (lookUs > 0 && this.#look(lookUs)) return true;
    return !this.#doorbell.arm() || this.#sleep(timeoutMs);
  }

  #look(us: number): boolean {
    const begin = shim.xt_now_us();
    let spentUs = 0;
    let found = false;
    for (let sliceUs = Math.min(this.#checkUs, us >> 2); !found && spentUs < us;) {
      found = this.#ring.hasNews(sliceUs) || this.#ask();
      // The clock may jump.
      spentUs = Math.max(spentUs + sliceUs, shim.xt_now_us() - begin);
      sliceUs = Math.min(this.#checkUs, us - spentUs);
    }
    this.#doorbell.poll.looked(Math.max(1, spentUs));
    return found;
  }

  /** Asks the reactor without waiting, then lets others run. The longer that takes, the less often it is done. */
  #ask(): boolean {
    const begin = shim.xt_now_us();
    const found = this.#dispatch(0);
    if (!found) shim.xt_yield();
    const tookUs = Math.min(Math.max(0, shim.xt_now_us() - begin), LOOK_CHECK_US_MAX);
    this.#checkUs = LOOK_CHECK_US_MIN + LOOK_CHECK_SHARE * tookUs;
    return found;
  }

  #sleep(timeoutMs: number): boolean {
    this.#rang = false;
    const begin = shim.xt_now_us();
    const found = this.#dispatch(timeoutMs < 0 ? -1 : Math.min(timeoutMs, SLEEP_MS_MAX) * 1000);
    const sleptUs = Math.max(1, shim.xt_now_us() - begin);
    this.#doorbell.poll.slept(this.#rang ? sleptUs : Infinity);
    return found;
  }

  #dispatch(timeoutUs: number): boolean {
    check(this.#reactor.wait(1, timeoutUs), "wait for the vchan");
    return this.#reactor.dispatch() > 0;
  }
}
