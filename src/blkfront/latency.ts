// Latencies as a histogram of fixed size: 16 steps per doubling, so that a percentile is right within a few percent
// however many values there are.

/** In microseconds. */
export interface LatencySummary {
  readonly min: number;
  readonly mean: number;
  readonly p50: number;
  readonly p90: number;
  readonly p99: number;
  readonly p999: number;
  readonly max: number;
}

const STEPS = 16;
const DOUBLINGS = 32;

export class LatencyHistogram {
  readonly #counts = new Float64Array(STEPS * DOUBLINGS);
  #count = 0;
  #sum = 0;
  #min = Infinity;
  #max = 0;

  add(us: number): void {
    this.#counts[bucketOf(us)]++;
    this.#count++;
    this.#sum += us;
    if (us < this.#min) this.#min = us;
    if (us > this.#max) this.#max = us;
  }

  summary(): LatencySummary {
    const round = (us: number): number => Math.round(us * 10) / 10;
    return {
      min: this.#count === 0 ? 0 : round(this.#min),
      mean: this.#count === 0 ? 0 : round(this.#sum / this.#count),
      p50: round(this.#percentile(0.5)),
      p90: round(this.#percentile(0.9)),
      p99: round(this.#percentile(0.99)),
      p999: round(this.#percentile(0.999)),
      max: round(this.#max),
    };
  }

  /** The upper bound of the bucket that contains the percentile `share` (0 to 1). */
  #percentile(share: number): number {
    let left = Math.ceil(this.#count * share);
    if (left === 0) return 0;
    for (let bucket = 0; bucket < this.#counts.length; bucket++) {
      left -= this.#counts[bucket];
      if (left <= 0) return Math.min(this.#max, 2 ** ((bucket + 1) / STEPS));
    }
    return this.#max;
  }
}

function bucketOf(us: number): number {
  return us <= 1 ? 0 : Math.min(STEPS * DOUBLINGS - 1, Math.floor(Math.log2(us) * STEPS));
}
