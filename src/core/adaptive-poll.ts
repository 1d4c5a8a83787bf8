// Polling for work for a short time before sleeping. That spares both sides an event when work comes at once, and is
// a waste when it does not. After a sleep that polling would have spared, we poll; while sleeps are longer, we poll
// less and less, and soon not at all, so that an idle caller costs nothing. Polls that find nothing end, too. Pure: the
// caller polls, sleeps and measures the time, in microseconds.

const MIN_US = 10;
/** Number of sleeps without a look once looking did not pay. It doubles each time that happens again. */
const REST_MIN = 8;
const REST_MAX = 512;
/**
 * This many looks in a row that found nothing mean that looking is in the way: the peer gets its processor only once we
 * sleep. Sleeps are short then, too, so their length does not tell.
 */
const MISSES_MAX = 8;
/** This many looks are judged together; the average sleep is taken over about as many. */
const JUDGED = 32;
/**
 * Looks that exceed `paysUs` on average must take less than this share of the average sleep, and pass that way only a
 * few times in a row.
 */
const GAIN = 0.9;
const GAIN_JUDGEMENTS = 2;

export class AdaptivePoll {
  /** Maximum duration of a look; 0: never look. */
  maxUs: number;
  /** How long to look now. */
  us = 0;
  readonly #paysUs: number;
  #looks = 0;
  #looksUs = 0;
  #sleepUs = 0;
  #gains = 0;
  #misses = 0;
  #resting = 0;
  #rest = REST_MIN;

  /**
   * A look may take up to `maxUs`. Callers that report how long they looked (`looked`) must also stay below `paysUs`
   * on average, so that rare work does not keep a processor busy. For a while it is enough that looks take clearly
   * less than the sleeps they spare: where waking up takes long, the peer needs that time to look as well.
   */
  constructor(maxUs: number, paysUs = maxUs) {
    this.maxUs = maxUs;
    this.#paysUs = paysUs;
  }

  /** Reports how long a look took, whether it found something or not. */
  looked(us: number): void {
    this.#looks++;
    this.#looksUs += us;
    const short = this.#looksUs <= JUDGED * this.#paysUs;
    const gains = this.#gains < GAIN_JUDGEMENTS && this.#looksUs <= JUDGED * GAIN * this.#sleepUs;
    const pays = short || gains;
    if (pays && this.#looks < JUDGED) return;
    this.#gains = pays && !short ? this.#gains + 1 : 0;
    if (short) this.#rest = REST_MIN;
    if (!pays) this.#takeRest();
    this.#looks = this.#looksUs = 0;
  }

  /** Reports whether a look found something. */
  ended(found: boolean): void {
    if (found) this.#rest = REST_MIN;
    this.#misses = found ? 0 : this.#misses + 1;
    if (this.#misses < MISSES_MAX) return;
    this.#misses = 0;
    this.#takeRest();
  }

  /** Reports the duration of a sleep that ended because there was work: a short one should have been a look. */
  slept(us: number): void {
    if (us < this.maxUs) this.#sleepUs += this.#sleepUs === 0 ? us : (us - this.#sleepUs) / JUDGED;
    if (this.#resting > 0) this.#resting--;
    else if (us < this.maxUs) this.us = this.maxUs;
    else this.us = this.us / 2 < MIN_US ? 0 : this.us / 2;
  }

  #takeRest(): void {
    this.us = 0;
    this.#resting = this.#rest;
    this.#rest = Math.min(2 * this.#rest, REST_MAX);
  }
}
