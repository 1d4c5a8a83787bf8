// Which plane comes first of those of one disk that its limits hold back: the one that has had least since all of them
// wait. Each has a number in memory that they share, which only that plane changes: what it has had, or Infinity while
// it does not wait.

export class Shares {
  readonly #had: Float64Array;
  readonly #seat: number;
  #mine = 0;

  /** For the plane at `seat`. `had` is Infinity at first. */
  constructor(had: Float64Array, seat: number) {
    this.#had = had;
    this.#seat = seat;
  }

  /** This plane is held back. What others have had before that does not count. */
  wait(): void {
    if (this.#had[this.#seat] !== Infinity) return;
    const least = this.#leastOfOthers();
    if (least !== Infinity) this.#mine = Math.max(this.#mine, least);
    this.#had[this.#seat] = this.#mine;
  }

  waitNoMore(): void {
    this.#had[this.#seat] = Infinity;
  }

  took(amount: number): void {
    this.#mine += amount;
    if (this.#had[this.#seat] !== Infinity) this.#had[this.#seat] = this.#mine;
  }

  /** Whether no waiting plane has had less than this one. */
  get isFirst(): boolean {
    return this.#leastOfOthers() >= this.#mine;
  }

  #leastOfOthers(): number {
    const had = this.#had;
    let least = Infinity;
    for (let seat = 0; seat < had.length; seat++) if (seat !== this.#seat) least = Math.min(least, had[seat]);
    return least;
  }
}
