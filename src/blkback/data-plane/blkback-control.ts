// The meaning of the flags and numbers in a disk's control page: whether to stop, and the disk's current size and
// rates.
import type { ControlPage } from "../../plane/control-page.ts";
import { RATE_NUMBERS, ratesAsNumbers, ratesFromNumbers, type DiskRates } from "../limits/rates.ts";

const LEAVE = 1;
const CLOSE = 2;
const HURRY = 4;
const SECTORS = 0;
/** A descriptor + 1, or -errno; 0: nothing to take. */
const DIALLED = 1;
/** The rates' numbers, one after another. */
const RATES = 2;

export type StopOrder = "leave" | "close";

export class BlkbackControl {
  readonly #page: ControlPage;

  constructor(page: ControlPage) {
    this.#page = page;
  }

  /** Becomes readable when there is something to look at. */
  get wakeFd(): number {
    return this.#page.wakeFd;
  }

  /**
   * Has the plane complete the operations it has started, stop, and release everything. `leave`: another server may
   * continue on the ring; `close`: the guest has let go, and its writes are made durable first.
   */
  stop(how: StopOrder): void {
    this.#page.raise(how === "leave" ? LEAVE : CLOSE);
  }

  /** Nobody waits for what the plane closes. */
  hurry(): void {
    this.#page.raise(HURRY);
  }

  get hurries(): boolean {
    return this.#page.isRaised(HURRY);
  }

  get stopped(): boolean {
    return this.#page.isRaised(LEAVE | CLOSE);
  }

  get leaves(): boolean {
    return this.#page.isRaised(LEAVE);
  }

  /** Takes effect with the plane's next batch. */
  set sectors512(sectors: number) {
    this.#page.numbers[SECTORS] = sectors;
  }

  get sectors512(): number {
    return this.#page.numbers[SECTORS] ?? 0;
  }

  /** Takes effect at once, for all requests that are taken off the ring from now on. */
  set rates(rates: DiskRates) {
    this.#page.numbers.set(ratesAsNumbers(rates), RATES);
    this.#page.wake();
  }

  get rates(): DiskRates {
    return ratesFromNumbers(this.#page.numbers.subarray(RATES, RATES + RATE_NUMBERS));
  }

  /** Hands over what came of a connection that the plane had asked for: a descriptor, or -errno. */
  dialled(result: number): void {
    this.#page.numbers[DIALLED] = result >= 0 ? result + 1 : result;
    this.#page.wake();
  }

  /** Takes what was handed over last. */
  takeDialled(): number | undefined {
    const number = this.#page.numbers[DIALLED];
    this.#page.numbers[DIALLED] = 0;
    if (number === 0) return undefined;
    return number > 0 ? number - 1 : number;
  }

  /** Whether something was said since the last `drain`. */
  get hasNews(): boolean {
    return !this.#page.isDrained;
  }

  drain(): void {
    this.#page.drain();
  }
}
