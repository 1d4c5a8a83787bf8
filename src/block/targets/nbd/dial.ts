// Begins a connection to an NBD server, on the control side: a plane cannot resolve names, and a confined one cannot
// open sockets.
import { closeSync } from "node:fs";
import { describeError, XentoolError } from "../../../core/errors.ts";
import { moduleLogger } from "../../../core/log.ts";
import { XT_STREAM_LOCAL } from "../../../native/abi.ts";
import { cString, errnoText, shim } from "../../../native/shim.ts";
import { inTurn } from "./in-turn.ts";
import type { NbdAddress } from "./uri.ts";

const EAGAIN = -11;
const ETIMEDOUT = -110;
/** -EHOSTUNREACH, where nothing says more: the caller tries again. */
export const NO_CONNECTION = -113;
/** No errno, so that a name that cannot be looked up is not taken for a host that is away. */
const NO_SUCH_NAME = -10_000;
/** Less than a link waits for a connection: it is to hear that this was because of the name. */
const LOOKUP_MS = 8000;
/** How often a connection that is being made is looked at. */
const LOOK_MS = 10;
const NOTHING = new Uint8Array(1);

/**
 * Resolves with a descriptor that is being connected, or a number for `whyNotDialled`. A server that has moved is found
 * where it is now.
 */
export async function dialServer(to: NbdAddress): Promise<number> {
  let failure = NO_SUCH_NAME;
  const reach = async (at: NbdAddress, patienceMs: number): Promise<number> => {
    const result = await connectWithin(patienceMs, at);
    if (result >= 0) return result;
    failure = result;
    throw new XentoolError("io", `${at.address}: ${errnoText(result)}`);
  };
  try {
    return await inTurn(to, reach, { lookupMs: LOOKUP_MS });
  } catch (error) {
    if (!(error instanceof XentoolError)) throw error;
    moduleLogger("nbd").debug(describeError(error));
    return failure;
  }
}

/** What a negative result of dialling means. */
export function whyNotDialled(result: number): string {
  return result === NO_SUCH_NAME ? "the name of its host cannot be looked up" : errnoText(result);
}

/** `to` has a number or a path. */
export function beginConnection({ address, port = XT_STREAM_LOCAL }: NbdAddress): number {
  return shim.xt_stream_connect(cString(address), port);
}

/** Resolves with a descriptor that is connected, or -errno. With all the time there is, the caller waits for that. */
export async function connectWithin(patienceMs: number, to: NbdAddress): Promise<number> {
  const fd = beginConnection(to);
  if (fd < 0 || patienceMs === Infinity) return fd;
  const endMs = performance.now() + patienceMs;
  // Sends nothing; what it says is whether anything could be sent.
  let result = shim.xt_socket_send(fd, NOTHING, 0, NOTHING, 0);
  while (result === EAGAIN && performance.now() < endMs) {
    await Bun.sleep(LOOK_MS);
    result = shim.xt_socket_send(fd, NOTHING, 0, NOTHING, 0);
  }
  if (result >= 0) return fd;
  closeSync(fd);
  return result === EAGAIN ? ETIMEDOUT : result;
}
