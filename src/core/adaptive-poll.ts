// Looking for work a little while before sleeping: it spares both sides an event when work comes at once, and
// is a waste when it does not. After a sleep that a look would have spared we look; while sleeps are longer, less and
// less, and soon not at all, so that what is idle costs nothing.
// Pure: the caller looks, sleeps and tells the time, in microseconds.

const MIN_US = 10;
/** Sleeps without a look once looking did not pay; twice as many each further time, while that goes on. */
const REST_MIN = 8;
const REST_MAX = 512;
/** This many looks are judged together; the average of sleeps follows the last ones, as many. */
const JUDGED = 32;
/** Long looks must take less than this share of what sleeping takes, and pass that way only a few times in a row. */
const GAIN = 0.9;
const GAIN_JUDGEMENTS = 2;

export class AdaptivePoll {
  /** Bound of one look; 0: never look. */
  maxUs: number;
  /** How long to look now. */
  us = 0;
  readonly #paysUs: number;
  #looks = 0;
  #looksUs = 0;
  #sleepUs = 0;
  #gains = 0;
  #resting = 0;
  #rest = REST_MIN;

  /**
   * A look may take up to `maxUs`. Callers that report with `looked` how long looks took must also stay below `paysUs`
   * on average. For a while it is enough that looks take clearly less than the sleeps they spare: where waking up takes
   * long, the peer needs that time to look as well. So rare work does not keep a processor busy.
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
    if (!pays) {
      this.us = 0;
      this.#resting = this.#rest;
    }
    if (short) this.#rest = REST_MIN;
    else if (!pays) this.#rest = Math.min(2 * this.#rest, REST_MAX);
    this.#looks = this.#looksUs = 0;
  }

  /** Reports how long a sleep took that ended because there was work: a short one should have been a look. */
  slept(us: number): void {
    if (us < this.maxUs) this.#sleepUs += this.#sleepUs === 0 ? us : (us - this.#sleepUs) / JUDGED;
    if (this.#resting > 0) this.#resting--;
    else if (us < this.maxUs) this.us = this.maxUs;
    else this.us = this.us / 2 < MIN_US ? 0 : this.us / 2;
  }
}
