// When a disk's plane sleeps, and for how long: the backend's policies on top of the doorbell of its rings. A guest
// that rings without requests is made to wait. Operations in flight, whose ends will wake us, spare both sides the
// bell.
import { Doorbell, type Bell } from "../../platform/doorbell.ts";
import type { EventChannels } from "../../platform/platform.ts";
import { STAT } from "../stats/stats.ts";

const MAX_POLL_US = 50;
/** More than this many events in a row without requests are a storm: then events have to wait (XSA-332). */
const SPURIOUS_LIMIT = 16;
const STORM_PAUSE_US = 1000;
/**
 * With this many operations in flight, a completion will wake us soon. So for a moment we request no event, which
 * spares both sides its cost. If nothing completes in that moment, we do.
 */
const BUSY_OPERATIONS = 4;
const BUSY_WAIT_US = 100;
/**
 * Of operations beyond this many, half are to end before we wake up, within that moment: a wake-up for each costs more
 * than the others lose by it, as the disk still has enough to do.
 */
const FEW_OPERATIONS = 8;
/**
 * A guest that waits for its answers sends nothing while an operation is in flight. Asking it to ring then would only
 * make it ring for its next request, which a look finds without. We take it for such a guest after QUIET_TRUST waits
 * with no request in between, but not within SLOW_REST waits of an operation that took longer than BUSY_WAIT_US.
 */
const QUIET_TRUST = 8;
const SLOW_REST = 32;
/**
 * After this many rounds whose submissions did not complete at once, we submit and wait in the same call. After every
 * INLINE_RETRY_EVERY such calls we try once more. A guest that waits for its answers is waited for anyhow.
 */
const INLINE_TRUST = 8;
const INLINE_RETRY_EVERY = 256;

export class Sleeper {
  /** Limit on the wait that `mayWait` allowed; -1: none. */
  timeoutUs = -1;
  /** Whether the guest sends nothing before the one operation in flight, just submitted, has ended. */
  isPatient = false;
  /** How many ends of operations to wait for. */
  wanted = 1;
  readonly #doorbell: Doorbell;
  readonly #counters: Float64Array;
  #eventTaken = false;
  #spurious = 0;
  #sleptIdle = false;
  #busyWaiting = false;
  #busyWaitFailed = false;
  #sleptBusy = false;
  #quiet = 0;
  #inlineTrust = INLINE_TRUST;
  #sinceInline = 0;

  constructor(bells: readonly Bell[], channels: EventChannels, counters: Float64Array) {
    this.#doorbell = new Doorbell(bells, channels, MAX_POLL_US);
    this.#counters = counters;
  }

  /**
   * True when the caller may sleep now (for `timeoutUs`): there is nothing to fetch, and an event will announce what
   * is put on the ring from here on. `penaltyUs` > 0 makes a misbehaving guest wait instead.
   */
  mayWait(fetched: number, submitted: number, active: number, penaltyUs: number, nowMs: number): boolean {
    this.timeoutUs = -1;
    this.isPatient = false;
    this.wanted = 1;
    this.#judgeEvent(fetched);
    const isAlone = submitted === 1 && active === 1 && this.#quiet >= QUIET_TRUST;
    if (submitted > 0 && this.#inlineTrust > 0 && !isAlone) return false;
    const idle = active === 0;
    if (idle && this.#doorbell.look(nowMs)) return false;
    const pause = penaltyUs > 0 ? penaltyUs : this.#spurious > SPURIOUS_LIMIT ? STORM_PAUSE_US : 0;
    if (pause > 0) {
      this.#spurious = 0;
      this.timeoutUs = pause;
      return true;
    }
    if (this.#needsNoBell(active)) {
      if (this.#doorbell.hasNews()) return false;
      this.#busyWaiting = true;
      this.timeoutUs = BUSY_WAIT_US;
      this.wanted = Math.max(1, (active - FEW_OPERATIONS) >> 1);
      this.isPatient = isAlone;
    } else if (!this.#doorbell.arm()) return false;
    this.#sleptIdle = idle;
    this.#sleptBusy = !idle;
    return true;
  }

  /** Reads the delivered ports. They stay masked until the next sleep. */
  takeEvents(): void {
    if (!this.#doorbell.take()) return;
    this.#eventTaken = true;
    this.#counters[STAT.wakeups]++;
  }

  /**
   * Learns from a round: `submitted` operations were submitted, `completions` operations ended, and `wait` was
   * allowed.
   */
  completed(submitted: number, completions: number, wait: number, nowMs: number): void {
    if (this.#sleptBusy) this.#judgeQuiet(completions);
    this.#busyWaitFailed = this.#busyWaiting && completions === 0;
    this.#sleptBusy = this.#busyWaiting = false;
    if (wait === 0 && submitted > 0) {
      this.#inlineTrust = completions > 0 ? INLINE_TRUST : this.#inlineTrust - 1;
    } else if (submitted > 0 && ++this.#sinceInline >= INLINE_RETRY_EVERY) {
      this.#sinceInline = 0;
      this.#inlineTrust = 1;
    }
    if (this.#sleptIdle) this.#doorbell.slept(nowMs);
    this.#sleptIdle = false;
  }

  /** Whether an operation in flight is likely to end before, or together with, the next request. */
  #needsNoBell(active: number): boolean {
    if (active === 0 || this.#busyWaitFailed) return false;
    return active >= BUSY_OPERATIONS || this.#quiet >= QUIET_TRUST;
  }

  /** Called before the answers are published: what is on the ring now, the guest sent without waiting for them. */
  #judgeQuiet(completions: number): void {
    if (this.#doorbell.hasNews()) this.#quiet = 0;
    else if (completions > 0) this.#quiet = Math.min(this.#quiet + 1, QUIET_TRUST);
    else if (this.#busyWaiting) this.#quiet = -SLOW_REST;
  }

  #judgeEvent(fetched: number): void {
    if (fetched > 0) this.#spurious = 0;
    else if (this.#eventTaken) {
      this.#spurious++;
      this.#counters[STAT.spuriousWakeups]++;
    }
    this.#eventTaken = false;
  }
}
