// Which bytes of each read have arrived: chunks may come in any order, but must not overlap, and cover the whole.

/** Gaps between chunks out of order that one read may have. Servers send in order, or a few threads' worth apart. */
const MOST = 16;

export class Coverage {
  readonly #from: Float64Array;
  readonly #to: Float64Array;
  readonly #count: Uint8Array;

  constructor(slots: number) {
    this.#from = new Float64Array(slots * MOST);
    this.#to = new Float64Array(slots * MOST);
    this.#count = new Uint8Array(slots);
  }

  begin(slot: number): void {
    this.#count[slot] = 0;
  }

  /** Adds [from, to). False: some of it had arrived, or it comes after too many gaps. */
  add(slot: number, from: number, to: number): boolean {
    const base = slot * MOST;
    const end = base + this.#count[slot];
    let at = base;
    while (at < end && this.#to[at] < from) at++;
    const touchesLeft = at < end && this.#to[at] === from;
    const next = touchesLeft ? at + 1 : at;
    if (next < end && this.#from[next] < to) return false;
    const touchesRight = next < end && this.#from[next] === to;
    if (touchesLeft) {
      this.#to[at] = touchesRight ? this.#to[next] : to;
      if (touchesRight) this.#move(next + 1, end, -1, slot);
    } else if (touchesRight) this.#from[next] = from;
    else {
      if (end - base === MOST) return false;
      this.#move(at, end, 1, slot);
      this.#from[at] = from;
      this.#to[at] = to;
    }
    return true;
  }

  covers(slot: number, length: number): boolean {
    const base = slot * MOST;
    return this.#count[slot] === 1 && this.#from[base] === 0 && this.#to[base] === length;
  }

  #move(from: number, end: number, by: number, slot: number): void {
    this.#from.copyWithin(from + by, from, end);
    this.#to.copyWithin(from + by, from, end);
    this.#count[slot] += by;
  }
}
