// Listening unix sockets: one that a data plane accepts from, which the main thread creates and removes, and whether
// anybody listens at a path.
import { closeSync, lstatSync, rmSync } from "node:fs";
import { describeError, XentoolError } from "../core/errors.ts";
import { moduleLogger } from "../core/log.ts";
import { XT_STREAM_LOCAL } from "./abi.ts";
import { cString, errnoText, shim } from "./shim.ts";

const logger = moduleLogger("socket");

const EAGAIN = -11;
const EADDRINUSE = -98;
const ECONNREFUSED = -111;

export interface UnixListener {
  /** Non-blocking; `xt_stream_accept` takes connections from it. */
  readonly fd: number;
  /** Closes the socket and removes its path, unless that is another one's by now. */
  close(): void;
}

/** Listens at `path`, replacing a socket that a dead process left there. Throws `environment`. */
export function listenAt(path: string): UnixListener {
  const text = cString(path);
  let fd = shim.xt_stream_listen(text, XT_STREAM_LOCAL);
  if (fd === EADDRINUSE && lstatSync(path, { throwIfNoEntry: false })?.isSocket() && isAbandoned(text)) {
    rmSync(path);
    fd = shim.xt_stream_listen(text, XT_STREAM_LOCAL);
  }
  if (fd < 0) throw new XentoolError("environment", `cannot listen at ${path}: ${errnoText(fd)}`, { path });
  const inode = inodeAt(path);
  return {
    fd,
    close: () => {
      // While ours is open, no other one has its number.
      const isOurs = inodeAt(path) === inode;
      closeSync(fd);
      if (isOurs) removeSocket(path);
    },
  };
}

function inodeAt(path: string): number | undefined {
  return lstatSync(path, { throwIfNoEntry: false })?.ino;
}

/** In somebody else's directory, root without capabilities cannot; the next one that listens there replaces it. */
function removeSocket(path: string): void {
  try {
    rmSync(path, { force: true });
  } catch (error) {
    logger.warn(`cannot remove ${path}: ${describeError(error)}`);
  }
}

/** Whether somebody listens at `path`, even if no further connection may queue there now. */
export function isListening(path: string): boolean {
  const fd = tryConnecting(cString(path));
  return fd >= 0 || fd === EAGAIN;
}

/**
 * Whether nobody is listening. A plain file refuses connections, too, so the caller has checked that it is a socket.
 */
function isAbandoned(text: Uint8Array): boolean {
  return tryConnecting(text) === ECONNREFUSED;
}

/** Connects and disconnects. Returns a negative error if the connection was refused. */
function tryConnecting(text: Uint8Array): number {
  const fd = shim.xt_stream_connect(text, XT_STREAM_LOCAL);
  if (fd >= 0) closeSync(fd);
  return fd;
}
