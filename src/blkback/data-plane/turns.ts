// Whose turn it is among the planes of one disk, for work that only one of them may do at a time. The state is in
// memory that they share. Nobody waits here: a plane that is refused asks again when it is woken, or later.

/** How many words `Turns` needs. */
export const TURN_WORDS = 2;
const LAST = 0;
/** A bit for each seat. */
const WAITING = 1;

/** The plane that had the last turn comes last among those that wait. */
export class Turns {
  readonly #words: Int32Array;
  readonly #seat: number;
  readonly #seats: number;

  /** For the plane at `seat`, of `seats`. `words` are zero at first. */
  constructor(words: Int32Array, seat: number, seats: number) {
    this.#words = words;
    this.#seat = seat;
    this.#seats = seats;
  }

  /** Asks for a turn: from now on, the planes behind this one let it go first. */
  wait(): void {
    Atomics.or(this.#words, WAITING, 1 << this.#seat);
  }

  waitNoMore(): void {
    Atomics.and(this.#words, WAITING, ~(1 << this.#seat));
  }

  /** This plane has had its turn. */
  took(): void {
    Atomics.store(this.#words, LAST, this.#seat);
  }

  /** The seats of the planes that wait, as bits. */
  get waiting(): number {
    return Atomics.load(this.#words, WAITING);
  }

  /** Whether no waiting plane comes before this one. */
  get isMine(): boolean {
    const { waiting } = this;
    const last = Atomics.load(this.#words, LAST);
    for (let step = 1; ; step++) {
      const seat = (last + step) % this.#seats;
      if (seat === this.#seat) return true;
      if ((waiting & (1 << seat)) !== 0) return false;
    }
  }
}
