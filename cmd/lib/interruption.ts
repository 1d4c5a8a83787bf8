// Signals as a command sees them: the first asks it to clean up and end, the second to hurry. A command that does not
// listen ends at once. A stdout that fails also counts as a first signal.
import { constants } from "node:os";
import { EXIT_CODE } from "../../src/core/errors.ts";

const SIGNALS = ["SIGINT", "SIGTERM", "SIGHUP"] as const;

/** Exit status of a command whose stdout failed. Without a reader it is that of SIGPIPE, which Bun ignores. */
export function outputErrorStatus({ code }: NodeJS.ErrnoException): number {
  return code === "EPIPE" ? 128 + constants.signals.SIGPIPE : EXIT_CODE.io;
}

export class Interruption {
  readonly #stop = new AbortController();
  readonly #force = new AbortController();
  readonly #onSignal = (signal: NodeJS.Signals): void =>
    this.interrupt(128 + constants.signals[signal], true);
  readonly #onOutputError = (error: NodeJS.ErrnoException): void =>
    this.interrupt(outputErrorStatus(error), false);
  #listening = false;
  #exitCode: number | undefined;

  constructor() {
    for (const signal of SIGNALS) process.on(signal, this.#onSignal);
    process.stdout.on("error", this.#onOutputError);
  }

  /** Fires at the first signal. Reading it is a promise to end soon after it fires. */
  get stop(): AbortSignal {
    this.#listening = true;
    return this.#stop.signal;
  }

  /** Fires at the second signal. */
  get force(): AbortSignal {
    return this.#force.signal;
  }

  /** Exit status of an interrupted command (SIGINT 130, SIGTERM 143); undefined when it was not interrupted. */
  get exitCode(): number | undefined {
    return this.#exitCode;
  }

  /** Makes the command end with `exitCode`. If it is already ending, `urgent` makes it hurry. */
  interrupt(exitCode: number, urgent: boolean): void {
    const first = this.#exitCode === undefined;
    this.#exitCode ??= exitCode;
    if (!this.#listening || (urgent && this.#force.signal.aborted)) process.exit(this.#exitCode);
    if (first) this.#stop.abort();
    else if (urgent) this.#force.abort();
  }

  close(): void {
    for (const signal of SIGNALS) process.off(signal, this.#onSignal);
    process.stdout.off("error", this.#onOutputError);
  }
}
