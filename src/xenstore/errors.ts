// How a xenstore server's errors appear to its clients: an XentoolError that carries the errno's name.
import { XentoolError, type ErrorKind } from "../core/errors.ts";
import { escapeText } from "../core/log.ts";

const EXPLANATIONS: Readonly<Record<string, string>> = {
  ENOENT: "no such node",
  EACCES: "permission denied",
  EPERM: "operation not permitted",
  EINVAL: "xenstored calls it invalid",
  EEXIST: "it exists already",
  E2BIG: "too large, or too many",
  ENOSPC: "a quota of this domain is used up",
  EQUOTA: "a quota of this domain is used up",
  ENOMEM: "the memory that this domain may use is used up",
  EAGAIN: "another client changed the same nodes",
  EBUSY: "busy",
  ENOSYS: "this xenstored does not know the operation",
};

/** The error for the reply `errno` to `operation` on `subject` (usually a path). */
export function replyError(operation: string, subject: string, errno: string): XentoolError {
  const kind: ErrorKind = errno === "EACCES" || errno === "EPERM" ? "environment" : "io";
  const name = escapeText(errno, 32);
  const reason = EXPLANATIONS[errno];
  const what = `xenstore ${operation} ${escapeText(subject)}`.trimEnd();
  return new XentoolError(kind, `${what}: ${reason === undefined ? name : `${reason} (${name})`}`, {
    errno: name,
    operation,
    path: subject,
  });
}

/** The name of the errno in xenstored's reply, or undefined if `error` is another kind of failure. */
export function errnoOf(error: unknown): string | undefined {
  if (!(error instanceof XentoolError)) return undefined;
  const errno = error.context["errno"];
  return typeof errno === "string" ? errno : undefined;
}

/** The error for a xenstore that cannot be reached. */
export function cannotConnect(path: string, cause: unknown): XentoolError {
  return new XentoolError("environment", `cannot connect to xenstore at ${path}`, { path }, cause);
}

/** The error for a connection that the other side closed. */
export function connectionLost(where: string, cause?: unknown): XentoolError {
  return new XentoolError("io", `xenstored at ${where} went away; is it still running?`, { where }, cause);
}

/** The error for everything in progress when this side closed the connection. */
export function connectionClosed(): XentoolError {
  return new XentoolError("cancelled", "the xenstore connection was closed");
}

/** What may not be read counts as absent: `tryRead(path).catch(nullIfDenied)`. Throws any other error. */
export function nullIfDenied(error: unknown): null {
  if (errnoOf(error) === "EACCES") return null;
  throw error;
}
