// The one error type of xentool. `kind` shows who can act on the error, and decides the exit code; `context` carries
// the numbers; `cause` is the underlying error. Messages say what happened, to what, and what to do; the outer text
// never repeats its cause.

export type ErrorKind = "usage" | "environment" | "protocol" | "io" | "timeout" | "cancelled" | "bug";

/** Exit status of a command that fails with this kind of error (SIGTERM's 143 is set by cmd/). */
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

/** Errnos of system calls that our own code caused; the host causes all others. */
const BUGS = words("EBADF EFAULT EINVAL ENOTSOCK");
/** Errnos for what the host lacks or denies us. */
const LACKS = words("EMFILE ENFILE ENOMEM EAGAIN ENOSPC EDQUOT EACCES EPERM EROFS ENOSYS EOPNOTSUPP");

function words(text: string): ReadonlySet<string> {
  return new Set(text.split(" "));
}

/** The errno of a system call that failed in Node or Bun, e.g. "ENOENT"; "" for anything else that was thrown. */
export function codeOf(error: unknown): string {
  return error instanceof Error && "code" in error ? String(error.code) : "";
}

/** What was thrown first, if closing what was open (`using`) failed then as well, as on a full disk. */
export function firstOf(error: unknown): unknown {
  return error instanceof SuppressedError ? firstOf(error.suppressed) : error;
}

/** The kind of anything thrown. A failed system call's kind follows from its errno; everything else is a bug. */
export function kindOf(thrown: unknown): ErrorKind {
  const error = firstOf(thrown);
  if (error instanceof XentoolError) return error.kind;
  const code = codeOf(error);
  if (!/^E[A-Z0-9]+$/.test(code) || BUGS.has(code)) return "bug";
  return LACKS.has(code) ? "environment" : "io";
}

/** Throws `bug` when one of our own invariants does not hold. Never for a peer's input. */
export function assert(condition: unknown, message: string): asserts condition {
  if (!condition) throw new XentoolError("bug", `assertion failed: ${message}`);
}

/** The text of anything thrown, with its chain of causes, on one line. */
export function describeError(error: unknown): string {
  return describeBelow("", error);
}

/** `outer` is the text of the error that `error` caused. */
function describeBelow(outer: string, thrown: unknown): string {
  const error = firstOf(thrown);
  if (!(error instanceof Error)) return String(error);
  const text = withoutPath(outer, error);
  return error.cause === undefined ? text : `${text}: ${describeBelow(text, error.cause)}`;
}

/** The text without the `, stat '/p'` that node:fs appends, if the text before it names /p already. */
function withoutPath(outer: string, { message, syscall, path }: NodeJS.ErrnoException): string {
  const tail = `, ${syscall} '${path}'`;
  const isNamed = path !== undefined && ` ${outer} `.includes(` ${path} `);
  return isNamed && message.endsWith(tail) ? message.slice(0, -tail.length) : message;
}
