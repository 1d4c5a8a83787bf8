// A listening unix socket that a data plane accepts from: made, and removed, by the main thread.
import { closeSync, lstatSync, rmSync } from "node:fs";
import { XentoolError } from "../core/errors.ts";
import { XT_STREAM_LOCAL } from "./abi.ts";
import { errnoText, shim } from "./shim.ts";

const EADDRINUSE = -98;
const ECONNREFUSED = -111;

export interface UnixListener {
  /** Non-blocking; `xt_stream_accept` takes connections from it. */
  readonly fd: number;
  /** Closes it and removes the path. */
  close(): void;
}

/** Listens at `path`, in the place of a socket that a dead process left there. Fails with `environment`. */
export function listenAt(path: string): UnixListener {
  const text = new TextEncoder().encode(`${path}\0`);
  let fd = shim.xt_stream_listen(text, XT_STREAM_LOCAL);
  if (fd === EADDRINUSE && lstatSync(path, { throwIfNoEntry: false })?.isSocket() && isAbandoned(text)) {
    rmSync(path);
    fd = shim.xt_stream_listen(text, XT_STREAM_LOCAL);
  }
  if (fd < 0) throw new XentoolError("environment", `cannot listen at ${path}: ${errnoText(fd)}`, { path });
  return {
    fd,
    close: () => {
      closeSync(fd);
      rmSync(path, { force: true });
    },
  };
}

/** Nobody listens. A plain file refuses, too: the caller has looked what it is. */
function isAbandoned(text: Uint8Array): boolean {
  const fd = shim.xt_stream_connect(text, XT_STREAM_LOCAL);
  if (fd >= 0) closeSync(fd);
  return fd === ECONNREFUSED;
}
