// A listening unix socket that a data plane accepts from: made, and removed, by the main thread.
import { closeSync, unlinkSync } from "node:fs";
import { XentoolError } from "../core/errors.ts";
import { errnoText, shim } from "./shim.ts";

const EADDRINUSE = -98;
const ECONNREFUSED = -111;
const UNIX_PATH = -1;

export interface UnixListener {
  /** Non-blocking; `xt_stream_accept` takes connections from it. */
  readonly fd: number;
  /** Closes it and removes the path. */
  close(): void;
}

/** Listens at `path`, in the place of a socket that a dead process left there. Fails with `environment`. */
export function listenAt(path: string): UnixListener {
  const text = new TextEncoder().encode(`${path}\0`);
  let fd = shim.xt_stream_listen(text, UNIX_PATH);
  if (fd === EADDRINUSE && isAbandoned(text)) {
    unlinkSync(path);
    fd = shim.xt_stream_listen(text, UNIX_PATH);
  }
  if (fd < 0) throw new XentoolError("environment", `cannot listen at ${path}: ${errnoText(fd)}`, { path });
  return {
    fd,
    close: () => {
      closeSync(fd);
      unlinkSync(path);
    },
  };
}

function isAbandoned(text: Uint8Array): boolean {
  const fd = shim.xt_stream_connect(text, UNIX_PATH);
  if (fd >= 0) closeSync(fd);
  return fd === ECONNREFUSED;
}
