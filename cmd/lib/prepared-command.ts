// The command of --run: its shell is started first, and waits for the word to go, because a process in a jail starts
// no other one.
import { closeSync, writeSync } from "node:fs";
import { endsWithin, onAbort } from "../../src/core/deadline.ts";

/** How long the command may take to exit after SIGTERM before it gets SIGKILL. */
const COMMAND_EXIT_MS = 2000;

/** Reads a line from descriptor 3; without one, nobody wants the command any more. */
const WAIT = 'IFS= read -r _ <&3 || exit 0; exec 3<&-; exec sh -c "$1"';

export class PreparedCommand implements Disposable {
  readonly #child: Bun.Subprocess;
  #gate: number | null | undefined;

  /** Our environment is the command's as it is now. */
  constructor(line: string) {
    this.#child = Bun.spawn(["sh", "-c", WAIT, "sh", line], {
      env: process.env,
      stdio: ["inherit", "inherit", "inherit", "pipe"],
    });
    this.#gate = this.#child.stdio[3];
  }

  get pid(): number {
    return this.#child.pid;
  }

  /** Lets it run and returns its exit status. It gets SIGTERM at `stop`, and SIGKILL 2 s later or at `force`. */
  async run(stop: AbortSignal, force: AbortSignal): Promise<number> {
    const child = this.#child;
    if (typeof this.#gate === "number") writeSync(this.#gate, "\n");
    this[Symbol.dispose]();
    using _stop = onAbort(stop, async () => {
      child.kill("SIGTERM");
      if (!(await endsWithin(COMMAND_EXIT_MS, child.exited))) child.kill("SIGKILL");
    });
    using _force = onAbort(force, () => child.kill("SIGKILL"));
    return await child.exited;
  }

  /** Ends it if it has not been let run. */
  [Symbol.dispose](): void {
    if (typeof this.#gate === "number") closeSync(this.#gate);
    this.#gate = undefined;
  }
}
