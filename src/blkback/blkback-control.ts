// What of a disk's control page means what: whether to stop, and the disk's size now.
import type { ControlPage } from "../plane/control-page.ts";

const LEAVE = 1;
const CLOSE = 2;
const SECTORS = 0;

export type StopOrder = "leave" | "close";

export class BlkbackControl {
  readonly #page: ControlPage;

  constructor(page: ControlPage) {
    this.#page = page;
  }

  /** Readable when there is something to look at. */
  get wakeFd(): number {
    return this.#page.wakeFd;
  }

  /**
   * Has the plane complete what it has started, stop and give everything back. `leave`: another server may go on with
   * the ring; `close`: the guest has let go, and what it wrote is made durable first.
   */
  stop(how: StopOrder): void {
    this.#page.raise(how === "leave" ? LEAVE : CLOSE);
  }

  get stopped(): boolean {
    return this.#page.isRaised(LEAVE | CLOSE);
  }

  get leaves(): boolean {
    return this.#page.isRaised(LEAVE);
  }

  /** From the plane's next batch on. */
  set sectors512(sectors: number) {
    this.#page.numbers[SECTORS] = sectors;
  }

  get sectors512(): number {
    return this.#page.numbers[SECTORS] ?? 0;
  }

  drain(): void {
    this.#page.drain();
  }
}
