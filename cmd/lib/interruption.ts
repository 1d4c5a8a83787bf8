// Signals as a command sees them: the first asks it to let go of things and end, the second to hurry. One that
// does not listen ends at once. A closed stdout counts as a signal, too (SIGPIPE, which Bun ignores).
import { constants } from "node:os";

const SIGNALS = ["SIGINT", "SIGTERM", "SIGHUP"] as const;
type Signal = (typeof SIGNALS)[number] | "SIGPIPE";

export class Interruption {
  readonly #stop = new AbortController();
  readonly #force = new AbortController();
  readonly #onSignal = (signal: NodeJS.Signals): void => this.interrupt(signal as Signal);
  readonly #onPipeError = (error: NodeJS.ErrnoException): void => {
    if (error.code !== "EPIPE") throw error;
    this.interrupt("SIGPIPE");
  };
  #listening = false;
  #signal: Signal | undefined;

  constructor() {
    for (const signal of SIGNALS) process.on(signal, this.#onSignal);
    process.stdout.on("error", this.#onPipeError);
  }

  /** Fires at the first signal. Reading it is a promise to end soon after. */
  get stop(): AbortSignal {
    this.#listening = true;
    return this.#stop.signal;
  }

  /** Fires at the second signal. */
  get force(): AbortSignal {
    return this.#force.signal;
  }

  /** Exit status of a command that was interrupted (SIGINT 130, SIGTERM 143); undefined when it was not. */
  get exitCode(): number | undefined {
    return this.#signal === undefined ? undefined : 128 + constants.signals[this.#signal];
  }

  /** What `signal` does, also when it is not a real one. */
  interrupt(signal: Signal): void {
    const first = this.#signal === undefined;
    this.#signal ??= signal;
    if (!this.#listening || this.#force.signal.aborted) process.exit(this.exitCode);
    if (first) this.#stop.abort();
    else if (signal !== "SIGPIPE") this.#force.abort();
  }

  close(): void {
    for (const signal of SIGNALS) process.off(signal, this.#onSignal);
    process.stdout.off("error", this.#onPipeError);
  }
}
