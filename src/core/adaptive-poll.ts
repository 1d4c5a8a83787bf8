// Looking for work a little while before sleeping: it spares both sides an event when work comes at once, and
// is a waste when it does not. After a sleep that a look would have spared we look; while sleeps are longer, less and
// less, and soon not at all, so that what is idle costs nothing.
// Pure: the caller looks, sleeps and tells the time, in microseconds.

const MIN_US = 10;
/** Sleeps without a look once looking did not pay; twice as many each further time, while that goes on. */
const REST_MIN = 32;
const REST_MAX = 512;
/** So many looks are judged together; the average of sleeps follows the last so many. */
const JUDGED = 32;
/** Looking must take less of the time that sleeping does than this. */
const GAIN = 0.9;

export class AdaptivePoll {
  /** Bound of one look; 0: never look. */
  maxUs: number;
  /** How long to look now. */
  us = 0;
  readonly #paysUs: number;
  #looks = 0;
  #looksUs = 0;
  #sleepUs = 0;
  #resting = 0;
  #rest = REST_MIN;

  /**
   * A look may take up to `maxUs`. Of who says with `looked` how long looks took, they also have to pay: to take
   * less than `paysUs` on average, or clearly less than the sleeps that they spare. The latter is so where waking up
   * takes long; where it does not, work that comes seldom must not keep a processor busy.
   */
  constructor(maxUs: number, paysUs = maxUs) {
    this.maxUs = maxUs;
    this.#paysUs = paysUs;
  }

  /** A look took so long, whether it found something or not. */
  looked(us: number): void {
    this.#looks++;
    this.#looksUs += us;
    const pays = this.#looksUs <= JUDGED * Math.max(this.#paysUs, GAIN * this.#sleepUs);
    if (pays && this.#looks < JUDGED) return;
    if (!pays) {
      this.us = 0;
      this.#resting = this.#rest;
    }
    this.#rest = pays ? REST_MIN : Math.min(2 * this.#rest, REST_MAX);
    this.#looks = this.#looksUs = 0;
  }

  /** A sleep ended after so long because there was work: one that was short should have been a look. */
  slept(us: number): void {
    if (us < this.maxUs) this.#sleepUs += this.#sleepUs === 0 ? us : (us - this.#sleepUs) / JUDGED;
    if (this.#resting > 0) this.#resting--;
    else if (us < this.maxUs) this.us = this.maxUs;
    else this.us = this.us / 2 < MIN_US ? 0 : this.us / 2;
  }
}
