// Begins a connection to an NBD server, on the control side: a plane cannot resolve names, and a confined one cannot
// open sockets.
import { describeError, XentoolError } from "../../../core/errors.ts";
import { moduleLogger } from "../../../core/log.ts";
import { XT_STREAM_LOCAL } from "../../../native/abi.ts";
import { cString, shim } from "../../../native/shim.ts";
import { resolveHost } from "./probe.ts";
import type { NbdAddress } from "./uri.ts";

const EHOSTUNREACH = -113;

/** Resolves with a descriptor that is being connected, or -errno. A server that has moved is found where it is now. */
export async function dialServer(to: NbdAddress): Promise<number> {
  try {
    return beginConnection(await resolveHost(to));
  } catch (error) {
    if (!(error instanceof XentoolError)) throw error;
    moduleLogger("nbd").debug(describeError(error));
    return EHOSTUNREACH;
  }
}

/** `to` has a number or a path. */
export function beginConnection({ address, port = XT_STREAM_LOCAL }: NbdAddress): number {
  return shim.xt_stream_connect(cString(address), port);
}
