// Memory that the control side and a plane share while the plane blocks: flags, numbers, and an eventfd that wakes
// the plane. Neither side ever waits for the other. Each service names its flags and numbers in a view of its own.
import { closeSync } from "node:fs";
import { Reactor } from "../native/reactor.ts";
import { check, shim } from "../native/shim.ts";

/** Structured-cloneable. */
export interface ControlHandle {
  readonly buffer: SharedArrayBuffer;
  readonly wakeFd: number;
}

// Words of the page; the numbers follow.
const FLAGS = 0;
/** 1 from a wake-up until the plane has looked. */
const WOKEN = 1;
const NUMBERS_AT = 8;
const NUMBERS = 15;

export class ControlPage {
  readonly handle: ControlHandle;
  /** Each number is written by one side and read by the other as a whole. */
  readonly numbers: Float64Array<SharedArrayBuffer>;
  readonly #words: Int32Array<SharedArrayBuffer>;
  #closed = false;

  /** Attaches to the page of `handle`. Whoever created the page closes it. */
  constructor(handle: ControlHandle) {
    this.handle = handle;
    this.#words = new Int32Array(handle.buffer, 0, 2);
    this.numbers = new Float64Array(handle.buffer, NUMBERS_AT, NUMBERS);
  }

  /** Creates a page. Throws `io` when no descriptor is left for its eventfd. */
  static create(): ControlPage {
    const wakeFd = check(shim.xt_eventfd(), "make an eventfd");
    return new ControlPage({ buffer: new SharedArrayBuffer(NUMBERS_AT + NUMBERS * 8), wakeFd });
  }

  /** Readable after `wake` or `raise`, until `drain`. */
  get wakeFd(): number {
    return this.handle.wakeFd;
  }

  /** Raises `flag`, a power of two, and wakes the plane. */
  raise(flag: number): void {
    Atomics.or(this.#words, FLAGS, flag);
    this.wake();
  }

  /** Whether any of `flags` is raised. */
  isRaised(flags: number): boolean {
    return (Atomics.load(this.#words, FLAGS) & flags) !== 0;
  }

  wake(): void {
    // After closing, the descriptor's number may already refer to another file.
    if (this.#closed) return;
    Atomics.store(this.#words, WOKEN, 1);
    shim.xt_eventfd_signal(this.wakeFd);
  }

  /** Whether the plane has looked since it was last woken. */
  get isDrained(): boolean {
    return Atomics.load(this.#words, WOKEN) === 0;
  }

  /** Clears the eventfd; the flags stay raised. */
  drain(): void {
    shim.xt_eventfd_drain(this.wakeFd);
    Atomics.store(this.#words, WOKEN, 0);
  }

  /** Blocks until one of `flags` is raised. */
  await(flags: number): void {
    using reactor = Reactor.open(1, "sync", 1);
    reactor.watch(this.wakeFd, () => this.drain());
    while (!this.isRaised(flags)) {
      check(reactor.wait(1, -1), "wait for the control side");
      reactor.dispatch();
    }
  }

  /** Clears all flags and numbers, for the next order. */
  reset(): void {
    Atomics.store(this.#words, FLAGS, 0);
    this.drain();
    this.numbers.fill(0);
  }

  /** Called once, by whoever created the page. Later calls of `wake` do nothing. */
  close(): void {
    this.#closed = true;
    closeSync(this.wakeFd);
  }
}
