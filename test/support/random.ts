// Random numbers that a seed repeats. Tests print their seed, and `SEED=n npm test -- FILE` replays it.

/** The seed of this run: SEED of the environment, or one below a million from the clock. */
export function chosenSeed(): number {
  const given = process.env["SEED"];
  return given === undefined ? Date.now() % 1_000_000 : Number(given);
}

/** Small and fast: mulberry32. */
export class Random {
  #state: number;
  constructor(seed: number) {
    this.#state = seed >>> 0;
  }

  /** From 0 to below 1. */
  next(): number {
    this.#state = (this.#state + 0x6d2b79f5) >>> 0;
    let t = this.#state;
    t = Math.imul(t ^ (t >>> 15), t | 1);
    t ^= t + Math.imul(t ^ (t >>> 7), t | 61);
    return ((t ^ (t >>> 14)) >>> 0) / 2 ** 32;
  }

  /** A whole number from 0 to below `limit`. */
  below(limit: number): number {
    return Math.floor(this.next() * limit);
  }

  /** True in this share of the cases. */
  chance(share: number): boolean {
    return this.next() < share;
  }

  pick<T>(items: readonly T[]): T {
    return items[this.below(items.length)];
  }
}

/** Whole numbers below a limit, for generators that ask for nothing else. */
export type WholeNumbers = (limit: number) => number;

export function wholeNumbers(seed: number): WholeNumbers {
  const random = new Random(seed);
  return (limit) => random.below(limit);
}
