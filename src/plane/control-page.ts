// What the control side and a plane share while the plane blocks: flags that are raised, numbers, and an eventfd that
// wakes the plane. Neither ever waits for the other. Each service names its flags and numbers in a view of its own.
import { closeSync } from "node:fs";
import { check, shim } from "../native/shim.ts";

/** Structured-cloneable. */
export interface ControlHandle {
  readonly buffer: SharedArrayBuffer;
  readonly wakeFd: number;
}

const NUMBERS_AT = 8;
const NUMBERS = 15;

export class ControlPage {
  readonly handle: ControlHandle;
  /** Each is written by one side and read whole by the other. */
  readonly numbers: Float64Array<SharedArrayBuffer>;
  readonly #flags: Int32Array<SharedArrayBuffer>;
  #closed = false;

  /** The page of `handle`, which whoever created it closes. */
  constructor(handle: ControlHandle) {
    this.handle = handle;
    this.#flags = new Int32Array(handle.buffer, 0, 1);
    this.numbers = new Float64Array(handle.buffer, NUMBERS_AT, NUMBERS);
  }

  /** A new page. Throws `io` when there is no descriptor left for its eventfd. */
  static create(): ControlPage {
    const wakeFd = check(shim.xt_eventfd(), "make an eventfd");
    return new ControlPage({ buffer: new SharedArrayBuffer(NUMBERS_AT + NUMBERS * 8), wakeFd });
  }

  /** Readable after `wake` and `raise`, until `drain`. */
  get wakeFd(): number {
    return this.handle.wakeFd;
  }

  /** Raises a flag, a power of two, and has the plane look. */
  raise(flag: number): void {
    Atomics.or(this.#flags, 0, flag);
    this.wake();
  }

  /** Whether one of `flags` is up. */
  isRaised(flags: number): boolean {
    return (Atomics.load(this.#flags, 0) & flags) !== 0;
  }

  wake(): void {
    // The number of a closed descriptor may be another file's by now.
    if (!this.#closed) shim.xt_eventfd_signal(this.wakeFd);
  }

  /** Makes the eventfd quiet again; the flags stay up. */
  drain(): void {
    shim.xt_eventfd_drain(this.wakeFd);
  }

  /** Blocks until one of `flags` is up. */
  await(flags: number): void {
    const fds = new Int32Array([this.wakeFd]);
    while (!this.isRaised(flags)) {
      shim.xt_wait(fds, 1, -1);
      this.drain();
    }
  }

  /** Takes down all flags and numbers, for the next order. */
  reset(): void {
    Atomics.store(this.#flags, 0, 0);
    this.drain();
    this.numbers.fill(0);
  }

  /** For whoever created it, once; then nothing wakes anybody any more. */
  close(): void {
    this.#closed = true;
    closeSync(this.wakeFd);
  }
}
