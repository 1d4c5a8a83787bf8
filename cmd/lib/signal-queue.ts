// Signals that ask for something other than the end: each is remembered until somebody waits for it.
export class SignalQueue implements Disposable {
  readonly #signal: NodeJS.Signals;
  #hasCome = false;
  #wake: () => void = () => {};

  /** From now on the signal does not end the process. */
  constructor(signal: NodeJS.Signals) {
    this.#signal = signal;
    process.on(signal, this.#come);
  }

  /** Resolves when one has come since the last time. Several that came meanwhile count as one. */
  async next(): Promise<void> {
    const { promise, resolve } = Promise.withResolvers<void>();
    this.#wake = resolve;
    if (!this.#hasCome) await promise;
    this.#hasCome = false;
  }

  [Symbol.dispose](): void {
    process.off(this.#signal, this.#come);
  }

  readonly #come = (): void => {
    this.#hasCome = true;
    this.#wake();
  };
}
