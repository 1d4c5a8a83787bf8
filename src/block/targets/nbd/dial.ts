// Begins a connection to an NBD server, on the control side: a plane cannot resolve names, and a confined one cannot
// open sockets.
import { describeError, XentoolError } from "../../../core/errors.ts";
import { moduleLogger } from "../../../core/log.ts";
import { XT_STREAM_LOCAL } from "../../../native/abi.ts";
import { cString, errnoText, shim } from "../../../native/shim.ts";
import { resolveHost } from "./probe.ts";
import type { NbdAddress } from "./uri.ts";

/** No errno, so that a name that cannot be looked up is not taken for a host that is away. */
const NO_SUCH_NAME = -10_000;
/** Less than a link waits for a connection: it is to hear that this was because of the name. */
export const LOOKUP_MS = 8000;

/**
 * Resolves with a descriptor that is being connected, or a number for `whyNotDialled`. A server that has moved is found
 * where it is now.
 */
export async function dialServer(to: NbdAddress): Promise<number> {
  try {
    return beginConnection(await resolveHost(to, undefined, LOOKUP_MS));
  } catch (error) {
    if (!(error instanceof XentoolError)) throw error;
    moduleLogger("nbd").debug(describeError(error));
    return NO_SUCH_NAME;
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
