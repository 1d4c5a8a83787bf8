// The one error type of xentool. A `kind` says who can do something about it and decides the exit
// code; `context` carries the numbers; `cause` the underlying error. Messages say what happened, to
// what, and what to do; the outer text never repeats its cause.

export type ErrorKind = "usage" | "environment" | "protocol" | "io" | "timeout" | "cancelled" | "bug";

/** Exit status of a command that ends with an error of this kind (SIGTERM's 143 is set by cmd/). */
export const EXIT_CODE: Readonly<Record<ErrorKind, number>> = {
  usage: 2,
  environment: 3,
  protocol: 4,
  io: 5,
  timeout: 6,
  bug: 70,
  cancelled: 130,
};

export type ErrorContext = Readonly<Record<string, string | number | boolean | undefined>>;

export class XentoolError extends Error {
  override readonly name = "XentoolError";
  readonly kind: ErrorKind;
  readonly context: ErrorContext;

  constructor(kind: ErrorKind, message: string, context: ErrorContext = {}, cause?: unknown) {
    super(message, cause === undefined ? undefined : { cause });
    this.kind = kind;
    this.context = context;
  }
}

/** Stops with a `bug` error when one of our own invariants does not hold. Never for a peer's input. */
export function assert(condition: unknown, message: string): asserts condition {
  if (!condition) throw new XentoolError("bug", `assertion failed: ${message}`);
}

/** The text of anything thrown, with the chain of causes, on one line. */
export function describeError(error: unknown): string {
  if (!(error instanceof Error)) return String(error);
  return error.cause === undefined ? error.message : `${error.message}: ${describeError(error.cause)}`;
}
