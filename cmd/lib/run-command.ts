// Runs the body of every command. Global options, signals, and turning errors into one line on stderr and an exit
// status are all handled in this one place. Heavy modules are imported only when a body runs.
import { EXIT_CODE, XentoolError, describeError, firstOf, kindOf } from "../../src/core/errors.ts";
import { priorityMark } from "../../src/core/line-priority.ts";
import type { PlatformChoice } from "../../src/platform/open.ts";
import { Interruption } from "./interruption.ts";
import { choice, count, flag, number, type ValuesOf } from "./option.ts";

/** The options that every command has. */
export const GLOBAL_OPTIONS = {
  platform: choice(["auto", "xen", "sim"], "auto: the simulated host that XENTOOL_SIM names, else Xen", {
    initial: "auto",
  }),
  json: flag("Print JSON"),
  timeout: number("Seconds to wait for an answer; the help of each command says whose", 0.001, 1_000_000),
  verbose: count("Log to stderr: -v state changes, -vv everything", "v"),
};
export type GlobalArguments = ValuesOf<typeof GLOBAL_OPTIONS>;

/** What a command's body gets besides its own arguments. */
export interface CommandContext {
  readonly platform: PlatformChoice;
  readonly json: boolean;
  /** 0, 1 (-v) or 2 (-vv). */
  readonly verbosity: number;
  /** Limits each wait, from --timeout. */
  readonly timeoutMs: number | undefined;
  /** Fires at the first SIGINT, SIGTERM or SIGHUP, or when stdout fails. A command that never reads it ends at once. */
  readonly stop: AbortSignal;
  /** Fires at the second one. */
  readonly force: AbortSignal;
  /** From now on the body handles signals, and the exit status, itself. */
  readonly leaveSignals: () => void;
}

/**
 * Runs `body` and sets the process's exit status: what it returns (default 0), 128 + n after signal n, that of the
 * kind of a XentoolError, 70 for anything else. It never exits by itself, because piped output may still be pending.
 */
export async function runCommand(
  argv: GlobalArguments,
  body: (context: CommandContext) => Promise<number | void> | number | void,
): Promise<void> {
  const interruption = new Interruption();
  try {
    const { configureLogging } = await import("../../src/core/log.ts");
    configureLogging(argv.verbose);
    const status = await body({
      platform: argv.platform,
      json: argv.json,
      verbosity: argv.verbose,
      timeoutMs: argv.timeout && Math.ceil(argv.timeout * 1000),
      get stop() {
        return interruption.stop;
      },
      force: interruption.force,
      leaveSignals: () => interruption.close(),
    });
    process.exitCode = interruption.exitCode ?? status ?? 0;
  } catch (error) {
    const interrupted = kindOf(error) === "cancelled";
    if (!interrupted || interruption.exitCode === undefined) reportError(error, argv.json, argv.verbose);
    process.exitCode = interrupted
      ? (interruption.exitCode ?? EXIT_CODE.cancelled)
      : EXIT_CODE[kindOf(error)];
  } finally {
    interruption.close();
  }
}

/** Prints one line on stderr, or one JSON object; for a bug, also how to report it. */
export function reportError(thrown: unknown, json: boolean, verbosity = 0): void {
  const error = firstOf(thrown);
  const kind = kindOf(error);
  const message = describeError(error).replace(/\s*\n\s*/g, " ");
  const context = error instanceof XentoolError ? error.context : {};
  if (json) {
    process.stderr.write(`${JSON.stringify({ error: { kind, message, context } })}\n`);
    return;
  }
  process.stderr.write(`${priorityMark("error")}xentool: ${message}\n`);
  if (kind !== "bug") return;
  process.stderr.write("xentool: this is a bug in xentool; please report it, with the output of -vv\n");
  if (verbosity > 0 && error instanceof Error) process.stderr.write(`${error.stack}\n`);
}
